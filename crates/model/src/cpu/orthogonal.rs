//! Orthogonalisation of a matrix by Newton-Schulz iterations: all singular values go to about 1, and the singular vectors
//! stay. It is what Muon does to its momentum (Jordan et al., 2024, "Muon: An optimizer for hidden layers in neural
//! networks").
//!
//! An iteration is `A = X X^T; X = (a I + b A + c A^2) X` for a matrix X that is at most as high as wide. Everything to the
//! left of X is a polynomial in A, and symmetric, so one half of such a product is computed and mirrored. And as
//! polynomials in A commute, the next A is `B A B` with `B = a I + b A + c A^2`: for a matrix that is clearly wider than high,
//! several iterations are made on the small A alone, and X is multiplied once, by the product of their B. In f32 the
//! smallest eigenvalues of A drown in rounding noise, which each of these shortened iterations makes up to a^2 times larger;
//! so A is computed anew from X after every three.

use tinygpt_sampler::simd::{Kernel, LANES, Lanes, Simd, SimdLevel};

use super::{
    matmul::{Accumulate, Left, PANEL, Right, matmul},
    rows::Rows,
    vectors,
};

/// The coefficients `(a, b, c)` of successive iterations (Amsel et al., 2025, "The Polar Express"). Singular values between
/// 0.01 and 1 come to lie between 0.85 and 1.15 after all five, and between 0.15 and 1.9 after three.
pub const POLAR_EXPRESS: [[f64; 3]; 5] = [
    [8.156_554_524_902_461, -22.483_292_925_577_95, 15.878_769_915_207_462],
    [4.042_929_935_166_739, -2.808_917_465_908_714, 0.500_017_845_105_131_6],
    [3.891_667_802_292_660_7, -2.772_484_153_217_685, 0.506_064_817_850_339_3],
    [3.285_753_657_755_655, -2.368_129_493_342_537_6, 0.464_490_242_330_031_06],
    [2.346_541_325_859_637_7, -1.709_782_838_268_708_1, 0.423_235_511_693_053_23],
];

/// The iterations on A alone before it is computed from X again.
const SHORTENED: usize = 3;

/// Orthogonalises one matrix after the other, in f32 and in memory that it keeps. The result's bits depend on the matrix
/// alone: not on what was computed before, the thread, or the vector instructions.
///
/// ```
/// use tinygpt_model::cpu::{Orthogonalizer, POLAR_EXPRESS};
/// use tinygpt_sampler::simd::SimdLevel;
///
/// let mut matrix = Orthogonalizer::default();
/// matrix.start(2, 3);
/// matrix.row_mut(0).copy_from_slice(&[3.0, 0.0, 0.0]);
/// matrix.row_mut(1).copy_from_slice(&[0.0, 0.0, -2.0]);
/// matrix.orthogonalize(SimdLevel::detect(), &POLAR_EXPRESS);
/// assert!((matrix.row(0)[0] - 1.0).abs() < 0.15 && (matrix.row(1)[2] + 1.0).abs() < 0.15);
/// ```
#[derive(Debug, Default)]
pub struct Orthogonalizer {
    rows: usize,
    cols: usize,
    /// The matrix (rows, cols), and where its next value goes. X is the matrix, or its transpose where that is wider.
    x: Rows,
    next: Rows,
    /// `x` transposed, (cols, rows), where the matrix is wider than high.
    transposed: Rows,
    /// The symmetric matrices, each (n, n) with n the smaller of rows and cols.
    a: Rows,
    b: Rows,
    product: Rows,
    work: Rows,
}

impl Orthogonalizer {
    /// Makes room for a matrix (rows, cols), whose elements are arbitrary until [`Orthogonalizer::row_mut`] has set them.
    pub fn start(&mut self, rows: usize, cols: usize) {
        (self.rows, self.cols) = (rows, cols);
        // Tiles of sixteen rows and columns are transposed whole.
        let padded = |n: usize| n.next_multiple_of(LANES);
        let n = rows.min(cols);
        for x in [&mut self.x, &mut self.next] {
            x.reshape(padded(rows), cols);
        }
        if rows < cols {
            self.transposed.reshape(padded(cols), rows);
        }
        for a in [&mut self.a, &mut self.b, &mut self.product, &mut self.work] {
            a.reshape(padded(n), n);
        }
    }

