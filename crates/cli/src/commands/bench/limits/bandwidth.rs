//! The rate at which memory can be read from one end to the other.

use std::hint::black_box;

use rayon::prelude::*;
use tinygpt_sampler::simd::{Kernel, LANES, Simd, SimdLevel};

use super::rate::{Threads, rate};

/// The floats that are read: 256 MiB, much more than the caches hold.
const FLOATS: usize = 1 << 26;
/// The floats that are read between two looks at the clock: 256 KiB.
const PIECE: usize = 1 << 16;

/// Memory to read.
pub struct Memory(Vec<f32>);

impl Memory {
    /// Allocates the memory and writes all of it, so that every page is there.
    pub fn new() -> Self {
        let mut floats = vec![0.0; FLOATS];
        floats.par_chunks_mut(PIECE).for_each(|piece| piece.fill(1.0));
        Self(floats)
    }

    /// Measures the rate in bytes a second. Each thread reads a part of its own, again and again.
    pub fn read_rate(&self, threads: Threads) -> f64 {
        let level = SimdLevel::detect();
        let pieces_of_thread = FLOATS / PIECE / threads.count();
        rate(threads, |thread| {
            let part = &self.0[thread * pieces_of_thread * PIECE..][..pieces_of_thread * PIECE];
            let mut pieces = part.chunks_exact(PIECE).cycle();
            move || {
                let piece = pieces.next().unwrap_or_default();
                black_box(level.run(Sum { piece }));
                size_of_val(piece) as f64
            }
        })
    }
}

/// The sum of a piece: every float is read, and little is done with it.
struct Sum<'a> {
    piece: &'a [f32],
}

impl Kernel for Sum<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        /// Sums side by side, so that none waits for another.
        const SUMS: usize = 4;
        let mut sums = [s.splat(0.0); SUMS];
        let (vectors, _) = self.piece.as_chunks::<LANES>();
        for group in vectors.chunks_exact(SUMS) {
            for (sum, vector) in sums.iter_mut().zip(group) {
                *sum = s.add(*sum, s.load(vector));
            }
        }
        sums.into_iter().map(|sum| s.sum(sum)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_float_is_read() {
        let mut piece = vec![0.0; PIECE];
        for at in [0, 1, 63, 64, 1000, PIECE - 1] {
            piece.fill(0.0);
            piece[at] = 1.0;
            assert_eq!(SimdLevel::detect().run(Sum { piece: &piece }), 1.0, "{at}");
        }
    }

    #[test]
    fn the_parts_of_as_many_threads_as_there_may_be_hold_a_piece() {
        const { assert!(FLOATS / PIECE / 256 > 0) };
    }
}
