//! Matrix products of f32, or of pairs of bf16 accumulated in f32. Every element of the output is one chain of fused
//! multiply-adds in the order of the inner index.
//!
//! So an element has the same bits for every tile shape, SIMD level and thread, and a sum can be continued by a later call:
//! neither chunks of a batch nor threads change a result.

#![allow(unsafe_code)]

use tinygpt_sampler::simd::{Kernel, LANES, Lanes, Simd, SimdLevel};

use super::rows::Rows;

/// The columns of a panel of packed weights.
pub(crate) const PANEL: usize = 32;
/// From this many multiply-adds on, what a prompt needs is divided among threads; fewer are done in some 50 microseconds, and waking a
/// thread may take longer.
pub(crate) const MIN_PARALLEL_MULTIPLY_ADDS: usize = 1 << 22;
/// The extent of the inner index that one tile accumulates (BLIS's `KC`): `256 x 32` floats fit the first-level cache.
const DEPTH: usize = 256;

/// The element type of operands, of four bytes: f32, or a [`Pair`] of bf16.
pub(crate) trait Element: Copy + Default + Send + Sync {
    /// Its bits as an f32 lane.
    fn lane(self) -> f32;

    /// Computes `sum + left right` lane by lane; for pairs, both products of the pair.
    fn mul_add<S: Simd>(s: S, left: S::V, right: S::V, sum: S::V) -> S::V;

    /// Runs a kernel compiled with the instructions for this type.
    fn run<K: Kernel>(level: SimdLevel, kernel: K) -> K::Output;
}

impl Element for f32 {
    #[inline(always)]
    fn lane(self) -> f32 {
        self
    }

    #[inline(always)]
    fn mul_add<S: Simd>(s: S, left: S::V, right: S::V, sum: S::V) -> S::V {
        s.mul_add(left, right, sum)
    }

    fn run<K: Kernel>(level: SimdLevel, kernel: K) -> K::Output {
        level.run(kernel)
    }
}

/// Two neighbours along the inner index in bf16, the first in the lower half.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct Pair(pub(super) u32);

impl Element for Pair {
    #[inline(always)]
    fn lane(self) -> f32 {
        f32::from_bits(self.0)
    }

    #[inline(always)]
    fn mul_add<S: Simd>(s: S, left: S::V, right: S::V, sum: S::V) -> S::V {
        s.dot_bf16(left, right, sum)
    }

    fn run<K: Kernel>(level: SimdLevel, kernel: K) -> K::Output {
        level.run_bf16(kernel)
    }
}

/// The left operand (BLAS's A), `(m, k)`: element `(i, l)` is `data[i * row + l * col]`.
#[derive(Clone, Copy)]
pub(crate) struct Left<'a, E = f32> {
    data: &'a [E],
    row: usize,
    col: usize,
}

impl<'a, E: Element> Left<'a, E> {
    /// Rows `from..` of a matrix, from column `col` on.
    pub(crate) fn rows(x: &'a Rows<E>, from: usize, col: usize) -> Self {
        Self { data: x.at(from, col), row: x.ld, col: 1 }
    }

    /// The transpose of [`Left::rows`].
    pub(crate) fn columns(x: &'a Rows<E>, from: usize, col: usize) -> Self {
        Self { data: x.at(from, col), row: 1, col: x.ld }
    }
}

/// The right operand (BLAS's B), `(k, n)`: element `(l, 32 p + j)` is `data[p * panel + l * row + j]`.
#[derive(Clone, Copy)]
pub(crate) struct Right<'a, E = f32> {
    data: &'a [E],
    row: usize,
    panel: usize,
}

impl<'a, E: Element> Right<'a, E> {
    /// Rows `from..` of a matrix, from column `col` on.
    pub(crate) fn rows(x: &'a Rows<E>, from: usize, col: usize) -> Self {
        Self { data: x.at(from, col), row: x.ld, panel: PANEL }
    }

    /// A sequence of panels, `(n / 32, k, 32)`.
    pub(crate) fn panels(data: &'a [E], k: usize) -> Self {
        Self { data, row: PANEL, panel: PANEL * k }
    }
}

/// The initial value of the output, to which a product is added: BLAS's beta, or a bias.
#[derive(Clone, Copy)]
pub(crate) enum Accumulate<'a> {
    /// Zero: the output is overwritten (beta 0).
    Zero,
    /// This row, `(n)`, for each row of the output.
    Row(&'a [f32]),
    /// The present content of the output (beta 1).
    Add,
}