    /// The floats that a matrix (rows, cols) takes: itself, its next value and its transpose, and four symmetric matrices.
    pub fn floats(rows: usize, cols: usize) -> usize {
        3 * rows * cols + 4 * rows.min(cols).pow(2)
    }

    /// Row `i` of the matrix.
    pub fn row(&self, i: usize) -> &[f32] {
        self.x.row(i)
    }

    /// Row `i` of the matrix, to be set.
    pub fn row_mut(&mut self, i: usize) -> &mut [f32] {
        self.x.row_mut(i)
    }

    /// Replaces the matrix by one with the same singular vectors and singular values of about 1: one iteration for each of
    /// the coefficients, after a division by 1.02 times the Frobenius norm. A matrix of zeros stays one.
    pub fn orthogonalize(&mut self, level: SimdLevel, coefficients: &[[f64; 3]]) {
        let (rows, cols) = (self.rows, self.cols);
        if rows == 0 || cols == 0 {
            return;
        }
        level.run(Normalize { rows, x: &mut self.x });
        // Products of a square X cost as much as those of A, of which there are more.
        let (short, long) = (rows.min(cols), rows.max(cols));
        let together = if 8 * long > 9 * short { SHORTENED } else { 1 };
        for coefficients in coefficients.chunks(together) {
            self.gram(level);
            self.polynomial(level, coefficients);
            self.multiply(level);
        }
    }

    /// `a = X X^T`.
    fn gram(&mut self, level: SimdLevel) {
        let Self { rows, cols, x, transposed, a, .. } = self;
        let n = (*rows).min(*cols);
        if rows < cols {
            level.run(Transpose { rows: *rows, cols: *cols, x, to: transposed });
            symmetric(level, n, *cols, |from| Left::columns(transposed, 0, from), transposed, a);
        } else {
            symmetric(level, n, *rows, |from| Left::columns(x, 0, from), x, a);
        }
        level.run(Mirror { n, x: a, plus: None });
    }

    /// `product` = the product of `b_k = a_k I + b_k A + c_k A^2` over the iterations, each with the A that it finds.
    fn polynomial(&mut self, level: SimdLevel, coefficients: &[[f64; 3]]) {
        let Self { rows, cols, a, b, product, work, .. } = self;
        let (n, iterations) = ((*rows).min(*cols), coefficients.len());
        let times = |x: &Rows, y: &Rows, out: &mut Rows| symmetric(level, n, n, |from| Left::rows(x, from, 0), y, out);
        let mirror = |x: &mut Rows| level.run(Mirror { n, x, plus: None });
        for (k, coefficients) in coefficients.iter().enumerate() {
            times(a, a, b);
            level.run(Mirror { n, x: b, plus: Some((coefficients.map(|c| c as f32), a)) });
            if k + 1 < iterations {
                times(a, b, work);
                mirror(work);
                times(work, b, a);
                mirror(a);
            }
            if k == 0 {
                std::mem::swap(product, b);
            } else {
                times(product, b, work);
                mirror(work);
                std::mem::swap(product, work);
            }
        }
    }

    /// `X = product X`.
    fn multiply(&mut self, level: SimdLevel) {
        let Self { rows, cols, x, next, product, .. } = self;
        let (left, right, k) = if rows < cols { (&*product, &*x, *rows) } else { (&*x, &*product, *cols) };
        let ld = next.ld;
        let (left, right) = (Left::rows(left, 0, 0), Right::rows(right, 0, 0));
        matmul(level, (*rows, *cols, k), left, right, Accumulate::Zero, next.at_mut(0, 0), ld);
        std::mem::swap(x, next);
    }
}

