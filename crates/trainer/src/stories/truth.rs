//! The exact distribution of the next token of a text of stories, given the story so far.
//!
//! A word is the same tokens wherever it stands, for tokenizers of characters and for byte-level BPE: a text is cut before white
//! space that follows other text, and around line breaks, and no token reaches over a cut. So the probability of a token is that
//! of the words that go on with it, among those that begin with the tokens of the word so far.

use std::collections::{BTreeMap, HashMap};

use tinygpt_model::{Tokenizer, TokenizerError, tokenizer::TokenizerFamily};

use super::Grammar;

/// Why the truth about a text is not known.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TruthError {
    /// The tokens of a word depend on what is around it.
    #[error("the truth is known in tokens of characters or of a byte-level BPE alone, and this tokenizer is neither")]
    Family,
    /// A tokenizer of characters cannot write the stories.
    #[error(
        "stories can hold {0:?}, which this tokenizer lacks, so their truth is no distribution over its tokens: the run was \
         trained on another text, or on too few stories"
    )]
    UnknownChar(char),
    /// A line is no story.
    #[error(
        "line {line} of the text cannot be told by the built-in grammar from its token {token} on; the truth is known of \
         stories alone (`tinygpt data synth` writes some)"
    )]
    NotAStory {
        /// Counted from 1.
        line: usize,
        /// How many tokens of the line come before.
        token: usize,
    },
    /// A token is not one of the tokenizer's.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

/// Tokens with their probabilities, which sum to 1.
type Sparse = Vec<(u32, f64)>;

/// What the built-in grammar makes of each token of a text, which must be stories, each on its line; the last may break off.
pub struct StoryTruth<'t> {
    grammar: &'t Grammar,
    tokenizer: &'t Tokenizer,
    tokens: Vec<u32>,
    /// Where each line begins.
    lines: Vec<usize>,
    /// The tokens of words.
    words: HashMap<String, Vec<u32>>,
    /// A line, and the distributions of its tokens.
    current: Option<(usize, Vec<Sparse>)>,
}

impl<'t> StoryTruth<'t> {
    /// The truth about some tokens.
    ///
    /// # Errors
    /// When the tokenizer is neither one of characters nor a byte-level BPE, or has no line break.
    pub fn new(tokenizer: &'t Tokenizer, tokens: Vec<u32>) -> Result<Self, TruthError> {
        Self::of(Grammar::builtin(), tokenizer, tokens)
    }

    fn of(grammar: &'t Grammar, tokenizer: &'t Tokenizer, tokens: Vec<u32>) -> Result<Self, TruthError> {
        if tokenizer.kind() == TokenizerFamily::Other {
            return Err(TruthError::Family);
        }
        let newline = encode(tokenizer, "\n")?;
        let ends = tokens.iter().enumerate().filter(|&(_, &token)| newline == [token]).map(|(i, _)| i + 1);
        let lines = std::iter::once(0).chain(ends).collect();
        Ok(Self { grammar, tokenizer, tokens, lines, words: HashMap::new(), current: None })
    }

    /// The distribution of token number `at` given those before it in its line: the tokens that can come, with their probabilities.
    /// Asking for tokens in order is the fastest.
    ///
    /// # Errors
    /// When there is no such token, or the line up to it is not the beginning of a story.
    pub fn distribution(&mut self, at: usize) -> Result<&[(u32, f64)], TruthError> {
        let line = self.lines.partition_point(|&start| start <= at) - 1;
        let distributions = match self.current.take() {
            Some((number, distributions)) if number == line => distributions,
            _ => self.line(line)?,
        };
        let (_, distributions) = self.current.insert((line, distributions));
        let (line, token) = (line + 1, at - self.lines[line]);
        let not_a_story = TruthError::NotAStory { line, token };
        let distribution = distributions.get(token).ok_or(TruthError::NotAStory { line, token })?;
        match distribution.iter().any(|&(id, _)| Some(&id) == self.tokens.get(at)) {
            true => Ok(distribution),
            false => Err(not_a_story),
        }
    }

