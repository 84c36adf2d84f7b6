//! The runs of a combination of values, over its seeds.

use serde::Serialize;

use super::SweepResult;
use crate::statistics::{mean, standard_deviation};

/// What the seeds of a combination of values came to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// The values of the settings that vary, in their order.
    pub values: Vec<(String, String)>,
    /// How many seeds have ended.
    pub seeds: usize,
    /// How many of them diverged.
    pub diverged: usize,
    /// The number of parameters.
    pub parameters: usize,
    /// The mean validation loss of those that did not diverge, in nats a token, under the best weights.
    pub val_loss: Option<f64>,
    /// Its standard deviation over seeds; none of one seed.
    pub val_loss_std: Option<f64>,
    /// The mean training loss at the end, in nats a token.
    pub train_loss: Option<f64>,
    /// The mean of the bits per byte of the validation text.
    pub bits_per_byte: Option<f64>,
    /// The mean seconds of training.
    pub seconds: f64,
}

/// A summary for each combination, in the order of the results.
pub fn summaries(results: &[SweepResult]) -> Vec<Summary> {
    let mut combinations: Vec<Vec<&SweepResult>> = Vec::new();
    for result in results {
        match combinations.iter_mut().find(|of| of[0].values == result.values) {
            Some(of) => of.push(result),
            None => combinations.push(vec![result]),
        }
    }
    combinations.iter().map(|of| summary(of)).collect()
}

fn summary(of: &[&SweepResult]) -> Summary {
    let reports = || of.iter().filter_map(|result| result.report);
    let losses: Vec<f64> = reports().map(|report| report.loss).collect();
    let ended = |result: &&&SweepResult| result.diverged.is_none();
    Summary {
        values: of[0].values.clone(),
        seeds: of.len(),
        diverged: of.iter().filter(|result| result.diverged.is_some()).count(),
        parameters: of[0].parameters,
        val_loss: mean(&losses),
        val_loss_std: standard_deviation(&losses),
        train_loss: mean(&of.iter().filter(ended).filter_map(|result| result.train_loss).collect::<Vec<_>>()),
        bits_per_byte: mean(&reports().map(|report| report.bits_per_byte).collect::<Vec<_>>()),
        seconds: of.iter().map(|result| result.seconds).sum::<f64>() / of.len() as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{RunConfig, evaluate::Report};

    fn result(lr: &str, seed: u64, loss: Option<f64>) -> SweepResult {
        let report = |loss: f64| Report {
            loss,
            perplexity: loss.exp(),
            bits_per_token: loss,
            bits_per_byte: loss / 2.0,
            bits_per_char: loss,
            tokens: 10,
            floor: None,
            gap: None,
            gap_bits_per_byte: None,
        };
        SweepResult {
            format: 1,
            run: format!("lr={lr},seed={seed}"),
            values: vec![("train.lr".into(), lr.into())],
            seed,
            parameters: 7,
            step: 3,
            seconds: seed as f64,
            train_loss: loss.map(|loss| loss - 0.5),
            report: loss.map(report),
            diverged: loss.is_none().then(|| "the loss is NaN".into()),
            config: RunConfig::default(),
        }
    }

    #[test]
    fn seeds_of_a_combination_have_a_mean_and_a_spread_and_those_that_diverged_are_counted() {
        let results =
            [result("1", 1, Some(2.0)), result("1", 2, Some(4.0)), result("9", 1, None), result("9", 2, Some(3.0))];
        let [low, high] = &summaries(&results)[..] else { panic!("two learning rates") };
        assert_eq!((low.seeds, low.diverged, low.val_loss, low.train_loss), (2, 0, Some(3.0), Some(2.5)));
        assert_eq!((low.val_loss_std, low.bits_per_byte, low.seconds), (Some(2f64.sqrt()), Some(1.5), 1.5));
        assert_eq!((high.seeds, high.diverged, high.val_loss, high.val_loss_std), (2, 1, Some(3.0), None));
    }

    #[test]
    fn where_all_diverged_there_is_no_loss() {
        let only = &summaries(&[result("9", 1, None)])[0];
        assert_eq!((only.val_loss, only.train_loss, only.diverged), (None, None, 1));
    }
}
