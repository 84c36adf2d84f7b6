//! What two distributions of the next token make of each other, in the contexts of a text.

use rayon::prelude::*;
use serde::Serialize;
use tinygpt_model::{
    LanguageModel, ModelError, Windows,
    language_model::{each_row, log_sum_exp},
};
use tinygpt_sampler::{cross_entropy, entropy, jensen_shannon, kl_divergence};

use crate::{
    Result, TrainError,
    calibration::{Calibration, Counts},
    data::Split,
    sliding::{Sliding, SlidingWindow},
    stories::StoryTruth,
};

/// The most bytes that the distributions of one side have at a time; a window has what it needs.
const DISTRIBUTION_BYTES: usize = 64 << 20;

/// What gives the distribution of the next token.
pub enum Source<'a> {
    /// A model, which sees the tokens of the window.
    Model(&'a mut dyn LanguageModel),
    /// The grammar of the built-in corpus, which sees the story from its beginning, whatever the window.
    Truth(Box<StoryTruth<'a>>),
}

/// How two distributions `a` and `b` differ, each a mean over contexts, in nats.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Divergence {
    /// How many contexts.
    pub contexts: u64,
    /// The entropy of `a`.
    pub entropy_a: f64,
    /// The entropy of `b`.
    pub entropy_b: f64,
    /// The loss of `a` on the tokens of the text.
    pub loss_a: f64,
    /// The loss of `b` on the tokens of the text.
    pub loss_b: f64,
    /// The cross-entropy `-sum a ln b`: the loss of `b` were the text drawn from `a`. Infinite where `b` rules out what `a` does not.
    pub cross_entropy_ab: f64,
    /// The cross-entropy `-sum b ln a`.
    pub cross_entropy_ba: f64,
    /// `KL(a || b) = cross_entropy_ab - entropy_a`.
    pub kl_ab: f64,
    /// `KL(b || a) = cross_entropy_ba - entropy_b`.
    pub kl_ba: f64,
    /// The Jensen-Shannon divergence, at most `ln 2`.
    pub jensen_shannon: f64,
    /// The share of contexts in which both have the same most probable token, of equals that with the smallest id.
    pub top_agreement: f64,
}

impl Divergence {
    /// That of one context, which `target` follows.
    fn new(a: &[f64], b: &[f64], target: u32) -> Self {
        Self {
            contexts: 1,
            entropy_a: entropy(a),
            entropy_b: entropy(b),
            loss_a: 0.0 - a[target as usize].ln(),
            loss_b: 0.0 - b[target as usize].ln(),
            cross_entropy_ab: cross_entropy(a, b),
            cross_entropy_ba: cross_entropy(b, a),
            kl_ab: kl_divergence(a, b),
            kl_ba: kl_divergence(b, a),
            jensen_shannon: jensen_shannon(a, b),
            top_agreement: if most_probable(a) == most_probable(b) { 1.0 } else { 0.0 },
        }
    }

    fn values(&mut self) -> [&mut f64; 10] {
        let Self { contexts: _, entropy_a, entropy_b, loss_a, loss_b, cross_entropy_ab, cross_entropy_ba, .. } = self;
        let Self { kl_ab, kl_ba, jensen_shannon, top_agreement, .. } = self;
        [
            entropy_a,
            entropy_b,
            loss_a,
            loss_b,
            cross_entropy_ab,
            cross_entropy_ba,
            kl_ab,
            kl_ba,
            jensen_shannon,
            top_agreement,
        ]
    }

    /// The mean over the contexts of several.
    pub fn mean<'d>(all: impl IntoIterator<Item = &'d Self>) -> Self {
        let mut mean = Self::default();
        for divergence in all {
            let weight = divergence.contexts as f64;
            mean.contexts += divergence.contexts;
            let mut divergence = *divergence;
            for (sum, value) in mean.values().into_iter().zip(divergence.values()) {
                *sum += weight * *value;
            }
        }
        let contexts = mean.contexts as f64;
        mean.values().into_iter().for_each(|sum| *sum /= contexts);
        mean
    }
}

/// The token with the largest probability, of equals that with the smallest id.
pub(crate) fn most_probable(p: &[f64]) -> usize {
    p.iter().enumerate().fold(0, |best, (i, &p_i)| if p_i > p[best] { i } else { best })
}

/// Two distributions in the contexts of a text.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// The mean over all contexts.
    #[serde(flatten)]
    pub mean: Divergence,
    /// The means by position in the window: after 1, 2, 3, ... of its tokens.
    pub positions: Vec<Divergence>,
    /// Whether what `a` and `b` predict happens as often as they say.
    pub calibration: Calibrations,
}

