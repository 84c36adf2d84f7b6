//! The loss on held-out text.

use std::f64::consts::LN_2;

use serde::{Deserialize, Deserializer, Serialize};
use tinygpt_model::{GptConfig, Tokenizer};

use crate::{Result, data::Split, engine::Evaluator};

/// The result of an evaluation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Evaluation {
    /// Mean cross-entropy in nats a token.
    pub loss: f64,
    /// The entropy of the very tokens that were predicted, in nats a token, where it is known: no model's loss lies
    /// below it, in expectation.
    pub floor: Option<f64>,
    /// How many tokens were predicted.
    pub tokens: u64,
}

/// How many tokens are evaluated at a time where the batches of training have fewer, since these leave threads idle; but no more
/// than have so many logits, since the memory is checked for the batches of training.
const LEAST_TOKENS: usize = 2048;
const MOST_LOGITS: usize = 1 << 23;

/// Is told how many tokens of how many an evaluation has predicted. An error of it ends the evaluation.
pub type OnTokens<'a> = &'a mut dyn FnMut(u64, u64) -> Result<()>;

/// The whole split, in non-overlapping windows of `block_size`, the last one shorter: every token but the first is
/// predicted exactly once, from the tokens before it in its window.
///
/// # Errors
/// When the split has no token to predict, or the evaluator or `on_tokens` fails.
pub fn whole_split(
    evaluator: &mut dyn Evaluator,
    split: &Split,
    batch_size: usize,
    on_tokens: OnTokens<'_>,
) -> Result<Evaluation> {
    split.check("evaluated", 2)?;
    let &GptConfig { block_size, vocab_size, .. } = evaluator.config();
    let (windows, rest) = ((split.len() - 1) / block_size, (split.len() - 1) % block_size);
    let tokens = (split.len() - 1) as u64;
    let rows = rows(batch_size, block_size, vocab_size);
    let mut total = window_losses(evaluator, split, rows, 0..windows, tokens, on_tokens)?;
    if rest > 0 {
        total += evaluator.eval(&split.batch(rest, std::iter::once(windows * block_size))?)?;
    }
    on_tokens(tokens, tokens)?;
    let floor = split.surprisal(1..split.len()).map(|sum| sum / tokens as f64);
    Ok(Evaluation { loss: total / tokens as f64, floor, tokens })
}

/// How many windows are evaluated at a time.
fn rows(batch_size: usize, block_size: usize, vocab_size: usize) -> usize {
    batch_size.max(LEAST_TOKENS.min(MOST_LOGITS / vocab_size) / block_size)
}

/// An estimate from so many of the whole windows, spread evenly over the split and the same every time, `batch_size` of them at a
/// time; the whole split where it has no more windows than that, or `windows` is 0.
///
/// # Errors
/// As [`whole_split`].
pub fn estimate(
    evaluator: &mut dyn Evaluator,
    split: &Split,
    batch_size: usize,
    windows: usize,
    on_tokens: OnTokens<'_>,
) -> Result<Evaluation> {
    split.check("evaluated", 2)?;
    let block_size = evaluator.config().block_size;
    let Some(chosen) = chosen_windows(split, block_size, windows) else {
        return whole_split(evaluator, split, batch_size, on_tokens);
    };
    let tokens = (chosen.len() * block_size) as u64;
    let total = window_losses(evaluator, split, batch_size, chosen.iter().copied(), tokens, on_tokens)?;
    let predicted = |window: &usize| window * block_size + 1..(window + 1) * block_size + 1;
    let surprisal: Option<f64> = chosen.iter().map(|window| split.surprisal(predicted(window))).sum();
    Ok(Evaluation { loss: total / tokens as f64, floor: surprisal.map(|sum| sum / tokens as f64), tokens })
}

/// The windows of `block_size` tokens that [`estimate`] takes; `None` for the whole split.
pub(crate) fn chosen_windows(split: &Split, block_size: usize, windows: usize) -> Option<Vec<usize>> {
    let all = split.len().saturating_sub(1) / block_size;
    (0 < windows && windows < all).then(|| (0..windows).map(|i| i * all / windows).collect())
}

/// The summed loss in some windows, `rows` of them at a time; `on_tokens` is told before each batch.
fn window_losses(
    evaluator: &mut dyn Evaluator,
    split: &Split,
    rows: usize,
    mut windows: impl Iterator<Item = usize>,
    of_tokens: u64,
    on_tokens: OnTokens<'_>,
) -> Result<f64> {
    let block_size = evaluator.config().block_size;
    let (mut total, mut done) = (0.0, 0);
    loop {
        on_tokens(done, of_tokens)?;
        let starts: Vec<usize> = windows.by_ref().take(rows).map(|window| window * block_size).collect();
        if starts.is_empty() {
            return Ok(total);
        }
        done += (starts.len() * block_size) as u64;
        total += evaluator.eval(&split.batch(block_size, starts.into_iter())?)?;
    }
}

