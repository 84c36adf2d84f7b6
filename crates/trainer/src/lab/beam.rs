//! Beam search: not a draw but a search for the most probable text, which is repetitive and dull where texts are free (Holtzman
//! et al., 2020, "The Curious Case of Neural Text Degeneration"). It is the counter-example of the comparison.
//!
//! Hypotheses are ranked by their log-probability, not normalised by length. Lengths differ only where a token ends a text; a
//! hypothesis that it has ended stays as it is, and competes with the others. Of equal ones the hypothesis that came first is
//! better, then the lower token.

use tinygpt_model::{
    LanguageModel, Windows,
    language_model::{NextToken, each_row, most_probable},
};
use tinygpt_sampler::{Sampler, SamplingParams};

use super::{
    Lab,
    complete::{Drawn, Sums},
};
use crate::Result;

/// A beginning of a text.
#[derive(Debug, Clone)]
struct Hypothesis {
    /// The prompt and what follows.
    tokens: Vec<u32>,
    ended: bool,
    sums: Sums,
}

/// What may follow a hypothesis.
struct Continuations {
    next: NextToken,
    /// The most probable tokens and their logits, at most as many as there are hypotheses.
    best: Vec<(u32, f32)>,
}

/// A hypothesis of the next step, by what it is made of.
struct Candidate {
    logprob: f64,
    parent: usize,
    /// The token to add and the entropy that it was chosen from; `None` for a hypothesis that has ended.
    token: Option<(u32, f64)>,
}

/// The text of the largest probability that a beam of `width` hypotheses finds behind a prompt. All hypotheses of a step are
/// windows of one batch; each window is the last `block_size` tokens.
pub(super) fn beam_search(
    lab: &Lab<'_>,
    model: &mut dyn LanguageModel,
    prompt: &[u32],
    width: usize,
    on_tokens: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Drawn> {
    let mut beam = vec![Hypothesis { tokens: prompt.to_vec(), ended: false, sums: Sums::default() }];
    for n in 1..=lab.max_new_tokens {
        let running: Vec<usize> = (0..beam.len()).filter(|&h| !beam[h].ended).collect();
        let cols = (prompt.len() + n - 1).min(model.block_size());
        let last = |&h: &usize| &beam[h].tokens[beam[h].tokens.len() - cols..];
        let ids: Vec<u32> = running.iter().flat_map(last).copied().collect();
        let windows = Windows { ids: &ids, cols, from: cols - 1 };
        let continuations = each_row(model, windows, |_, logits| continuations(logits, width))?;
        let mut candidates: Vec<Candidate> = Vec::new();
        for (h, hypothesis) in beam.iter().enumerate().filter(|(_, hypothesis)| hypothesis.ended) {
            candidates.push(Candidate { logprob: hypothesis.sums.logprob, parent: h, token: None });
        }
        for (&h, continuations) in running.iter().zip(continuations) {
            let Continuations { next, best } = continuations?;
            candidates.extend(best.into_iter().map(|(token, logit)| Candidate {
                logprob: beam[h].sums.logprob + next.logprob(logit),
                parent: h,
                token: Some((token, next.entropy)),
            }));
        }
        let token = |candidate: &Candidate| candidate.token.map(|(token, _)| token);
        candidates.sort_by(|a, b| {
            b.logprob.total_cmp(&a.logprob).then(a.parent.cmp(&b.parent)).then(token(a).cmp(&token(b)))
        });
        candidates.truncate(width);
        beam = candidates.into_iter().map(|candidate| candidate.grow(&beam, lab)).collect();
        on_tokens(1)?;
        if beam.iter().all(|hypothesis| hypothesis.ended) {
            on_tokens(lab.max_new_tokens - n)?;
            break;
        }
    }
    let Hypothesis { tokens, ended, sums } = beam.swap_remove(0);
    Ok(Drawn { tokens: tokens[prompt.len()..].to_vec(), stopped: ended, sums })
}

/// The `width` most probable tokens of a row, by falling logit, of equal ones the lowest first.
fn continuations(logits: &[f32], width: usize) -> tinygpt_model::Result<Continuations> {
    // A row that cannot be drawn from is refused as a draw refuses it.
    Sampler::new(SamplingParams { temperature: 0.0, ..Default::default() })?.sample_row(logits, &[], 0, 0)?;
    Ok(Continuations { next: NextToken::of(logits), best: most_probable(logits, width) })
}

impl Candidate {
    /// The hypothesis that it stands for.
    fn grow(self, beam: &[Hypothesis], lab: &Lab<'_>) -> Hypothesis {
        let mut hypothesis = beam[self.parent].clone();
        if let Some((token, entropy)) = self.token {
            hypothesis.tokens.push(token);
            hypothesis.ended = lab.ends(token);
            hypothesis.sums.steps += 1;
            hypothesis.sums.logprob = self.logprob;
            hypothesis.sums.model_entropy += entropy;
        }
        hypothesis
    }
}
