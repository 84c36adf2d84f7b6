//! Activations rounded to 8 bits, as the products of quantized weights read them.

use rayon::prelude::*;
use tinygpt_sampler::simd::{Kernel, LANES, Simd, SimdLevel};

use super::super::super::rows::Rows;

/// The inner indices whose activations, and in int4 weights, share a scale.
pub(super) const GROUP: usize = 32;
/// The products of bytes that one instruction adds up.
pub(super) const QUAD: usize = 4;
/// The quads of a group.
pub(super) const QUADS: usize = GROUP / QUAD;

/// The largest absolute value of a rounded activation.
const MAX_INTEGER: f32 = 127.0;
/// A group whose largest absolute value is less counts as zeros: the inverse of its scale might not be finite.
const MIN_LARGEST: f32 = f32::MIN_POSITIVE * (1u64 << 40) as f32;
/// The numbers from which on the rows of a prompt are rounded by all threads.
const MIN_PARALLEL_LEN: usize = 1 << 17;

/// Rounds to the nearest integer, ties to even, of at most 2^21; its lowest 8 bits. Any number where x is larger, or NaN.
///
/// The sum with 1.5 * 2^23 has the integer in its lowest bits.
#[inline(always)]
pub(super) fn nearest_i8(x: f32) -> i8 {
    (x + ROUND).to_bits() as i8
}

const ROUND: f32 = 12_582_912.0;

/// 32 activations of a row, the last of which are zeros where the row ends before. Their values are the integers times `scale`.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ActivationGroup {
    /// The integers, i8 from -127 to 127, the first in the lowest byte.
    pub(super) quads: [i32; QUADS],
    /// Where the sums of products begin: less the zero point of the weights times the sum of the integers.
    pub(super) start: i32,
    /// The largest absolute value over 127; NaN where a value is not finite, so that every output of the row is NaN.
    pub(super) scale: f32,
}

/// The rows that were rounded last.
#[derive(Debug, Default)]
pub(crate) struct QuantizedRows {
    /// `(rows, in / 32)`, and what earlier rows have left.
    groups: Vec<ActivationGroup>,
    /// The groups of a row.
    row_len: usize,
}

impl QuantizedRows {
    /// Rounds the first `m` rows of `x (m, in)`, a large matrix on all threads of the rayon pool, for weights of this zero point.
    pub(super) fn quantize(&mut self, level: SimdLevel, zero_point: i32, m: usize, x: &Rows) {
        self.row_len = x.cols.div_ceil(GROUP);
        let len = m * self.row_len;
        if self.groups.len() < len {
            self.groups.resize(len, ActivationGroup::default());
        }
        let rows = &mut self.groups[..len];
        let round = |(i, groups): (usize, &mut [ActivationGroup])| {
            level.run_int8(QuantizeRow { x: x.row(i), zero_point, groups });
        };
        if m * x.cols >= MIN_PARALLEL_LEN {
            rows.par_chunks_exact_mut(self.row_len).enumerate().for_each(round);
        } else {
            rows.chunks_exact_mut(self.row_len).enumerate().for_each(round);
        }
    }

    /// The groups of a row, `(in / 32)`.
    #[inline(always)]
    pub(super) fn row(&self, i: usize) -> &[ActivationGroup] {
        &self.groups[i * self.row_len..][..self.row_len]
    }
}

/// Rounds one row.
struct QuantizeRow<'a> {
    x: &'a [f32],
    zero_point: i32,
    groups: &'a mut [ActivationGroup],
}

impl Kernel for QuantizeRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (whole, rest) = self.x.as_chunks::<GROUP>();
        for (group, x) in self.groups.iter_mut().zip(whole) {
            *group = quantize(s, self.zero_point, x);
        }
        if let Some(group) = self.groups.get_mut(whole.len()) {
            let mut x = [0.0; GROUP];
            x[..rest.len()].copy_from_slice(rest);
            *group = quantize(s, self.zero_point, &x);
        }
    }
}

/// Rounds one group.
#[inline(always)]
fn quantize<S: Simd>(s: S, zero_point: i32, x: &[f32; GROUP]) -> ActivationGroup {
    let (halves, _) = x.as_chunks::<LANES>();
    let (a, b) = (s.load(&halves[0]), s.load(&halves[1]));
    // The difference of a number from itself is NaN where it is not finite.
    if s.unordered(s.sub(a, a), s.sub(b, b)) != 0 {
        return ActivationGroup { scale: f32::NAN, ..ActivationGroup::default() };
    }
    let zero = s.splat(0.0);
    let abs = |v| s.max(v, s.sub(zero, v));
    let largest = s.largest(s.max(abs(a), abs(b)));
    if largest < MIN_LARGEST {
        return ActivationGroup::default();
    }
    let (inverse, round) = (s.splat(MAX_INTEGER / largest), s.splat(ROUND));
    // As in `nearest_i8`, the integers are in the lowest bits.
    let (a, b) = (s.mul_add(a, inverse, round), s.mul_add(b, inverse, round));
    let mut integers = [[0; LANES]; GROUP / LANES];
    s.store_bytes(a, &mut integers[0]);
    s.store_bytes(b, &mut integers[1]);
    let (quads, _) = integers.as_flattened().as_chunks::<QUAD>();
    // Sums of so few integers are exact in f32, and one more addition gives the bits of an integer.
    let sum = (s.sum(s.add(s.sub(a, round), s.sub(b, round))) + ROUND).to_bits().cast_signed()
        - ROUND.to_bits().cast_signed();
    ActivationGroup {
        quads: std::array::from_fn(|i| i32::from_le_bytes(quads[i])),
        start: -zero_point * sum,
        scale: largest / MAX_INTEGER,
    }
}
