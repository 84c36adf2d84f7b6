//! Rounding of f32 to pairs of bf16, for packed weights and for the left operands of products.

use rayon::prelude::*;
use tinygpt_sampler::simd::{Kernel, LANES, Simd, SimdLevel};

use super::{
    matmul::{Element, PANEL, Pair},
    packed::Panels,
    rows::Rows,
    vectors,
};

/// Loads vector `i` of a row; zeros where the row ends before it.
#[inline(always)]
fn get<S: Simd>(s: S, row: &[f32], i: usize) -> S::V {
    if i * LANES < row.len() { vectors::get(s, row, i) } else { s.splat(0.0) }
}

/// Loads vectors `2 i` and `2 i + 1` of a row and rounds them to pairs of neighbours.
#[inline(always)]
fn neighbours<S: Simd>(s: S, row: &[f32], i: usize) -> S::V {
    s.neighbours_bf16(get(s, row, 2 * i), get(s, row, 2 * i + 1))
}

/// Stores sixteen pairs.
#[inline(always)]
fn store<S: Simd>(s: S, pairs: S::V, to: &mut [Pair]) {
    let mut lanes = [0.0; LANES];
    s.store(pairs, &mut lanes);
    for (to, lane) in to[..LANES].iter_mut().zip(lanes) {
        *to = Pair(lane.to_bits());
    }
}

impl Panels<Pair> {
    /// Rounds and packs a row-major matrix `(2 k, n)`, whose last row may be missing.
    pub(crate) fn pack(&mut self, level: SimdLevel, w: &[f32]) {
        let (k, n) = (self.k(), self.n());
        self.data.par_chunks_mut(PANEL * k).enumerate().for_each(|(p, panel)| {
            Pair::run(level, PackRows { w, n, first: p * PANEL, panel });
        });
    }

    /// Rounds and packs the transpose of a row-major matrix `(n, len)`, in pairs along its rows.
    pub(crate) fn pack_transposed(&mut self, level: SimdLevel, w: &[f32], len: usize) {
        let k = self.k();
        self.data.par_chunks_mut(PANEL * k).zip(w.par_chunks(PANEL * len)).for_each(|(panel, rows)| {
            Pair::run(level, PackColumns { rows, len, panel });
        });
    }
}

/// Fills one panel `(k, 32)` of pairs from columns `first..` of a row-major matrix `(2 k, n)`.
struct PackRows<'a> {
    w: &'a [f32],
    n: usize,
    first: usize,
    panel: &'a mut [Pair],
}

impl Kernel for PackRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { w, n, first, panel } = self;
        for (to, rows) in panel.chunks_exact_mut(PANEL).zip(w.chunks(2 * n)) {
            let (low, high) = rows.split_at(n);
            let (low, high) = (&low[first..], high.get(first..).unwrap_or_default());
            for (v, to) in to.chunks_exact_mut(LANES).enumerate() {
                store(s, s.pairs_bf16(get(s, low, v), get(s, high, v)), to);
            }
        }
    }
}

/// Fills one panel `(k, 32)` of pairs whose columns are up to 32 rows of `len` floats.
struct PackColumns<'a> {
    rows: &'a [f32],
    len: usize,
    panel: &'a mut [Pair],
}

impl Kernel for PackColumns<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { rows, len, panel } = self;
        for (half, rows) in rows.chunks(LANES * len).enumerate() {
            for (block, to) in panel.chunks_mut(LANES * PANEL).enumerate() {
                let mut columns = [[Pair::default(); LANES]; LANES];
                for (column, row) in columns.iter_mut().zip(rows.chunks_exact(len)) {
                    store(s, neighbours(s, row, block), column);
                }
                for (l, to) in to.chunks_exact_mut(PANEL).enumerate() {
                    for (to, column) in to[half * LANES..][..LANES].iter_mut().zip(&columns) {
                        *to = column[l];
                    }
                }
            }
        }
    }
}

/// Rounds the first `n` rows of `x (n, cols)` to pairs along the rows, `rows (n, cols / 2)`, and to pairs along the
/// columns, `columns (n / 2, cols)`. An odd last element is paired with zero.
pub(crate) fn quantize(level: SimdLevel, n: usize, x: &Rows, rows: &mut Rows<Pair>, columns: &mut Rows<Pair>) {
    Pair::run(level, Quantize { n, x, rows, columns });
}

