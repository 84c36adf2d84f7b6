//! Whether the rows of a batch are shared among threads: only if one thread would take long.

use super::selection::is_in_f64;
use super::{Row, Rules};

/// The shortest time on one thread, in nanoseconds, of a batch that is shared. Sharing costs a few microseconds where a core is
/// idle. Where none is, whoever shares waits until the other thread has its turn, which may be milliseconds.
const MIN_SHARED_NS: f64 = 50_000.0;

/// Nanoseconds that a thread takes for a logit, by what it does to all of them: measured on Zen 5 with AVX-512, on rows of
/// 50257 logits. They need not be exact, since they only say where sharing begins.
const GREEDY: f64 = 0.03;
const TOP_K: f64 = 0.05;
const MIN_P: f64 = 0.05;
const ALL_TOKENS: f64 = 0.1;
const TOP_P: f64 = 0.2;
/// From two with top-n-sigma to sixty with typical-p, which sorts.
const IN_F64: f64 = 5.0;
/// A copy of the row.
const PENALISED: f64 = 0.1;

/// The number of threads that draw these rows, at most as many as `most` says. It is asked for a batch that is worth it alone: a
/// pool that nobody has used yet would start its threads.
pub(super) fn threads(rules: &Rules, rows: &[Row<'_>], most: impl FnOnce() -> usize) -> usize {
    let ns: f64 = rows.iter().map(|row| row.logits.len() as f64 * ns_a_logit(rules, row)).sum();
    if ns < MIN_SHARED_NS { 1 } else { most().min(rows.len()).max(1) }
}

/// About how long a logit of this row takes.
fn ns_a_logit(rules: &Rules, row: &Row<'_>) -> f64 {
    let (params, temperature) = (&rules.params, rules.temperature(row.position));
    let selection = if temperature == 0.0 || params.top_k == 1 {
        GREEDY
    } else if is_in_f64(params, temperature) {
        IN_F64
    } else if params.top_k > 0 {
        TOP_K
    } else if params.top_p < 1.0 {
        TOP_P
    } else if params.min_p > 0.0 {
        MIN_P
    } else {
        ALL_TOKENS
    };
    selection + if params.changes_logits(row.history) { PENALISED } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SamplingParams;

    /// The threads, of eight, that draw so many rows of this length.
    fn threads_of(params: SamplingParams, rows: usize, vocab: usize) -> usize {
        let logits = vec![0.0; vocab];
        let row = Row { logits: &logits, history: &[], sequence: 0, position: 0 };
        threads(&Rules::new(params), &vec![row; rows], || 8)
    }

    #[test]
    fn a_batch_is_shared_by_what_its_rules_cost_and_never_for_a_few_microseconds() {
        let default = SamplingParams::default;
        let greedy = || SamplingParams { temperature: 0.0, ..default() };
        let top_p = || SamplingParams { top_p: 0.9, ..default() };
        let typical = || SamplingParams { typical_p: 0.9, ..default() };
        for (params, rows, vocab, expected) in [
            (greedy(), 16, 50_257, 1),
            (greedy(), 64, 50_257, 8),
            (top_p(), 4, 50_257, 1),
            (top_p(), 6, 50_257, 6),
            (top_p(), 16, 50_257, 8),
            (SamplingParams { top_k: 50, ..default() }, 16, 50_257, 1),
            (default(), 16, 50_257, 8),
            // The rules in f64 take long for few logits.
            (typical(), 16, 65, 1),
            (typical(), 16, 1000, 8),
            // One row has one thread.
            (typical(), 1, 50_257, 1),
            (greedy(), 0, 50_257, 1),
        ] {
            assert_eq!(threads_of(params.clone(), rows, vocab), expected, "{rows} rows of {vocab}: {params:?}");
        }
    }

    #[test]
    fn penalties_count_where_there_is_a_history() {
        let params = SamplingParams { temperature: 0.0, repetition_penalty: 1.2, ..SamplingParams::default() };
        let (rules, logits) = (Rules::new(params), vec![0.0; 50_257]);
        let row = |history| Row { logits: &logits, history, sequence: 0, position: 0 };
        assert_eq!(threads(&rules, &[row(&[]); 16], || 8), 1);
        assert_eq!(threads(&rules, &[row(&[3, 4]); 16], || 8), 8);
    }
}
