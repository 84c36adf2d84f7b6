//! Matrix products of f32, or of pairs of bf16 accumulated in f32. Every element of the output is one chain of fused
//! multiply-adds in the order of the inner index.
//!
//! So an element has the same bits for every tile shape, SIMD level and thread, and a sum can be continued by a later call:
//! neither chunks of a batch nor threads change a result.

#![allow(unsafe_code)]

use tinygpt_sampler::simd::{Kernel, LANES, Lanes, Simd, SimdLevel};

use super::{prefetch::prefetch_line, rows::Rows};

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

    /// Where element (l, col) is, which may lie behind the last.
    #[inline(always)]
    fn at(&self, l: usize, col: usize) -> *const E {
        self.data.as_ptr().wrapping_add(col / PANEL * self.panel + l * self.row + col % PANEL)
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
    matmul_sum(level, (m, n), &[Term { a, b, k }], accumulate, out, ld);
}

/// A product `a (m, k) b (k, n)` of a sum.
#[derive(Clone, Copy)]
pub(crate) struct Term<'a, E = f32> {
    pub(crate) a: Left<'a, E>,
    pub(crate) b: Right<'a, E>,
    pub(crate) k: usize,
}

/// Computes `out (m, n) = accumulate + the sum of all terms`, in their order, as calls of [`matmul`] one after the other would.
/// Left operands are all given by rows, or all by columns.
///
/// # Panics
/// As [`matmul`], for any of them.
pub(crate) fn matmul_sum<E: Element>(
    level: SimdLevel,
    (m, n): (usize, usize),
    terms: &[Term<'_, E>],
    accumulate: Accumulate<'_>,
    out: &mut [f32],
    ld: usize,
) {
    if m == 0 || n == 0 {
        return;
    }
    // The kernel loads sixteen elements as sixteen floats.
    const { assert!(size_of::<E>() == size_of::<f32>() && align_of::<E>() == align_of::<f32>()) };
    // The unsafe code of the kernel relies on these assertions.
    let last_panel = (n - 1) / PANEL;
    let last_vector = (n - 1) % PANEL / LANES;
    assert!(!terms.is_empty(), "a sum of no terms");
    let by_columns = terms.iter().all(|term| term.a.row == 1);
    for &Term { a, b, k } in terms {
        assert!(k > 0, "inner index");
        assert!(by_columns || a.col == 1, "left operands by rows and by columns");
        assert!((m - 1) * a.row + (k - 1) * a.col < a.data.len(), "left operand");
        let reads = |panel: usize, vectors: usize| panel * b.panel + (k - 1) * b.row + vectors * LANES;
        assert!(reads(last_panel, last_vector + 1) <= b.data.len(), "right operand");
        // All panels but the last are read whole; those of an unpacked matrix overlap, so the last but one may reach further.
        assert!(last_panel == 0 || reads(last_panel - 1, PANEL / LANES) <= b.data.len(), "right operand");
    }
    assert!((m - 1) * ld + n <= out.len() && (m == 1 || n <= ld), "output");
    if let Accumulate::Row(row) = accumulate {
        assert_eq!(row.len(), n, "start");
    }
    E::run(level, MatmulKernel { m, n, terms, by_columns, accumulate, out, ld });
}

struct MatmulKernel<'a, E> {
    m: usize,
    n: usize,
    terms: &'a [Term<'a, E>],
    /// Whether the left operands are given by columns.
    by_columns: bool,
    accumulate: Accumulate<'a>,
    out: &'a mut [f32],
    ld: usize,
}

impl<E: Element> Kernel for MatmulKernel<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match (S::VECTORS >= 32, self.by_columns) {
            (true, false) => self.tiles::<S, 12, 2, false>(s),
            (true, true) => self.tiles::<S, 12, 2, true>(s),
            (false, false) => self.tiles::<S, 6, 1, false>(s),
            (false, true) => self.tiles::<S, 6, 1, true>(s),
        }
    }
}