struct Quantize<'a> {
    n: usize,
    x: &'a Rows,
    rows: &'a mut Rows<Pair>,
    columns: &'a mut Rows<Pair>,
}

impl Kernel for Quantize<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { n, x, rows, columns } = self;
        for i in (0..n).step_by(2) {
            let (low, high) = (x.row(i), if i + 1 < n { x.row(i + 1) } else { &[] });
            for v in 0..vectors::count(low) {
                // Padded rows are whole cache lines, so the last store may be a whole vector.
                store(s, s.pairs_bf16(get(s, low, v), get(s, high, v)), columns.at_mut(i / 2, v * LANES));
            }
            for v in 0..vectors::count(low).div_ceil(2) {
                store(s, neighbours(s, low, v), rows.at_mut(i, v * LANES));
                if i + 1 < n {
                    store(s, neighbours(s, high, v), rows.at_mut(i + 1, v * LANES));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::matmul::{Accumulate, Left, Right, matmul};
    use crate::cpu::rows::tests::{flat, random};
    use tinygpt_sampler::simd::to_bf16;

    /// The reference: a chain over pairs, the second of each pair first.
    fn chain(start: f32, k: usize, a: impl Fn(usize) -> f32, b: impl Fn(usize) -> f32) -> f32 {
        let rounded = |x: f32| f32::from_bits(u32::from(to_bf16(x)) << 16);
        let product = |l: usize| if l < k { rounded(a(l)) * rounded(b(l)) } else { 0.0 };
        (0..k).step_by(2).fold(start, |sum, l| sum + product(l + 1) + product(l))
    }

    #[test]
    fn every_element_is_one_chain_over_pairs_on_every_level() {
        for (case, &(m, n, k)) in
            [(1, 1, 1), (3, 5, 7), (12, 32, 16), (13, 33, 301), (64, 65, 31), (7, 16, 1040)].iter().enumerate()
        {
            let case = case as u64;
            let (a, at) = (random(m, k, case), random(k, m, 50 + case));
            let (b, bt) = (random(k, n, 100 + case), random(n, k, 150 + case));
            let pairs = k.div_ceil(2);
            for level in SimdLevel::available() {
                let mut out = Rows::zeros(m, n);
                let ld = out.ld;
                let check = |label: &str, out: &Rows, left: &dyn Fn(usize, usize) -> f32, transposed: bool| {
                    for i in 0..m {
                        for j in 0..n {
                            let right = |l| if transposed { bt.row(j)[l] } else { b.row(l)[j] };
                            let expected = chain(1.5, k, |l| left(i, l), right);
                            assert_eq!(out.row(i)[j], expected, "{label} {level:?} {m} {n} {k}");
                        }
                    }
                };
                // The padding of the rows must not change a result.
                let garbage = |rows: usize, cols: usize| {
                    let mut x = Rows::zeros(rows, cols);
                    x.at_mut(0, 0).fill(Pair(0x7fc0_7fc0));
                    x
                };
                let (mut rows, mut columns) = (garbage(m, pairs), garbage(m.div_ceil(2), k));
                quantize(level, m, &a, &mut rows, &mut columns);
                let start = vec![1.5; n];
                let start = Accumulate::Row(&start);
                let mut packed = Panels::<Pair>::new(pairs, n);
                packed.pack(level, &flat(&b, k));
                let left = Left::rows(&rows, 0, 0);
                matmul(level, (m, n, pairs), left, packed.right(), start, out.at_mut(0, 0), ld);
                check("packed", &out, &|i, l| a.row(i)[l], false);
                packed.pack_transposed(level, &flat(&bt, n), k);
                matmul(level, (m, n, pairs), left, packed.right(), start, out.at_mut(0, 0), ld);
                check("packed transposed", &out, &|i, l| a.row(i)[l], true);

                let (mut rows, mut left) = (garbage(k, m.div_ceil(2)), garbage(pairs, m));
                quantize(level, k, &at, &mut rows, &mut left);
                let (mut rows, mut right) = (garbage(k, n.div_ceil(2)), garbage(pairs, n));
                quantize(level, k, &b, &mut rows, &mut right);
                let (left, right) = (Left::columns(&left, 0, 0), Right::rows(&right, 0, 0));
                matmul(level, (m, n, pairs), left, right, start, out.at_mut(0, 0), ld);
                check("columns", &out, &|i, l| at.row(l)[i], false);
            }
        }
    }
}