/// Computes `out (m, n) = accumulate + a (m, k) b (k, n)`. The output's leading dimension is `ld`.
///
/// # Panics
/// When k is 0, or an operand or the output is too short.
pub(crate) fn matmul<E: Element>(
    level: SimdLevel,
    (m, n, k): (usize, usize, usize),
    a: Left<'_, E>,
    b: Right<'_, E>,
    accumulate: Accumulate<'_>,
    out: &mut [f32],
    ld: usize,
) {
    if m == 0 || n == 0 {
        return;
    }
    // The kernel loads sixteen elements as sixteen floats.
    const { assert!(size_of::<E>() == size_of::<f32>() && align_of::<E>() == align_of::<f32>()) };
    assert!(k > 0, "inner index");
    // The unsafe code of the kernel relies on these assertions.
    assert!((m - 1) * a.row + (k - 1) * a.col < a.data.len(), "left operand");
    let last_panel = (n - 1) / PANEL;
    let last_vector = (n - 1) % PANEL / LANES;
    let reads = |panel: usize, vectors: usize| panel * b.panel + (k - 1) * b.row + vectors * LANES;
    assert!(reads(last_panel, last_vector + 1) <= b.data.len(), "right operand");
    // All panels but the last are read whole; those of an unpacked matrix overlap, so the last but one may reach further.
    assert!(last_panel == 0 || reads(last_panel - 1, PANEL / LANES) <= b.data.len(), "right operand");
    assert!((m - 1) * ld + n <= out.len() && (m == 1 || n <= ld), "output");
    if let Accumulate::Row(row) = accumulate {
        assert_eq!(row.len(), n, "start");
    }
    E::run(level, MatmulKernel { m, n, k, a, b, accumulate, out, ld });
}

struct MatmulKernel<'a, E> {
    m: usize,
    n: usize,
    k: usize,
    a: Left<'a, E>,
    b: Right<'a, E>,
    accumulate: Accumulate<'a>,
    out: &'a mut [f32],
    ld: usize,
}

impl<E: Element> Kernel for MatmulKernel<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        if S::VECTORS >= 32 { self.tiles::<S, 12, 2>(s) } else { self.tiles::<S, 6, 1>(s) }
    }
}

impl<E: Element> MatmulKernel<'_, E> {
    /// Computes the output in tiles of up to `MR` rows and `NV` vectors, as many sums as fit the registers beside a row of
    /// the right operand.
    #[inline(always)]
    fn tiles<S: Simd, const MR: usize, const NV: usize>(self, s: S) {
        let Self { m, n, k, a, b, accumulate, out, ld } = self;
        for l in (0..k).step_by(DEPTH) {
            let depth = DEPTH.min(k - l);
            let mut j = 0;
            while j < n {
                let wide = n - j > LANES && NV == 2;
                let cols = if wide { (2 * LANES).min(n - j) } else { LANES.min(n - j) };
                let mut i = 0;
                while i < m {
                    // Tiles of about equal height, since few rows do not hide the latency of multiply-adds.
                    let rows = (m - i).div_ceil((m - i).div_ceil(MR));
                    // SAFETY: row i + rows - 1 < m, column j + cols - 1 < n and inner index l + depth - 1 < k, so by the
                    // assertions of `matmul` all that the tile reads and writes lies in the slices.
                    unsafe {
                        let tile = MicroTile {
                            depth,
                            a: a.data.as_ptr().add(i * a.row + l * a.col),
                            a_row: a.row,
                            a_col: a.col,
                            b: b.data.as_ptr().add(j / PANEL * b.panel + j % PANEL + l * b.row),
                            b_row: b.row,
                            start: match accumulate {
                                _ if l > 0 => TileInit::Add,
                                Accumulate::Zero => TileInit::Zero,
                                Accumulate::Row(row) => TileInit::Row(row.as_ptr().add(j)),
                                Accumulate::Add => TileInit::Add,
                            },
                            out: out.as_mut_ptr().add(i * ld + j),
                            ld,
                            cols,
                        };
                        if wide { tile.of_rows::<S, 2>(s, rows) } else { tile.of_rows::<S, 1>(s, rows) }
                    }
                    i += rows;
                }
                j += cols;
            }
        }
    }
}

