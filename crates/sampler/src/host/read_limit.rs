//! One read of the rows: the lower limit of the time of any sampler, for benchmarks to compare with.

use super::row_kernels::RowMax;
use crate::simd::SimdLevel;
use rayon::prelude::*;

/// The fewest logits that are read by more than one thread.
const MIN_PARALLEL_LOGITS: usize = 1 << 16;

/// The largest logit of all rows, by a SIMD maximum that does not check for NaN. It is divided among threads wherever
/// [`Sampler::sample_batch`](crate::Sampler::sample_batch) with rules in f32 is, so none of these can be faster than this one read.
/// Rules in f64 are divided from fewer logits on, and take many times as long for each.
#[must_use]
pub fn one_read(rows: &[&[f32]]) -> f32 {
    let level = SimdLevel::detect();
    let largest = |rows: &[&[f32]]| rows.iter().map(|row| level.run(RowMax { row })).fold(f32::NEG_INFINITY, f32::max);
    let logits: usize = rows.iter().map(|row| row.len()).sum();
    if logits < MIN_PARALLEL_LOGITS {
        return largest(rows);
    }
    let per_thread = rows.len().div_ceil(rayon::current_num_threads());
    rows.par_chunks(per_thread).map(largest).reduce(|| f32::NEG_INFINITY, f32::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_logit_is_found_wherever_it_is() {
        for length in [1usize, 15, 16, 255, 256, 1000, 70_000] {
            for place in [0, length / 2, length - 1] {
                let mut row = vec![-5.0; length];
                row[place] = 2.0;
                assert_eq!(one_read(&[&row]), 2.0);
            }
        }
        assert_eq!(one_read(&[]), f32::NEG_INFINITY);
    }
}
