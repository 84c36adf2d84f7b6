//! The logits of the benchmark.

use rayon::prelude::*;
use tinygpt_sampler::{box_muller, philox4x32_10};

/// The number of distinct rows, which larger batches repeat: the same number of bytes to read, in less time to generate.
const DIFFERENT: usize = 64;
/// The standard deviation of the logits.
const STD: f64 = 3.0;

/// `rows` rows of normal logits, the same in every run.
pub fn normal(rows: usize, vocab: usize) -> Vec<f32> {
    let mut values = vec![0.0; rows * vocab];
    let (different, again) = values.split_at_mut(rows.min(DIFFERENT) * vocab);
    different.par_chunks_mut(vocab).enumerate().for_each(|(row, values)| {
        for (n, pair) in values.chunks_mut(2).enumerate() {
            let normals = box_muller(philox4x32_10([n as u32, row as u32, 0, 0], [0, 0]), STD);
            pair.iter_mut().zip(normals).for_each(|(logit, normal)| *logit = normal as f32);
        }
    });
    for chunk in again.chunks_mut(different.len().max(1)) {
        chunk.copy_from_slice(&different[..chunk.len()]);
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_logits_are_normal_times_three_and_their_rows_differ() {
        let values = normal(65, 1001);
        let n = values.len() as f64;
        let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
        let variance = values.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() / n;
        assert!(mean.abs() < 0.1 && (variance - 9.0).abs() < 0.3, "{mean} {variance}");
        assert_ne!(values[..1001], values[1001..2002]);
        assert_eq!(values[..1001], values[64 * 1001..]);
    }
}