impl<E: Element> MatmulKernel<'_, E> {
    /// Computes the output in tiles of up to `MR` rows and `NV` vectors, as many sums as fit the registers beside a row of
    /// the right operand. A tile accumulates up to [`DEPTH`] inner indices: a stretch of one term, or several short terms.
    #[inline(always)]
    fn tiles<S: Simd, const MR: usize, const NV: usize, const COLUMNS: bool>(mut self, s: S) {
        let mut rest = self.terms;
        while let Some(first) = rest.first() {
            let mut depth = first.k;
            let more = rest[1..].iter().take_while(|term| {
                depth += term.k;
                depth <= DEPTH
            });
            let (terms, later) = rest.split_at(1 + more.count());
            for l in (0..first.k).step_by(DEPTH) {
                self.stretch::<S, MR, NV, COLUMNS>(s, terms, l);
                self.accumulate = Accumulate::Add;
            }
            rest = later;
        }
    }

    /// Adds terms from inner index `l` on, up to [`DEPTH`] of each.
    #[inline(always)]
    fn stretch<S: Simd, const MR: usize, const NV: usize, const COLUMNS: bool>(
        &mut self,
        s: S,
        terms: &[Term<'_, E>],
        l: usize,
    ) {
        let &mut Self { m, n, accumulate, ref mut out, ld, .. } = self;
        // Sums of few products are attention's, whose output is near.
        let far = terms.len() > 1 || terms[0].k >= 64;
        let mut j = 0;
        while j < n {
            let cols = if n - j > LANES && NV == 2 { (2 * LANES).min(n - j) } else { LANES.min(n - j) };
            let mut i = 0;
            while i < m {
                // Tiles of about equal height, since few rows do not hide the latency of multiply-adds.
                let tiles = (m - i).div_ceil(MR);
                let rows = (m - i).div_ceil(tiles);
                // The last tiles of some columns prefetch the next columns, one cache line of each row.
                let ahead = match () {
                    () if tiles <= NV && j + cols < n => Ahead::Right { col: j + cols + (tiles - 1) * LANES },
                    () if j == 0 => Ahead::Left,
                    () => Ahead::Nothing,
                };
                let at = out.as_mut_ptr().wrapping_add(i * ld + j);
                if let (true, Accumulate::Add) = (far, accumulate) {
                    let next = if tiles > 1 { (i + rows) * ld + j } else { j + cols };
                    prefetch_tile::<MR, NV>(out.as_ptr().wrapping_add(next), ld);
                }
                let start = match accumulate {
                    Accumulate::Zero => TileInit::Zero,
                    Accumulate::Row(row) => TileInit::Row(row.as_ptr().wrapping_add(j)),
                    Accumulate::Add => TileInit::Add,
                };
                let tile = MicroTile { terms, row: i, col: j, l, start, out: at, ld, cols, ahead };
                // SAFETY: row i + rows - 1 < m, column j + cols - 1 < n and l is less than the k of each term, so by the
                // assertions of `matmul_sum` all that the tile reads and writes lies in the slices.
                unsafe {
                    if cols > LANES {
                        tile.of_rows::<S, MR, 2, COLUMNS>(s, rows);
                    } else {
                        tile.of_rows::<S, MR, 1, COLUMNS>(s, rows);
                    }
                }
                i += rows;
            }
            j += cols;
        }
    }
}

/// Prefetches `NV` cache lines of each of `MR` rows of the output, which may end before them.
#[inline(always)]
fn prefetch_tile<const MR: usize, const NV: usize>(first: *const f32, ld: usize) {
    for row in 0..MR {
        for v in 0..NV {
            prefetch_line(first.wrapping_add(row * ld + v * LANES));
        }
    }
}

/// A tile of the output whose sums are held in registers (BLIS's micro-kernel): up to twelve rows of one or two vectors.
struct MicroTile<'a, E> {
    terms: &'a [Term<'a, E>],
    /// The first row and the first column of the tile.
    row: usize,
    col: usize,
    /// The first inner index of each term.
    l: usize,
    start: TileInit,
    out: *mut f32,
    ld: usize,
    cols: usize,
    ahead: Ahead,
}

/// [`Accumulate`] of one tile.
enum TileInit {
    Zero,
    Row(*const f32),
    Add,
}

/// What a tile prefetches for later ones: a cache line at each inner index. The hardware sees neither the next panel nor the next
/// rows of an operand coming, and both may lie in the third-level cache.
enum Ahead {
    /// The right operands from a column on.
    Right {
        /// The column.
        col: usize,
    },
    /// The next rows of left operands that are given by columns.
    Left,
    Nothing,
}

/// A pointer of which the compiler knows nothing.
///
/// What it knows of the rows of a tile makes it go from each to the next by an addition, eleven more instructions at each inner index.
/// A core that decodes for two threads then has too few of them for its multiply-adds.
#[inline(always)]
#[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), expect(unused_mut, reason = "no assembler"))]
fn opaque<T>(mut pointer: *const T) -> *const T {
    // SAFETY: no instruction, so the pointer keeps its value.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    #[expect(clippy::pointers_in_nomem_asm_block, reason = "nothing is read through the pointer here")]
    unsafe {
        std::arch::asm!("/* {0} */", inout(reg) pointer, options(pure, nomem, nostack, preserves_flags));
    }
    pointer
}

