//! Whether what a model predicts happens as often as it says (Guo et al., 2017, "On Calibration of Modern Neural Networks").

use serde::Serialize;

use crate::{
    Result,
    compare::{Source, groups, most_probable},
    data::Split,
    sliding::Sliding,
};

/// Bins of equal width for probabilities from 0 to 1.
const BINS: usize = 20;

/// Predictions of a similar probability.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct CalibrationBin {
    /// The least probability; each bin is a twentieth wide.
    pub from: f64,
    /// How many predictions.
    pub count: u64,
    /// Their mean probability.
    pub predicted: f64,
    /// The share of them that happened.
    pub observed: f64,
}

/// A calibration curve, and how far it is off.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Calibration {
    /// How many contexts.
    pub contexts: u64,
    /// Every token of the vocabulary in every context is a prediction. Bins without any are left out.
    pub bins: Vec<CalibrationBin>,
    /// The mean of `|observed - predicted|` over the predictions, times the number of tokens, so that it does not depend on how
    /// many of them are hopeless: the probability a context that is wrong by this curve.
    pub error: f64,
    /// The expected calibration error of Guo et al.: the mean of `|observed - predicted|` over the most probable tokens of all
    /// contexts, by bins of these alone.
    pub top_error: f64,
}

/// A bin of fewer predictions is left out of [`Calibration::curve`]: what happened in it is chance.
const FEWEST_OF_A_POINT: u64 = 20;

impl Calibration {
    /// The curve as points `(predicted, observed)`, of bins of at least 20 predictions.
    pub fn curve(&self) -> Vec<(f64, f64)> {
        let enough = self.bins.iter().filter(|bin| bin.count >= FEWEST_OF_A_POINT);
        enough.map(|bin| (bin.predicted, bin.observed)).collect()
    }
}

/// The calibration of what gives distributions over `vocab_size` tokens, in non-overlapping windows of `context` tokens of a
/// text: in all, or in `windows` of them that are spread evenly over it. `on_progress(done, all)` is told how many windows are
/// done, and may end the work by an error.
///
/// # Errors
/// When the text has no token to predict, a model cannot take the windows or has another number of tokens, the truth is not
/// known, logits hold a NaN, or `on_progress` fails.
pub fn calibrate(
    source: &mut Source<'_>,
    split: &Split,
    vocab_size: usize,
    context: usize,
    windows: Option<usize>,
    on_progress: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<Calibration> {
    split.check("calibrated", 2)?;
    source.check(context, vocab_size)?;
    let chosen = Sliding { context, stride: context }.spread_windows(split.len(), windows.unwrap_or(usize::MAX));
    let (mut counts, mut done) = (Counts::default(), 0);
    for group in groups(&chosen, vocab_size) {
        let batch = split.batch(group[0].cols, group.iter().map(|window| window.start))?;
        let distributions = source.distributions(group, &batch.ids, vocab_size)?;
        distributions.iter().zip(&batch.targets).for_each(|(p, &target)| counts.add(p, target));
        done += group.len();
        on_progress(done, chosen.len())?;
    }
    Ok(counts.finish())
}

/// The predictions so far.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    contexts: u64,
    all: [Bin; BINS],
    top: [Bin; BINS],
}

#[derive(Debug, Clone, Copy, Default)]
struct Bin {
    count: u64,
    sum: f64,
    happened: u64,
}

impl Bin {
    fn add(&mut self, probability: f64, happened: bool) {
        self.count += 1;
        self.sum += probability;
        self.happened += u64::from(happened);
    }

    /// `count * |observed - predicted|`.
    fn off(&self) -> f64 {
        (self.happened as f64 - self.sum).abs()
    }
}

fn bin(probability: f64) -> usize {
    ((probability * BINS as f64) as usize).min(BINS - 1)
}

impl Counts {
    /// Adds the predictions `p (V)` of a context, of which `target` happened.
    pub(crate) fn add(&mut self, p: &[f64], target: u32) {
        self.contexts += 1;
        for (id, &probability) in p.iter().enumerate() {
            self.all[bin(probability)].add(probability, id == target as usize);
        }
        let top = most_probable(p);
        self.top[bin(p[top])].add(p[top], top == target as usize);
    }

    /// The curve.
    pub(crate) fn finish(self) -> Calibration {
        let error = |bins: &[Bin]| bins.iter().map(Bin::off).sum::<f64>() / self.contexts.max(1) as f64;
        let used = self.all.iter().enumerate().filter(|(_, bin)| bin.count > 0);
        let bins = used.map(|(i, &Bin { count, sum, happened })| CalibrationBin {
            from: i as f64 / BINS as f64,
            count,
            predicted: sum / count as f64,
            observed: happened as f64 / count as f64,
        });
        Calibration {
            contexts: self.contexts,
            bins: bins.collect(),
            error: error(&self.all),
            top_error: error(&self.top),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{compare::compare, test_models::Hashing};

    #[test]
    fn a_curve_is_of_bins_with_enough_predictions() {
        let bin = |count, predicted| CalibrationBin { from: 0.0, count, predicted, observed: 0.5 };
        let bins = vec![bin(1000, 0.02), bin(19, 0.07), bin(20, 0.12)];
        let curve = Calibration { contexts: 10, bins, error: 0.0, top_error: 0.0 }.curve();
        assert_eq!(curve, [(0.02, 0.5), (0.12, 0.5)]);
    }

    #[test]
    fn a_model_alone_is_calibrated_as_in_a_comparison() {
        let split = Split::whole((0..90u32).map(|i| i * i % 7).collect::<Vec<_>>().into(), None);
        for windows in [None, Some(4)] {
            let (mut a, mut b) = (Hashing::new(7, 20, 1), Hashing::new(7, 20, 1));
            let (mut a, mut b) = (Source::Model(&mut a), Source::Model(&mut b));
            let alone = calibrate(&mut a, &split, 7, 9, windows, &mut |_, _| Ok(())).unwrap();
            assert_eq!(
                alone,
                compare(&mut a, &mut b, &split, 7, 9, windows, &mut |_, _| Ok(())).unwrap().calibration.b
            );
            assert_eq!(alone.contexts, if windows.is_some() { 36 } else { 89 });
        }
    }

    #[test]
    fn a_curve_has_the_mean_probability_and_the_share_that_happened() {
        let mut counts = Counts::default();
        // Four contexts with 0.75 for token 0, which comes three times; then one that is sure and wrong.
        [0, 0, 0, 1].iter().for_each(|&target| counts.add(&[0.75, 0.25, 0.0], target));
        counts.add(&[0.0, 0.0, 1.0], 1);
        let Calibration { contexts, bins, error, top_error } = counts.finish();
        assert_eq!(contexts, 5);
        let bin = |from, count, predicted, observed| CalibrationBin { from, count, predicted, observed };
        let expected =
            [bin(0.0, 6, 0.0, 1.0 / 6.0), bin(0.25, 4, 0.25, 0.25), bin(0.75, 4, 0.75, 0.75), bin(0.95, 1, 1.0, 0.0)];
        assert_eq!(bins, expected);
        // Of five contexts, a token of probability 0 came, and one of probability 1 did not.
        assert!((error - 2.0 / 5.0).abs() < 1e-12 && (top_error - 1.0 / 5.0).abs() < 1e-12, "{error} {top_error}");
    }
}
