//! Penalties, biases and bans, the only rules that change logits. The oracle and both fast paths share this code.

use crate::repetition::history_biases;
use crate::{SamplingError, SamplingParams};

/// All biases of a row with this history, in the order in which they are added: those of the caller, DRY's penalties and
/// the bans of n-grams.
pub(crate) fn biases_of(params: &SamplingParams, history: &[u32]) -> impl Iterator<Item = (u32, f32)> {
    params.logit_bias.iter().copied().chain(history_biases(params, history))
}

/// Applies the penalties, biases and bans of `params` to one row, in place.
///
/// A penalised logit is computed in f64 and rounded to f32 once, so that every path continues from the same row. A
/// token that occurs n times in the history is visited once. `sorted_history` is scratch, kept by the caller to save
/// allocations.
///
/// # Errors
/// [`SamplingError::UnknownToken`], as of row 0, if a token of the history or of the bias is not below the row's
/// length.
pub(crate) fn apply_penalties(
    logits: &mut [f32],
    params: &SamplingParams,
    history: &[u32],
    sorted_history: &mut Vec<u32>,
) -> Result<(), SamplingError> {
    penalise(logits, params, history, sorted_history)?;
    add_biases(logits, biases_of(params, history))
}

/// The penalties of [`apply_penalties`] alone.
pub(crate) fn penalise(
    logits: &mut [f32],
    params: &SamplingParams,
    history: &[u32],
    sorted_history: &mut Vec<u32>,
) -> Result<(), SamplingError> {
    let vocab = logits.len();
    let unknown = |token, place| SamplingError::UnknownToken { row: 0, token, place, vocab };
    sorted_history.clear();
    sorted_history.extend_from_slice(history);
    sorted_history.sort_unstable();
    for occurrences in sorted_history.chunk_by(|a, b| a == b) {
        let token = occurrences[0];
        let logit = logits.get_mut(token as usize).ok_or_else(|| unknown(token, "history"))?;
        // NaN and infinities stay for the checks that follow: `inf * 0` would hide one.
        if logit.is_finite() {
            let x = f64::from(*logit);
            let repeated = if x > 0.0 { x / params.repetition_penalty } else { x * params.repetition_penalty };
            let count = occurrences.len() as f64;
            let penalised = repeated - params.frequency_penalty * count - params.presence_penalty;
            *logit = penalised as f32;
        }
    }
    Ok(())
}

/// Adds biases to the logits of a row. [`penalise`] knows all tokens of the history, so one that is unknown here is the
/// caller's.
pub(crate) fn add_biases(logits: &mut [f32], biases: impl Iterator<Item = (u32, f32)>) -> Result<(), SamplingError> {
    let vocab = logits.len();
    for (token, bias) in biases {
        let logit = logits.get_mut(token as usize).ok_or(SamplingError::UnknownToken {
            row: 0,
            token,
            place: "logit_bias",
            vocab,
        })?;
        *logit += bias;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn penalised(logits: &[f32], params: &SamplingParams, history: &[u32]) -> Vec<f32> {
        let mut row = logits.to_vec();
        apply_penalties(&mut row, params, history, &mut Vec::new()).unwrap();
        row
    }

    #[test]
    fn repetition_divides_positive_and_multiplies_negative_logits_once() {
        let params = SamplingParams { repetition_penalty: 2.0, ..Default::default() };
        let row = penalised(&[3.0, -3.0, 1.0, 0.0], &params, &[0, 1, 0, 3]);
        assert_eq!(row, [1.5, -6.0, 1.0, 0.0]);
    }

    #[test]
    fn frequency_counts_occurrences_and_presence_does_not() {
        let params = SamplingParams { frequency_penalty: 0.5, presence_penalty: 0.25, ..Default::default() };
        assert_eq!(penalised(&[1.0, 1.0, 1.0], &params, &[2, 2, 0]), [0.25, 1.0, -0.25]);
    }

    #[test]
    fn biases_add_up_and_minus_infinity_bans() {
        let params =
            SamplingParams { logit_bias: vec![(1, 0.5), (1, 0.25), (2, f32::NEG_INFINITY)], ..Default::default() };
        assert_eq!(penalised(&[0.0, 1.0, 9.0], &params, &[]), [0.0, 1.75, f32::NEG_INFINITY]);
    }

    #[test]
    fn bans_and_penalties_of_sequences_follow_the_biases() {
        let dry = crate::Dry { multiplier: 0.5, allowed_length: 1, ..Default::default() };
        let params = SamplingParams { dry, logit_bias: vec![(1, 2.0)], ..Default::default() };
        assert_eq!(penalised(&[0.0; 3], &params, &[0, 1, 0]), [0.0, 1.5, 0.0]);
        let params = SamplingParams { no_repeat_ngram_size: 2, ..params };
        assert_eq!(penalised(&[0.0; 3], &params, &[0, 1, 0]), [0.0, f32::NEG_INFINITY, 0.0]);
    }

    #[test]
    fn minus_infinity_stays_and_nan_is_not_hidden() {
        let params = SamplingParams { repetition_penalty: 2.0, presence_penalty: -1.0, ..Default::default() };
        let row = penalised(&[f32::NEG_INFINITY, f32::NAN, 0.0], &params, &[0, 1]);
        assert_eq!(row[0], f32::NEG_INFINITY);
        assert!(row[1].is_nan());
    }

    #[test]
    fn a_token_outside_the_vocabulary_is_named() {
        let error = apply_penalties(&mut [0.0], &SamplingParams::default(), &[4], &mut Vec::new()).unwrap_err();
        assert_eq!(error.to_string(), "row 0: token 4 of the history is not below the vocabulary size 1");
    }
}
