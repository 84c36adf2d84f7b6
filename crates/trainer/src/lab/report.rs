//! What is known of a strategy in the end.

use serde::Serialize;
use tinygpt_model::Tokenizer;

use super::{
    Lab, Strategy,
    complete::{Drawn, Sums},
    statistics::{Loop, distinct, find_loop, repeated},
};
use crate::{Result, stories::Grammar};

/// How a completion came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EndedBy {
    /// By a token that ends a text.
    Stop,
    /// By its length.
    Length,
}

/// A completion. Means are over its tokens.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Completion {
    /// The number of its prompt, counted from 0.
    pub prompt: usize,
    /// Its number among those of its prompt and strategy: the sequence of its draws.
    pub sample: u64,
    /// The text behind the prompt.
    pub text: String,
    /// Its tokens, one that ends it included.
    pub tokens: Vec<u32>,
    /// How it came to its end.
    pub ended_by: EndedBy,
    /// The mean entropy of the distributions that tokens were drawn from, after all rules, in nats.
    pub entropy: Option<f64>,
    /// The mean entropy of the model's own distributions, before any rule, in nats.
    pub model_entropy: f64,
    /// The mean number of tokens that the rules kept.
    pub kept: Option<f64>,
    /// The perplexity of its tokens under the model itself: temperature 1, no rules.
    pub perplexity: f64,
    /// The loop of tokens that it ends in.
    #[serde(rename = "loop")]
    pub ends_in: Option<Loop>,
    #[serde(skip)]
    sums: Sums,
}

impl Completion {
    /// A completion of what was drawn.
    pub(super) fn new(prompt: usize, sample: u64, drawn: Drawn, tokenizer: &Tokenizer) -> Result<Self> {
        let Drawn { tokens, stopped, sums } = drawn;
        // The token that ends a text is not part of it.
        let shown = if stopped { &tokens[..tokens.len() - 1] } else { &tokens[..] };
        let text = tokenizer.decode(shown)?;
        let Means { entropy, model_entropy, kept, perplexity } = Means::of(sums);
        let ended_by = if stopped { EndedBy::Stop } else { EndedBy::Length };
        let ends_in = find_loop(&tokens);
        Ok(Self { prompt, sample, text, tokens, ended_by, entropy, model_entropy, kept, perplexity, ends_in, sums })
    }

    /// The same completion under another number.
    pub(super) fn of_sample(self, sample: u64) -> Self {
        Self { sample, ..self }
    }
}

/// A strategy and what its completions are like. Means are over all tokens of all completions; what counts words is of words
/// that white space separates.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StrategyReport {
    /// Its name.
    pub name: String,
    /// The hypotheses of a beam search; `None` for rules of sampling.
    pub beam: Option<usize>,
    /// Whether all completions of a prompt are the same.
    pub deterministic: bool,
    /// The mean entropy of the distributions that tokens were drawn from, after all rules, in nats. `None` for beam search, which
    /// draws nothing.
    pub entropy: Option<f64>,
    /// The mean entropy of the model's own distributions in the same places, before any rule, in nats.
    pub model_entropy: f64,
    /// The mean number of tokens that the rules kept.
    pub kept: Option<f64>,
    /// The perplexity of all tokens under the model itself: temperature 1, no rules.
    pub perplexity: f64,
    /// The share of different words among all words of all completions (Li et al., 2016). `None` where there are none.
    pub distinct_1: Option<f64>,
    /// The share of different pairs of words.
    pub distinct_2: Option<f64>,
    /// The share of sequences of four words that their own completion has already had (Welleck et al., 2020).
    pub repeated_4_grams: Option<f64>,
    /// The share of completions that end in a loop of tokens.
    pub looping: f64,
    /// The loop of the first completion that ends in one.
    #[serde(rename = "loop")]
    pub first_loop: Option<Loop>,
    /// Stories that were finished in completions without a prompt; `None` where the grammar is not known, or all have a prompt.
    pub stories: Option<usize>,
    /// The share of them that the grammar accepts; `None` where there are none.
    pub accepted: Option<f64>,
    /// All completions, prompt after prompt.
    pub completions: Vec<Completion>,
}