/// The calibration of both.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Calibrations {
    /// That of `a`.
    pub a: Calibration,
    /// That of `b`.
    pub b: Calibration,
}

/// Compares two distributions in non-overlapping windows of `context` tokens of a text: in all, or in `windows` of them that are
/// spread evenly over it. `on_progress(done, all)` is told how many windows are done, and may end the work by an error.
///
/// # Errors
/// When the text has no token to predict, a model cannot take the windows, the truth is not known, the two are not over the same
/// number of tokens, logits hold a NaN, or `on_progress` fails.
pub fn compare(
    a: &mut Source<'_>,
    b: &mut Source<'_>,
    split: &Split,
    vocab_size: usize,
    context: usize,
    windows: Option<usize>,
    on_progress: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<Comparison> {
    split.check("compared", 2)?;
    a.check(context, vocab_size)?;
    b.check(context, vocab_size)?;
    let chosen = Sliding { context, stride: context }.spread_windows(split.len(), windows.unwrap_or(usize::MAX));
    let n = chosen.len();
    // By position in the window, one of each window; and all probabilities of either side.
    let mut positions: Vec<Vec<Divergence>> = vec![Vec::new(); context];
    let mut counts = [Counts::default(), Counts::default()];
    let mut done = 0;
    for group in groups(&chosen, vocab_size) {
        let cols = group[0].cols;
        let batch = split.batch(cols, group.iter().map(|window| window.start))?;
        // The last target is read by no model, which would refuse it.
        if let Some(&id) = batch.targets.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(ModelError::TokenOutOfRange { id, vocab_size }.into());
        }
        let (p, q) = (a.distributions(group, &batch.ids, vocab_size)?, b.distributions(group, &batch.ids, vocab_size)?);
        let pairs = p.par_iter().zip(&q).zip(&batch.targets);
        let divergences: Vec<Divergence> = pairs.map(|((p, q), &target)| Divergence::new(p, q, target)).collect();
        for (place, divergence) in divergences.into_iter().enumerate() {
            positions[place % cols].push(divergence);
        }
        for (counts, distributions) in counts.iter_mut().zip([&p, &q]) {
            distributions.iter().zip(&batch.targets).for_each(|(p, &target)| counts.add(p, target));
        }
        done += group.len();
        on_progress(done, n)?;
    }
    positions.retain(|contexts| !contexts.is_empty());
    let mean = Divergence::mean(positions.iter().flatten());
    let [a, b] = counts.map(Counts::finish);
    Ok(Comparison {
        mean,
        positions: positions.iter().map(Divergence::mean).collect(),
        calibration: Calibrations { a, b },
    })
}

/// Windows whose distributions are held together: neighbours of one length, no more than [`DISTRIBUTION_BYTES`] have.
pub(crate) fn groups(windows: &[SlidingWindow], vocab_size: usize) -> impl Iterator<Item = &[SlidingWindow]> {
    let rows = move |cols: usize| (DISTRIBUTION_BYTES / (cols * vocab_size * size_of::<f64>()).max(1)).max(1);
    windows.chunk_by(|a, b| a.cols == b.cols).flat_map(move |group| group.chunks(rows(group[0].cols)))
}

impl Source<'_> {
    pub(crate) fn check(&self, context: usize, vocab_size: usize) -> Result<()> {
        let sliding = Sliding { context, stride: context };
        let Self::Model(model) = self else { return sliding.check(usize::MAX) };
        sliding.check(model.block_size())?;
        match model.vocab_size() {
            own if own == vocab_size => Ok(()),
            own => Err(TrainError::VocabSizes { a: vocab_size, b: own }),
        }
    }

    /// The probabilities `(V)` of the token behind each position of windows of one length, whose tokens are `ids`.
    pub(crate) fn distributions(
        &mut self,
        windows: &[SlidingWindow],
        ids: &[u32],
        vocab_size: usize,
    ) -> Result<Vec<Vec<f64>>> {
        let cols = windows[0].cols;
        match self {
            Self::Model(model) => {
                let rows = each_row(*model, Windows { ids, cols, from: 0 }, |_, logits| softmax(logits))?;
                match rows.iter().position(|p| p.iter().any(|p| p.is_nan())) {
                    Some(place) => Err(TrainError::NanLogits { position: windows[place / cols].start + place % cols }),
                    None => Ok(rows),
                }
            }
            Self::Truth(truth) => {
                let predicted = windows.iter().flat_map(|window| window.start + 1..=window.start + window.cols);
                let dense = |at: usize| {
                    let mut p = vec![0.0; vocab_size];
                    truth.distribution(at)?.iter().for_each(|&(id, probability)| p[id as usize] = probability);
                    Ok(p)
                };
                predicted.map(dense).collect()
            }
        }
    }
}