/// A validation loss in the units people compare. A figure may be infinite: a text of no byte has infinitely many bits a byte. JSON
/// has no word for what is no finite number: it is `null` there. What is read of `null` is infinity, also where it was NaN, but no gap,
/// also where it was an infinite one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Mean cross-entropy in nats a token.
    #[serde(deserialize_with = "infinite_where_null")]
    pub loss: f64,
    /// `exp(loss)`.
    #[serde(deserialize_with = "infinite_where_null")]
    pub perplexity: f64,
    /// The loss in bits a token.
    #[serde(deserialize_with = "infinite_where_null")]
    pub bits_per_token: f64,
    /// The loss in bits per byte of UTF-8 text; comparable between tokenizers.
    #[serde(deserialize_with = "infinite_where_null")]
    pub bits_per_byte: f64,
    /// The loss in bits per character; comparable between tokenizers.
    #[serde(deserialize_with = "infinite_where_null")]
    pub bits_per_char: f64,
    /// Tokens predicted.
    pub tokens: u64,
    /// The entropy of the text in nats a token, where it is known.
    pub floor: Option<f64>,
    /// `loss - floor`: the Kullback-Leibler divergence from the truth in nats a token.
    pub gap: Option<f64>,
    /// The gap in bits per byte.
    pub gap_bits_per_byte: Option<f64>,
}

impl Report {
    /// The report of an evaluation of a split. Where it did not predict all of it, bytes and characters are taken to be spread
    /// evenly over the tokens.
    ///
    /// # Errors
    /// When a token of the split is not one of the tokenizer's.
    pub fn new(evaluation: Evaluation, split: &Split, tokenizer: &Tokenizer) -> Result<Self> {
        let Evaluation { loss, floor, tokens } = evaluation;
        let (bytes, chars) = (split.predicted_bytes(tokenizer)?, split.predicted_chars(tokenizer)?);
        let all = split.len().saturating_sub(1);
        let bits_per = |units: u64, nats: f64| nats * all as f64 / LN_2 / units as f64;
        let gap = floor.map(|floor| loss - floor);
        Ok(Self {
            loss,
            perplexity: loss.exp(),
            bits_per_token: loss / LN_2,
            bits_per_byte: bits_per(bytes, loss),
            bits_per_char: bits_per(chars, loss),
            tokens,
            floor,
            gap,
            gap_bits_per_byte: gap.map(|gap| bits_per(bytes, gap)),
        })
    }
}

/// A figure of JSON, where `serde_json` has written `null` for what is no finite number.
fn infinite_where_null<'de, D: Deserializer<'de>>(figure: D) -> std::result::Result<f64, D::Error> {
    Ok(Option::deserialize(figure)?.unwrap_or(f64::INFINITY))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_comes_back_from_json_with_the_figures_that_are_infinite() {
        let finite = Report {
            loss: 2.0,
            perplexity: 7.4,
            bits_per_token: 2.9,
            bits_per_byte: 2.9,
            bits_per_char: 2.9,
            tokens: 9,
            floor: Some(1.0),
            gap: Some(1.0),
            gap_bits_per_byte: Some(1.4),
        };
        let infinite = f64::INFINITY;
        for report in [
            finite,
            Report { perplexity: infinite, ..finite },
            Report { bits_per_byte: infinite, bits_per_char: infinite, floor: None, ..finite },
        ] {
            let json = serde_json::to_string(&report).unwrap();
            assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report, "{json}");
        }
        let json = serde_json::to_value(Report { bits_per_byte: infinite, ..finite }).unwrap();
        assert!(json["bits_per_byte"].is_null(), "{json}");
        let without = json.as_object().unwrap().iter().filter(|(key, _)| *key != "loss");
        let without: serde_json::Value = without.map(|(key, value)| (key.clone(), value.clone())).collect();
        assert!(serde_json::from_value::<Report>(without).is_err(), "a figure that is left out is none");
    }

    #[test]
    fn json_does_not_tell_nan_from_infinity_nor_an_infinite_gap_from_none() {
        let nan = f64::NAN;
        let report = Report {
            loss: nan,
            perplexity: nan,
            bits_per_token: nan,
            bits_per_byte: nan,
            bits_per_char: nan,
            tokens: 9,
            floor: Some(1.0),
            gap: Some(nan),
            gap_bits_per_byte: Some(f64::INFINITY),
        };
        let read: Report = serde_json::from_str(&serde_json::to_string(&report).unwrap()).unwrap();
        assert_eq!((read.loss, read.perplexity, read.bits_per_byte), (f64::INFINITY, f64::INFINITY, f64::INFINITY));
        assert_eq!((read.floor, read.gap, read.gap_bits_per_byte), (Some(1.0), None, None));
    }

    #[test]
    fn small_batches_are_made_larger_where_that_makes_few_logits() {
        assert_eq!(rows(2, 64, 65), 32);
        assert_eq!(rows(40, 64, 65), 40);
        assert_eq!(rows(2, 256, 4096), 8);
        assert_eq!(rows(2, 64, 50_257), 2);
        assert_eq!(rows(1, 64, 50_257), 166 / 64);
    }
}