impl<E: Element> MicroTile<'_, E> {
    /// Computes the tile with `rows` rows, at most `MR`.
    ///
    /// # Safety
    /// As [`MicroTile::compute`] with `MR = rows`.
    #[inline(always)]
    unsafe fn of_rows<S: Simd, const MR: usize, const NV: usize, const COLUMNS: bool>(self, s: S, rows: usize) {
        // SAFETY: the caller upholds the contract.
        unsafe {
            match rows {
                1 => self.compute::<S, 1, NV, COLUMNS>(s),
                2 => self.compute::<S, 2, NV, COLUMNS>(s),
                3 => self.compute::<S, 3, NV, COLUMNS>(s),
                4 => self.compute::<S, 4, NV, COLUMNS>(s),
                5 => self.compute::<S, 5, NV, COLUMNS>(s),
                6 => self.compute::<S, 6, NV, COLUMNS>(s),
                7 if MR >= 7 => self.compute::<S, 7, NV, COLUMNS>(s),
                8 if MR >= 8 => self.compute::<S, 8, NV, COLUMNS>(s),
                9 if MR >= 9 => self.compute::<S, 9, NV, COLUMNS>(s),
                10 if MR >= 10 => self.compute::<S, 10, NV, COLUMNS>(s),
                11 if MR >= 11 => self.compute::<S, 11, NV, COLUMNS>(s),
                _ => self.compute::<S, MR, NV, COLUMNS>(s),
            }
        }
    }

    /// Computes the tile.
    ///
    /// # Safety
    /// From the tile's first row and column and inner index l on, the left operand of each term must have `MR` rows, its right operand
    /// `NV` whole vectors of columns, and both an inner index, `out` and `start` `MR` rows of `cols` floats, of which at least
    /// one and at most `NV` vectors. With `COLUMNS`, left operands are given by columns, otherwise by rows.
    #[inline(always)]
    unsafe fn compute<S: Simd, const MR: usize, const NV: usize, const COLUMNS: bool>(self, s: S) {
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
            for term in self.terms {
                let (a_row, a_col) = if COLUMNS { (1, term.a.col) } else { (term.a.row, 1) };
                let mut a = term.a.data.as_ptr().add(self.row * a_row + self.l * a_col);
                let mut b = term.b.at(self.l, self.col);
                let (mut ahead, ahead_row) = match self.ahead {
                    Ahead::Right { col } => (term.b.at(self.l, col), term.b.row),
                    Ahead::Left if COLUMNS => (a.wrapping_add(2 * MR - 1), a_col),
                    _ => (b, term.b.row),
                };
                for _ in 0..DEPTH.min(term.k - self.l) {
                    let right: [S::V; NV] = std::array::from_fn(|v| s.load(&*b.add(v * LANES).cast::<Lanes>()));
                    a = opaque(a);
                    let mut rows = a;
                    for (i, acc) in acc.iter_mut().enumerate() {
                        // A distance of four rows is more than an instruction adds to an address.
                        if !COLUMNS && i > 0 && i % 4 == 0 {
                            rows = opaque(rows.wrapping_add(4 * a_row));
                        }
                        let row = if COLUMNS { rows.add(i) } else { rows.add(i % 4 * a_row) };
                        let left = s.splat((*row).lane());
                        for (acc, right) in acc.iter_mut().zip(right) {
                            *acc = E::mul_add(s, left, right, *acc);
                        }
                    }
                    prefetch_line(ahead);
                    // After the last step they may point beyond the operands, and are not read.
                    a = a.wrapping_add(a_col);
                    b = b.wrapping_add(term.b.row);
                    ahead = ahead.wrapping_add(ahead_row);
                }
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
    fn a_sum_of_products_is_the_products_one_after_the_other() {
        let (m, n) = (27, 70);
        // Short terms that a tile takes together, one that takes several tiles, and such that fill a tile exactly.
        let depths = [5, 40, 600, 1, 200, 56, 128, 128, 9];
        let columns: Vec<_> = depths.iter().map(|&k| (k, random(k, m, k as u64), random(k, n, 7 + k as u64))).collect();
        let rows: Vec<_> = depths.iter().map(|&k| (k, random(m, k, k as u64), random(k, n, 7 + k as u64))).collect();
        for level in SimdLevel::available() {
            for by_columns in [true, false] {
                let terms: Vec<_> = (if by_columns { &columns } else { &rows })
                    .iter()
                    .map(|(k, a, b)| {
                        let a = if by_columns { Left::columns(a, 0, 0) } else { Left::rows(a, 0, 0) };
                        Term { a, b: Right::rows(b, 0, 0), k: *k }
                    })
                    .collect();
                let start = random(1, n, 3);
                for start in [Accumulate::Zero, Accumulate::Row(start.row(0)), Accumulate::Add] {
                    let (mut sum, mut expected) = (random(m, n, 1), random(m, n, 1));
                    let ld = sum.ld;
                    matmul_sum(level, (m, n), &terms, start, sum.at_mut(0, 0), ld);
                    for (i, &Term { a, b, k }) in terms.iter().enumerate() {
                        let start = if i == 0 { start } else { Accumulate::Add };
                        matmul(level, (m, n, k), a, b, start, expected.at_mut(0, 0), ld);
                    }
                    assert_eq!(flat(&sum, m), flat(&expected, m), "{level:?}");
                }
            }
        }
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