/// A tile of the output whose sums are held in registers (BLIS's micro-kernel): up to twelve rows of one or two vectors.
struct MicroTile<E> {
    depth: usize,
    a: *const E,
    a_row: usize,
    a_col: usize,
    b: *const E,
    b_row: usize,
    start: TileInit,
    out: *mut f32,
    ld: usize,
    cols: usize,
}

/// [`Accumulate`] of one tile.
enum TileInit {
    Zero,
    Row(*const f32),
    Add,
}

impl<E: Element> MicroTile<E> {
    /// Computes the tile with `rows` rows, at most 12.
    ///
    /// # Safety
    /// As [`MicroTile::compute`] with `MR = rows`.
    #[inline(always)]
    unsafe fn of_rows<S: Simd, const NV: usize>(self, s: S, rows: usize) {
        // SAFETY: the caller upholds the contract.
        unsafe {
            match rows {
                1 => self.compute::<S, 1, NV>(s),
                2 => self.compute::<S, 2, NV>(s),
                3 => self.compute::<S, 3, NV>(s),
                4 => self.compute::<S, 4, NV>(s),
                5 => self.compute::<S, 5, NV>(s),
                6 => self.compute::<S, 6, NV>(s),
                7 => self.compute::<S, 7, NV>(s),
                8 => self.compute::<S, 8, NV>(s),
                9 => self.compute::<S, 9, NV>(s),
                10 => self.compute::<S, 10, NV>(s),
                11 => self.compute::<S, 11, NV>(s),
                _ => self.compute::<S, 12, NV>(s),
            }
        }
    }