fn softmax(logits: &[f32]) -> Vec<f64> {
    let lse = log_sum_exp(logits);
    logits.iter().map(|&x| (f64::from(x) - lse).exp()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tinygpt_model::Tokenizer;

    use super::*;
    use crate::{stories::StoryCorpus, test_models::Hashing};

    fn quietly(a: &mut Source<'_>, b: &mut Source<'_>, split: &Split, v: usize, context: usize) -> Comparison {
        compare(a, b, split, v, context, None, &mut |_, _| Ok(())).unwrap()
    }

    proptest! {
        #[test]
        fn means_are_those_of_all_contexts_one_by_one(
            v in 1..12usize,
            ids in prop::collection::vec(0..12u32, 2..60),
            context in 1..20usize,
        ) {
            let ids: Vec<u32> = ids.iter().map(|id| id % v as u32).collect();
            let (mut a, mut b) = (Hashing::new(v, 20, 1), Hashing::new(v, 20, 2));
            let split = Split::whole(ids.clone().into(), None);
            let compared = quietly(&mut Source::Model(&mut { a }), &mut Source::Model(&mut { b }), &split, v, context);
            let p = |model: &mut Hashing, i: usize| {
                let weights: Vec<f64> =
                    model.logits_after(&ids[i / context * context..=i]).iter().map(|&x| f64::from(x).exp()).collect();
                let total: f64 = weights.iter().sum();
                weights.iter().map(|w| w / total).collect::<Vec<f64>>()
            };
            let n = ids.len() - 1;
            let mut rows = Vec::new();
            for i in 0..n {
                let (p, q) = (p(&mut a, i), p(&mut b, i));
                let sum = |f: &dyn Fn(f64, f64) -> f64| p.iter().zip(&q).map(|(&p, &q)| f(p, q)).sum::<f64>();
                let top = |p: &[f64]| (0..v).rev().max_by(|&i, &j| p[i].total_cmp(&p[j])).unwrap();
                let to_mean = |p: f64, q: f64| 0.5 * p * (2.0 * p / (p + q)).ln();
                let target = ids[i + 1] as usize;
                rows.push([
                    sum(&|p, _| -p * p.ln()), sum(&|_, q| -q * q.ln()), -p[target].ln(), -q[target].ln(),
                    sum(&|p, q| -p * q.ln()), sum(&|p, q| -q * p.ln()), sum(&|p, q| p * (p / q).ln()),
                    sum(&|p, q| q * (q / p).ln()), sum(&|p, q| to_mean(p, q) + to_mean(q, p)),
                    if top(&p) == top(&q) { 1.0 } else { 0.0 },
                ]);
            }
            let close = |mut got: Divergence, rows: &[[f64; 10]]| {
                prop_assert_eq!(got.contexts as usize, rows.len());
                for (k, got) in got.values().into_iter().enumerate() {
                    let expected = rows.iter().map(|row| row[k]).sum::<f64>() / rows.len() as f64;
                    prop_assert!((*got - expected).abs() < 1e-9, "value {k}: {got} {expected}");
                }
                Ok(())
            };
            close(compared.mean, &rows)?;
            prop_assert_eq!(compared.positions.len(), context.min(n));
            for (position, got) in compared.positions.iter().enumerate() {
                let own: Vec<_> = rows.iter().skip(position).step_by(context).copied().collect();
                close(*got, &own)?;
            }
            let Divergence { entropy_a, cross_entropy_ab, kl_ab, .. } = compared.mean;
            prop_assert!((cross_entropy_ab - entropy_a - kl_ab).abs() < 1e-9);
        }

        #[test]
        fn the_two_may_change_places_and_each_is_no_distance_from_itself(ids in prop::collection::vec(0..7u32, 2..40)) {
            let split = Split::whole(ids.into(), None);
            let (mut a, mut b) = (Hashing::new(7, 20, 1), Hashing::new(7, 20, 2));
            let ab = quietly(&mut Source::Model(&mut a), &mut Source::Model(&mut b), &split, 7, 9);
            let ba = quietly(&mut Source::Model(&mut b), &mut Source::Model(&mut a), &split, 7, 9);
            prop_assert_eq!((ab.mean.kl_ab, ab.mean.loss_a), (ba.mean.kl_ba, ba.mean.loss_b));
            prop_assert!((ab.mean.jensen_shannon - ba.mean.jensen_shannon).abs() < 1e-12);
            prop_assert_eq!(ab.calibration.a, ba.calibration.b);
            let aa = quietly(&mut Source::Model(&mut { a }), &mut Source::Model(&mut a), &split, 7, 9);
            let Divergence { kl_ab, kl_ba, jensen_shannon, top_agreement, .. } = aa.mean;
            prop_assert_eq!([kl_ab, kl_ba, jensen_shannon, top_agreement], [0.0, 0.0, 0.0, 1.0]);
        }
    }

    #[test]
    fn the_truth_has_the_loss_of_the_floor_and_is_no_distance_from_itself() {
        let corpus = StoryCorpus::synth(crate::stories::Grammar::builtin(), 20_000, 4);
        let text = || [Ok::<_, TrainError>(corpus.text.as_str())];
        for tokenizer in [Tokenizer::train_char(text()).unwrap(), Tokenizer::train_bpe(text(), 400).unwrap()] {
            let ids = tokenizer.encode(&format!("\n{}", corpus.text)).unwrap();
            let truth = || Source::Truth(Box::new(StoryTruth::new(&tokenizer, ids.clone()).unwrap()));
            let (v, split) = (tokenizer.vocab_size(), Split::whole(ids.clone().into(), None));
            let Comparison { mean, calibration, .. } = quietly(&mut truth(), &mut truth(), &split, v, 50);
            assert_eq!((mean.kl_ab, mean.jensen_shannon, mean.top_agreement), (0.0, 0.0, 1.0));
            assert!(compare(&mut truth(), &mut truth(), &split, v, 0, None, &mut |_, _| Ok(())).is_err());
            let loss = mean.loss_a * mean.contexts as f64;
            assert!((loss - corpus.surprisal()).abs() < 1e-6, "{loss} {}", corpus.surprisal());
            assert_eq!(mean.contexts as usize, ids.len() - 1);
            // What the truth says happens as often as it says, and costs what it expects, but for chance.
            assert!(calibration.a.error < 0.02 && calibration.a.top_error < 0.02, "{calibration:?}");
            assert!((mean.entropy_a - mean.loss_a).abs() < 0.02 * mean.loss_a, "{mean:?}");
        }
    }

    #[test]
    fn some_windows_are_spread_over_the_text() {
        let ids: Vec<u32> = (0..101).map(|i| i % 7).collect();
        let split = Split::whole(ids.into(), None);
        let (mut a, mut b) = (Hashing::new(7, 20, 1), Hashing::new(7, 20, 2));
        let mut contexts = |windows| {
            let (mut a, mut b) = (Source::Model(&mut a), Source::Model(&mut b));
            compare(&mut a, &mut b, &split, 7, 10, windows, &mut |_, _| Ok(())).unwrap().mean.contexts
        };
        assert_eq!([None, Some(3), Some(0), Some(99)].map(&mut contexts), [100, 30, 10, 100]);
    }

    #[test]
    fn what_cannot_be_compared_is_refused() {
        let split = |n| Split::whole(vec![0; n].into(), None);
        let (mut a, mut b) = (Hashing::new(7, 20, 1), Hashing::new(8, 20, 2));
        let mut refused = |n: usize, v, context| {
            let (mut a, mut b) = (Source::Model(&mut a), Source::Model(&mut b));
            compare(&mut a, &mut b, &split(n), v, context, None, &mut |_, _| Ok(())).unwrap_err().to_string()
        };
        assert!(refused(30, 7, 5).contains("one model has 7 tokens and the other 8"));
        assert!(refused(30, 7, 21).contains("from 1 to 20"));
        assert!(refused(1, 7, 5).contains("the compared split has 1 tokens"));
        let last = Split::whole(vec![0, 1, 7].into(), None);
        let (mut a, mut b) = (Hashing::new(7, 20, 1), Hashing::new(7, 20, 2));
        let (mut a, mut b) = (Source::Model(&mut a), Source::Model(&mut b));
        let error = compare(&mut a, &mut b, &last, 7, 5, None, &mut |_, _| Ok(())).unwrap_err();
        assert!(error.to_string().contains("token 7 is outside"), "{error}");
    }
}