/// Computes the upper half of a product (n, k) (k, n) that is symmetric, and of its lower half what lies in the blocks of
/// sixteen rows and columns on the diagonal. `left(i)` is the left operand from row i on.
fn symmetric<'a>(level: SimdLevel, n: usize, k: usize, left: impl Fn(usize) -> Left<'a>, right: &Rows, out: &mut Rows) {
    let ld = out.ld;
    for col in (0..n).step_by(PANEL) {
        let end = n.min(col + PANEL);
        // A panel ends at the diagonal: its second half sixteen rows below its first.
        let half = n.min(col + LANES);
        let shape = (half, end - col, k);
        matmul(level, shape, left(0), Right::rows(right, 0, col), Accumulate::Zero, out.at_mut(0, col), ld);
        let shape = (end - half, end - half, k);
        matmul(level, shape, left(half), Right::rows(right, 0, half), Accumulate::Zero, out.at_mut(half, half), ld);
    }
}

/// The sixteen elements of a matrix from (row, col) on.
#[inline(always)]
fn lanes(x: &Rows, row: usize, col: usize) -> &Lanes {
    &x.at(row, col).as_chunks().0[0]
}

#[inline(always)]
fn lanes_mut(x: &mut Rows, row: usize, col: usize) -> &mut Lanes {
    &mut x.at_mut(row, col).as_chunks_mut().0[0]
}

/// Divides the first `rows` rows by 1.02 times their Frobenius norm, plus 1e-7: the largest singular value is then below 1.
struct Normalize<'a> {
    rows: usize,
    x: &'a mut Rows,
}

impl Kernel for Normalize<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { rows, x } = self;
        let mut squares = 0.0;
        for i in 0..rows {
            let row = x.row(i);
            let mut sums = [s.splat(0.0); 4];
            for at in 0..vectors::count(row) {
                let v = vectors::get(s, row, at);
                sums[at % 4] = s.mul_add(v, v, sums[at % 4]);
            }
            squares += f64::from(s.sum(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3]))));
        }
        let factor = s.splat((1.0 / (squares.sqrt() * 1.02 + 1e-7)) as f32);
        for i in 0..rows {
            let row = x.row_mut(i);
            for at in 0..vectors::count(row) {
                let v = vectors::get(s, row, at);
                vectors::set(s, row, at, s.mul(v, factor));
            }
        }
    }
}

/// Writes the transpose of `x` (rows, cols).
struct Transpose<'a> {
    rows: usize,
    cols: usize,
    x: &'a Rows,
    to: &'a mut Rows,
}

impl Kernel for Transpose<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { rows, cols, x, to } = self;
        for row in (0..rows).step_by(LANES) {
            for col in (0..cols).step_by(LANES) {
                let tile = s.transpose(std::array::from_fn(|i| s.load(lanes(x, row + i, col))));
                for (i, v) in tile.into_iter().enumerate() {
                    s.store(v, lanes_mut(to, col + i, row));
                }
            }
        }
    }
}

/// Copies the upper half of a matrix (n, n) to its lower half, in blocks of sixteen rows and columns. With `plus`, which is
/// `((a, b, c), A)`, what is copied is `a I + b A + c x`, and replaces x in the upper half too.
struct Mirror<'a> {
    n: usize,
    x: &'a mut Rows,
    plus: Option<([f32; 3], &'a Rows)>,
}

impl Kernel for Mirror<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { n, x, plus } = self;
        for row in (0..n).step_by(LANES) {
            for col in (row..n).step_by(LANES) {
                if let Some(([a, b, c], other)) = plus {
                    let (b, c) = (s.splat(b), s.splat(c));
                    for i in row..row + LANES {
                        let scaled = s.mul(s.load(lanes(other, i, col)), b);
                        let to = lanes_mut(x, i, col);
                        s.store(s.mul_add(s.load(to), c, scaled), to);
                        if row == col {
                            to[i - row] += a;
                        }
                    }
                }
                if col > row {
                    let tile = s.transpose(std::array::from_fn(|i| s.load(lanes(x, row + i, col))));
                    for (i, v) in tile.into_iter().enumerate() {
                        s.store(v, lanes_mut(x, col + i, row));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