    /// The distributions of the tokens of a line, as far as it is the beginning of a story, and of the line break behind it.
    fn line(&mut self, line: usize) -> Result<Vec<Sparse>, TruthError> {
        let start = self.lines[line];
        let end = self.lines.get(line + 1).map_or(self.tokens.len(), |next| next - 1);
        let text = self.tokenizer.decode(&self.tokens[start..end])?;
        let mut next = self.next_words("")?;
        let mut distributions = vec![first_tokens(&next, 1.0)];
        let mut told = String::new();
        for word in words(&text) {
            let (possible, own) = (next, self.encoded(word)?);
            next = Vec::new();
            for given in (1..=own.len()).map(|n| &own[..n]) {
                let (mut sum, mut whole) = (BTreeMap::new(), None);
                for (word, tokens, probability) in possible.iter().filter(|(_, tokens, _)| tokens.starts_with(given)) {
                    match tokens.get(given.len()) {
                        Some(&token) => *sum.entry(token).or_insert(0.0) += probability,
                        None => whole = Some((word, *probability)),
                    }
                }
                // A word that ends here is followed by another.
                if let Some((word, probability)) = whole {
                    next = self.next_words(&format!("{told}{word}"))?;
                    for (token, p) in first_tokens(&next, probability) {
                        *sum.entry(token).or_insert(0.0) += p;
                    }
                }
                let total: f64 = sum.values().sum();
                distributions.push(sum.into_iter().map(|(token, p)| (token, p / total)).collect());
            }
            told += word;
        }
        Ok(distributions)
    }

    /// The words that a story can go on with, their tokens and their probabilities.
    fn next_words(&mut self, beginning: &str) -> Result<Vec<(String, Vec<u32>, f64)>, TruthError> {
        let words = self.grammar.next_words(beginning);
        words.into_iter().map(|(word, p)| self.encoded(&word).map(|tokens| (word, tokens, p))).collect()
    }

    fn encoded(&mut self, word: &str) -> Result<Vec<u32>, TruthError> {
        if let Some(tokens) = self.words.get(word) {
            return Ok(tokens.clone());
        }
        let tokens = encode(self.tokenizer, word)?;
        self.words.insert(word.to_owned(), tokens.clone());
        Ok(tokens)
    }
}