    /// Computes the tile.
    ///
    /// # Safety
    /// `a` must have `MR` rows and `depth` columns, `b` `depth` rows of `NV` whole vectors, `out` and `start` `MR` rows
    /// of `cols` floats, of which at least one and at most `NV` vectors.
    #[inline(always)]
    unsafe fn compute<S: Simd, const MR: usize, const NV: usize>(self, s: S) {
        let whole = self.cols == NV * LANES;
        let zero = s.splat(0.0);
        let mut acc = [[zero; NV]; MR];
        // SAFETY: the caller upholds the contract; partial vectors of the output go through a buffer.
        unsafe {
            let read = |from: *const f32| -> [S::V; NV] {
                if whole {
                    return std::array::from_fn(|v| s.load(&*from.add(v * LANES).cast::<Lanes>()));
                }
                let mut buffer = [[0.0; LANES]; NV];
                std::ptr::copy_nonoverlapping(from, buffer.as_mut_ptr().cast(), self.cols);
                std::array::from_fn(|v| s.load(&buffer[v]))
            };
            match self.start {
                TileInit::Zero => {}
                TileInit::Row(row) => acc = [read(row); MR],
                TileInit::Add => {
                    for (i, acc) in acc.iter_mut().enumerate() {
                        *acc = read(self.out.add(i * self.ld));
                    }
                }
            }
            let (mut a, mut b) = (self.a, self.b);
            for _ in 0..self.depth {
                let right: [S::V; NV] = std::array::from_fn(|v| s.load(&*b.add(v * LANES).cast::<Lanes>()));
                for (i, acc) in acc.iter_mut().enumerate() {
                    let left = s.splat((*a.add(i * self.a_row)).lane());
                    for (acc, right) in acc.iter_mut().zip(right) {
                        *acc = E::mul_add(s, left, right, *acc);
                    }
                }
                // After the last step they may point beyond the operands, and are not read.
                a = a.wrapping_add(self.a_col);
                b = b.wrapping_add(self.b_row);
            }
            for (i, acc) in acc.iter().enumerate() {
                let to = self.out.add(i * self.ld);
                if whole {
                    for (v, &acc) in acc.iter().enumerate() {
                        s.store(acc, &mut *to.add(v * LANES).cast::<Lanes>());
                    }
                } else {
                    let mut buffer = [[0.0; LANES]; NV];
                    for (&acc, buffer) in acc.iter().zip(&mut buffer) {
                        s.store(acc, buffer);
                    }
                    std::ptr::copy_nonoverlapping(buffer.as_ptr().cast(), to, self.cols);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::packed::{Panels, pack_rows_transposed, transposed, transposed_len};
    use crate::cpu::rows::tests::{flat, random};

    /// The reference: one chain of fused multiply-adds.
    fn chain(start: f32, a: impl Iterator<Item = f32>, b: impl Iterator<Item = f32>) -> f32 {
        a.zip(b).fold(start, |sum, (a, b)| a.mul_add(b, sum))
    }

    #[test]
    fn every_element_is_one_chain_of_fused_multiply_adds_on_every_level() {
        for (case, (m, n, k)) in
            [(1, 1, 1), (3, 5, 7), (12, 32, 16), (13, 33, 300), (64, 65, 31), (7, 16, 520), (25, 48, 2)]
                .iter()
                .enumerate()
        {
            let (&m, &n, &k) = (m, n, k);
            let (a, at) = (random(m, k, 1 + case as u64), random(k, m, 50 + case as u64));
            let (b, bt) = (random(k, n, 100 + case as u64), random(n, k, 150 + case as u64));
            let row = random(1, n, 200);
            let mut packed = Panels::<f32>::new(k, n);
            packed.pack(&flat(&b, k));
            let mut packed_t = Panels::<f32>::new(k, n);
            packed_t.pack_transposed(&flat(&bt, n));
            let mut scratch = vec![0.0; transposed_len(n, k)];
            pack_rows_transposed(&bt, n, 0, k, &mut scratch);
            for level in SimdLevel::available() {
                let check = |label: &str, start: &dyn Fn(usize) -> f32, out: &Rows, transposed: (bool, bool)| {
                    for i in 0..m {
                        for j in 0..n {
                            let left = (0..k).map(|l| if transposed.0 { at.row(l)[i] } else { a.row(i)[l] });
                            let right = (0..k).map(|l| if transposed.1 { bt.row(j)[l] } else { b.row(l)[j] });
                            let expected = chain(start(j), left, right);
                            assert_eq!(out.row(i)[j].to_bits(), expected.to_bits(), "{label} {level:?} {m} {n} {k}");
                        }
                    }
                };
                let shape = (m, n, k);
                let mut out = Rows::zeros(m, n);
                let ld = out.ld;
                let zero = |_| 0.0;
                matmul(level, shape, Left::rows(&a, 0, 0), packed.right(), Accumulate::Zero, out.at_mut(0, 0), ld);
                check("packed", &zero, &out, (false, false));
                matmul(level, shape, Left::rows(&a, 0, 0), packed_t.right(), Accumulate::Zero, out.at_mut(0, 0), ld);
                check("packed transposed", &zero, &out, (false, true));
                let right = transposed(&scratch, k, 0);
                matmul(level, shape, Left::columns(&at, 0, 0), right, Accumulate::Zero, out.at_mut(0, 0), ld);
                check("both transposed", &zero, &out, (true, true));
                let right = Right::rows(&b, 0, 0);
                let start = Accumulate::Row(row.row(0));
                matmul(level, shape, Left::columns(&at, 0, 0), right, start, out.at_mut(0, 0), ld);
                check("left transposed", &|j| row.row(0)[j], &out, (true, false));
                // A sum in two parts is the sum.
                let half = k / 2;
                if half > 0 {
                    let (left, right) = (Left::rows(&a, 0, 0), Right::rows(&b, 0, 0));
                    matmul(level, (m, n, half), left, right, Accumulate::Zero, out.at_mut(0, 0), ld);
                    let (left, right) = (Left::rows(&a, 0, half), Right::rows(&b, half, 0));
                    matmul(level, (m, n, k - half), left, right, Accumulate::Add, out.at_mut(0, 0), ld);
                    check("in two parts", &zero, &out, (false, false));
                }
            }
        }
    }

    /// What no constructor makes: columns of a second panel that lie over the first's, in 16 numbers.
    #[test]
    #[should_panic(expected = "right operand")]
    fn a_right_operand_whose_first_panel_reaches_beyond_its_data_is_refused() {
        let (a, data) = (random(1, 1, 1), [0.0; LANES]);
        let right = Right { data: &data, row: PANEL, panel: 0 };
        let mut out = Rows::zeros(1, PANEL + 1);
        let ld = out.ld;
        let shape = (1, PANEL + 1, 1);
        matmul(SimdLevel::detect(), shape, Left::rows(&a, 0, 0), right, Accumulate::Zero, out.at_mut(0, 0), ld);
    }
}