impl StrategyReport {
    /// What a strategy's completions are like.
    pub(super) fn new(lab: &Lab<'_>, strategy: &Strategy, completions: Vec<Completion>) -> Self {
        let sums = completions.iter().map(|completion| completion.sums).reduce(Sums::plus).unwrap_or_default();
        let Means { entropy, model_entropy, kept, perplexity } = Means::of(sums);
        let texts = || completions.iter().map(|completion| completion.text.as_str());
        let looping = completions.iter().filter(|completion| completion.ends_in.is_some()).count();
        let from_start: Vec<&str> = completions
            .iter()
            .filter(|completion| lab.prompts[completion.prompt].text.is_empty())
            .map(|completion| completion.text.as_str())
            .collect();
        let told = lab.grammar.filter(|_| !from_start.is_empty()).map(|grammar| finished_stories(grammar, &from_start));
        Self {
            name: strategy.name.clone(),
            beam: strategy.beam,
            deterministic: strategy.is_deterministic(),
            entropy,
            model_entropy,
            kept,
            perplexity,
            distinct_1: distinct(texts(), 1),
            distinct_2: distinct(texts(), 2),
            repeated_4_grams: repeated(texts(), 4),
            looping: looping as f64 / completions.len().max(1) as f64,
            first_loop: completions.iter().find_map(|completion| completion.ends_in),
            stories: told.map(|(stories, _)| stories),
            accepted: told.filter(|&(stories, _)| stories > 0).map(|(stories, good)| good as f64 / stories as f64),
            completions,
        }
    }
}

/// The stories that texts finish, and how many of them the grammar accepts. A text begins where a story does, and a line break
/// ends one; what the last of a text has no line break behind is unfinished.
fn finished_stories(grammar: &Grammar, texts: &[&str]) -> (usize, usize) {
    let stories = || texts.iter().flat_map(|text| text.rsplit('\n').skip(1));
    (stories().count(), stories().filter(|story| grammar.accept(story).is_ok()).count())
}

/// Means over tokens.
struct Means {
    entropy: Option<f64>,
    model_entropy: f64,
    kept: Option<f64>,
    perplexity: f64,
}

impl Means {
    fn of(sums: Sums) -> Self {
        let steps = sums.steps.max(1) as f64;
        Self {
            entropy: sums.drawn_from.map(|drawn| drawn.entropy / steps),
            model_entropy: sums.model_entropy / steps,
            kept: sums.drawn_from.map(|drawn| drawn.kept as f64 / steps),
            perplexity: (-sums.logprob / steps).exp(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::complete::DrawnFrom;

    #[test]
    fn stories_are_the_finished_lines_of_texts() {
        let grammar = Grammar::builtin();
        let (one, two) = (grammar.draw(1, 0).text, grammar.draw(1, 1).text);
        let texts = [format!("{one}\n{two}\n{}", &one[..10]), format!("{one} {two}\n"), two.clone(), String::new()];
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        assert_eq!(finished_stories(grammar, &texts), (3, 2), "two whole ones, and one line that is none");
        assert_eq!(finished_stories(grammar, &texts[2..]), (0, 0));
        assert_eq!(finished_stories(grammar, &["\n"]), (1, 0), "an empty line is no story");
    }

    #[test]
    fn means_are_over_tokens_and_the_perplexity_is_the_exponential_of_the_mean_loss() {
        let drawn_from = |entropy, kept| Some(DrawnFrom { entropy, kept });
        let one = Sums { steps: 3, logprob: -1.5, model_entropy: 3.0, drawn_from: drawn_from(1.0, 9) };
        let two = Sums { steps: 1, logprob: -0.5, model_entropy: 2.0, drawn_from: drawn_from(0.5, 1) };
        let means = Means::of(one.plus(two));
        assert_eq!((means.entropy, means.model_entropy, means.kept), (Some(0.375), 1.25, Some(2.5)));
        assert!((means.perplexity - 0.5f64.exp()).abs() < 1e-15);
        let searched = Sums { drawn_from: None, ..one };
        assert_eq!(Means::of(searched.plus(searched)).entropy, None);
    }
}