fn encode(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>, TruthError> {
    tokenizer.encode(text).map_err(|error| match error {
        TokenizerError::UnknownChar { ch, .. } => TruthError::UnknownChar(ch),
        error => TruthError::Tokenizer(error),
    })
}

/// The distribution of the first token of words, times a factor.
fn first_tokens(words: &[(String, Vec<u32>, f64)], factor: f64) -> Sparse {
    let mut sum = BTreeMap::new();
    for (_, tokens, probability) in words {
        if let Some(&token) = tokens.first() {
            *sum.entry(token).or_insert(0.0) += factor * probability;
        }
    }
    sum.into_iter().collect()
}

/// The text, cut before white space that follows other text.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let mut after_text = false;
        let cut = rest.char_indices().find(|&(_, ch)| {
            let is_cut = after_text && ch.is_whitespace();
            after_text = !ch.is_whitespace();
            is_cut
        });
        let (word, behind) = rest.split_at(cut.map_or(rest.len(), |(at, _)| at));
        rest = behind;
        (!word.is_empty()).then_some(word)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = r#"
rule story:
  2 with hero from person "[open] {hero} {hero.was} glad[end]"
  1 with hero from person "[open] {hero} sang gladly, {hero.was} {hero}?"

list open:
  Once In*2

rule end:
  1 ", she said."
  2 " now."
  1 "ly."

table person: name was
  1 Mia | was
  3 Mio | wasp
"#;

    /// All stories of [`SMALL`], with their probabilities.
    fn small_stories() -> Vec<(String, f64)> {
        let mut stories = Vec::new();
        for (open, p_open) in [("Once", 1.0 / 3.0), ("In", 2.0 / 3.0)] {
            for (name, was, p_name) in [("Mia", "was", 0.25), ("Mio", "wasp", 0.75)] {
                for (end, p_end) in [(", she said.", 0.25), (" now.", 0.5), ("ly.", 0.25)] {
                    stories.push((format!("{open} {name} {was} glad{end}"), 2.0 / 3.0 * p_open * p_name * p_end));
                }
                stories.push((format!("{open} {name} sang gladly, {was} {name}?"), p_open * p_name / 3.0));
            }
        }
        stories
    }

    fn tokenizers(text: &str) -> [Tokenizer; 3] {
        let text = || [Ok::<_, TokenizerError>(text)];
        let bpe = |size| Tokenizer::train_bpe(text(), size).unwrap();
        [Tokenizer::train_char(text()).unwrap(), bpe(260), bpe(400)]
    }

    #[test]
    fn the_truth_is_the_share_of_the_stories_that_go_on_so_of_all_that_begin_so() {
        let grammar = Grammar::parse(SMALL).unwrap();
        let stories = small_stories();
        assert!((stories.iter().map(|story| story.1).sum::<f64>() - 1.0).abs() < 1e-12);
        let text: String = stories.iter().map(|(story, _)| format!("{story}\n")).collect();
        for tokenizer in tokenizers(&text) {
            let encode = |text: &str| tokenizer.encode(text).unwrap();
            let all: Vec<(Vec<u32>, f64)> =
                stories.iter().map(|(story, p)| (encode(&format!("{story}\n")), *p)).collect();
            let mut truth = StoryTruth::of(&grammar, &tokenizer, encode(&text)).unwrap();
            let mut at = 0;
            for (story, _) in &all {
                for told in 0..story.len() {
                    let mut expected = BTreeMap::new();
                    let begins = all.iter().filter(|(other, _)| other.starts_with(&story[..told]));
                    begins.for_each(|(other, p)| *expected.entry(other[told]).or_insert(0.0) += p);
                    let total: f64 = expected.values().sum();
                    let got = truth.distribution(at).unwrap();
                    assert_eq!(
                        got.iter().map(|p| p.0).collect::<Vec<_>>(),
                        expected.keys().copied().collect::<Vec<_>>()
                    );
                    let far = got.iter().zip(expected.values()).map(|(got, p)| (got.1 - p / total).abs());
                    assert!(far.fold(0.0, f64::max) < 1e-12, "{got:?} {expected:?}");
                    at += 1;
                }
            }
        }
    }

    #[test]
    fn the_surprisals_of_tokens_sum_to_that_of_the_story() {
        let grammar = Grammar::builtin();
        let stories: Vec<_> = (0..60).map(|index| grammar.draw(3, index)).collect();
        let text: String = stories.iter().map(|story| format!("{}\n", story.text)).collect();
        for tokenizer in tokenizers(&super::super::StoryCorpus::synth(grammar, 20_000, 1).text) {
            let mut truth = StoryTruth::new(&tokenizer, tokenizer.encode(&text).unwrap()).unwrap();
            let mut at = 0;
            for story in &stories {
                let mut surprisal = 0.0;
                for token in tokenizer.encode(&format!("{}\n", story.text)).unwrap() {
                    let distribution = truth.distribution(at).unwrap();
                    assert!((distribution.iter().map(|p| p.1).sum::<f64>() - 1.0).abs() < 1e-9);
                    surprisal -= distribution.iter().find(|p| p.0 == token).unwrap().1.ln();
                    at += 1;
                }
                assert!((surprisal - story.surprisal).abs() < 1e-9, "{surprisal} {}", story.surprisal);
            }
        }
    }

    #[test]
    fn a_text_begins_within_or_at_a_line_and_may_break_off() {
        let grammar = Grammar::builtin();
        let [chars, ..] = tokenizers(&super::super::StoryCorpus::synth(grammar, 20_000, 1).text);
        let story = grammar.draw(3, 0).text;
        let tokens = chars.encode(&format!("\n{story}\n{}", &story[..20])).unwrap();
        let n = tokens.len();
        let mut truth = StoryTruth::new(&chars, tokens).unwrap();
        let last = truth.distribution(n - 1).unwrap().to_vec();
        assert_eq!(truth.distribution(20).unwrap(), last);
        assert!(matches!(truth.distribution(n), Err(TruthError::NotAStory { line: 3, token: 20 })));
    }

    #[test]
    fn what_has_no_truth_is_refused() {
        let grammar = Grammar::builtin();
        let [chars, ..] = tokenizers(&super::super::StoryCorpus::synth(grammar, 20_000, 1).text);
        let tokens = |text: &str| chars.encode(text).unwrap();
        let mut truth = StoryTruth::new(&chars, tokens("\nOnce upon no time\n")).unwrap();
        let refused = (1..15).find_map(|at| truth.distribution(at).err()).unwrap();
        assert!(matches!(refused, TruthError::NotAStory { line: 2, .. }), "{refused}");
        // Nothing comes in place of a story.
        let refused = StoryTruth::new(&chars, tokens("\n\n")).unwrap().distribution(1).unwrap_err();
        assert!(matches!(refused, TruthError::NotAStory { line: 2, token: 0 }), "{refused}");
        let few = Tokenizer::train_char([Ok::<_, TokenizerError>("\nOnce")]).unwrap();
        let refused = StoryTruth::new(&few, vec![0, 1]).unwrap().distribution(1).unwrap_err();
        assert!(matches!(refused, TruthError::UnknownChar(_)), "{refused}");
        let none = Tokenizer::train_char([Ok::<_, TokenizerError>("Once")]).unwrap();
        assert!(matches!(StoryTruth::new(&none, vec![0, 1]), Err(TruthError::UnknownChar('\n'))));
    }
}
