//! The `k` of add-k smoothing, from held-out tokens.

use std::{collections::HashMap, ops::Range};

use rayon::prelude::*;
use tinygpt_model::ngram::{NgramCounts, NgramModel, Smoothing};

use crate::{Result, data::Split};

/// The tokens of the held-out text that have the same counts behind them: `(c(hw), c(h))`, and how many.
type CountPairs = Vec<((u32, u32), u64)>;

/// For each order of the counts, the `k` with the least loss on the held-out tokens of the split that `counts` are of.
/// `on_read` is told how many tokens of the split are read.
///
/// # Errors
/// When the split cannot be read; and the errors of `on_read`.
pub fn best_k(
    counts: NgramCounts,
    split: &Split,
    held_out: Range<usize>,
    on_read: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Vec<f64>> {
    let vocab_size = counts.vocab_size();
    let pairs = count_pairs(counts, split, held_out, on_read)?;
    Ok(pairs.par_iter().map(|pairs| minimize(|k| negative_log_likelihood(pairs, k, vocab_size))).collect())
}

/// The loss depends on the held-out tokens through these alone. In ascending order, so that sums are the same every time.
fn count_pairs(
    counts: NgramCounts,
    split: &Split,
    held_out: Range<usize>,
    on_read: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Vec<CountPairs>> {
    /// The tokens that are read at a time.
    const PIECE: usize = 1 << 16;
    let mut pairs: Vec<HashMap<(u32, u32), u64>> = vec![HashMap::new(); counts.order()];
    let model = NgramModel::new(counts, Smoothing::AddK { k: 1.0 })?;
    let mut scorer = model.scorer();
    let from = held_out.start.saturating_sub(model.order() - 1);
    let mut piece = vec![0; PIECE];
    for start in (from..held_out.end).step_by(PIECE) {
        let piece = &mut piece[..PIECE.min(held_out.end - start)];
        split.read(start, piece)?;
        for (at, &token) in (start..).zip(&*piece) {
            if at >= held_out.start {
                for (pairs, pair) in pairs.iter_mut().zip(scorer.counts(token)) {
                    *pairs.entry(pair).or_default() += 1;
                }
            }
            scorer.advance(token)?;
        }
        on_read(start + piece.len())?;
    }
    let sorted = |pairs: HashMap<_, _>| {
        let mut pairs: CountPairs = pairs.into_iter().collect();
        pairs.sort_unstable();
        pairs
    };
    Ok(pairs.into_iter().map(sorted).collect())
}

/// The loss of all held-out tokens in nats.
fn negative_log_likelihood(pairs: &CountPairs, k: f64, vocab_size: usize) -> f64 {
    let added = k * vocab_size as f64;
    let surprisal = |&((count, total), n): &((u32, u32), u64)| {
        n as f64 * ((f64::from(total) + added) / (f64::from(count) + k)).ln()
    };
    pairs.iter().map(surprisal).sum()
}

/// The `k` of the least loss: the best of a grid from 1e-6 to 1e3 with two points a decade, then golden-section search on
/// `ln k` between its neighbours, to a thousandth.
fn minimize(loss: impl Fn(f64) -> f64) -> f64 {
    let grid: Vec<f64> = (-12..=6).map(|i| f64::from(i) / 2.0 * std::f64::consts::LN_10).collect();
    let at = |ln_k: f64| loss(ln_k.exp());
    let losses: Vec<f64> = grid.iter().map(|&ln_k| at(ln_k)).collect();
    let best = (0..grid.len()).min_by(|&a, &b| losses[a].total_cmp(&losses[b])).unwrap_or(0);
    let (mut low, mut high) = (grid[best.saturating_sub(1)], grid[(best + 1).min(grid.len() - 1)]);
    // Each step keeps this share of the interval, and one of its two inner points.
    let share = (5_f64.sqrt() - 1.0) / 2.0;
    let (mut a, mut b) = (high - share * (high - low), low + share * (high - low));
    let (mut loss_a, mut loss_b) = (at(a), at(b));
    while high - low > 1e-3 {
        if loss_a <= loss_b {
            (high, b, loss_b) = (b, a, loss_a);
            a = high - share * (high - low);
            loss_a = at(a);
        } else {
            (low, a, loss_a) = (a, b, loss_b);
            b = low + share * (high - low);
            loss_b = at(b);
        }
    }
    (0.5 * (low + high)).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_minimum_of_a_parabola_in_ln_k_is_found_within_a_thousandth_and_at_the_ends_of_the_grid() {
        for k in [1e-6, 3.2e-4, 0.7, 1.0, 42.0, 1e3] {
            let found = minimize(|x| (x.ln() - f64::ln(k)).powi(2));
            assert!((found.ln() - k.ln()).abs() < 1e-3, "{found} instead of {k}");
        }
    }

    #[test]
    fn no_k_nearby_has_a_smaller_loss_on_the_held_out_tokens() {
        let tokens: Vec<u32> = (0..2000_u32).map(|i| i * i % 11 % 5 + i % 2).collect();
        let split = Split::whole(tokens.into(), None);
        let counts = || super::super::count::count(&split, 0..1800, 6, 3, 512, &mut |_| Ok(())).unwrap();
        let pairs = count_pairs(counts(), &split, 1800..2000, &mut |_| Ok(())).unwrap();
        for (pairs, k) in pairs.iter().zip(best_k(counts(), &split, 1800..2000, &mut |_| Ok(())).unwrap()) {
            assert_eq!(pairs.iter().map(|pair| pair.1).sum::<u64>(), 200);
            let loss = |k| negative_log_likelihood(pairs, k, 6);
            for factor in [0.5, 0.9, 1.1, 2.0] {
                assert!(loss(k * factor) > loss(k) || !(1e-6..1e3).contains(&(k * factor)), "k {k}, factor {factor}");
            }
        }
    }
}
