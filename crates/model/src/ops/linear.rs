//! The linear layer, `y = x w + b`, alone and fused with the addition to the residual stream.

use candle_core::{DType, Tensor};

use super::{
    Add, ApplyDropout, Operation,
    dropout::DropoutMask,
    kernels::{elementwise, kernels_for, kernels_for_values},
    launches::{cat, count_launch, sum_rows, to_operand, upcast},
    tape,
};
use crate::{
    Precision, Result,
    cpu::{
        decode::{DecodeOp, DecodeSetup, DecodeStep, OutputDim, WeightMatrix},
        matmul::Accumulate,
        training::{ParamLayout, TrainOp, TrainPass, TrainSetup},
    },
    plan::{Init, Network, NetworkBuilder, ParamId, Role, Value},
    tensors::{Fusion, Pass},
};

/// A linear layer.
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    pub(crate) x: Value,
    pub(crate) y: Value,
    /// `(in, out)`.
    pub(crate) weight: ParamId,
    /// `(out)`.
    pub(crate) bias: Option<ParamId>,
}

impl Linear {
    /// The layer on candle tensors without its bias: `(B, T, out)`.
    pub(crate) fn product(&self, pass: &Pass<'_>) -> Result<Tensor> {
        let (x, w) = (pass.value(self.x)?, pass.param(self.weight));
        match pass.precision() {
            Some(precision) => linear_rounded(&x, (w, pass.operand(self.weight)), None, precision),
            None => linear_by_row(&x, w, None),
        }
    }
}

impl NetworkBuilder {
    /// The linear layer `x w + b`: `(T, in)` to `(T, n_out)`. `std` is the standard deviation of the initial weights.
    pub fn linear(&mut self, x: Value, module: &str, n_out: usize, std: f64) -> Value {
        self.linears(x, module, &[n_out], std)
    }

    /// Several linear layers of the same input side by side, as one: `(T, in)` to `(T, the sum of n_out)`.
    pub fn linears(&mut self, x: Value, module: &str, parts: &[usize], std: f64) -> Value {
        let (n_in, n_out) = (self.cols[x.0], parts.iter().sum());
        let weight = self.param(format!("{module}.weight"), &[n_in, n_out], Role::Matrix, Init::Normal(std));
        self.params[weight.0].parts = parts.to_vec();
        let bias = self.bias(module, n_out);
        let y = self.value(n_out);
        self.push(Linear { x, y, weight, bias })
    }
}

impl Operation for Linear {
    fn inputs(&self) -> Vec<Value> {
        vec![self.x]
    }

    fn output(&self) -> Value {
        self.y
    }

    fn multiply_adds(&self, net: &Network, t: usize) -> f64 {
        t as f64 * net.cols(self.x) as f64 * net.cols(self.y) as f64
    }

    fn kept_floats(&self, net: &Network, _: usize) -> usize {
        self.bias.map_or(0, |_| net.cols(self.y))
    }

    fn forward(&self, pass: &mut Pass<'_>) -> Result<Tensor> {
        add_bias(self.product(pass)?, self.bias.map(|bias| pass.param(bias)))
    }

    fn fuse(&self, fusion: &mut Fusion<'_>) -> Option<()> {
        fusion.product(self.x, self.weight, self.bias, self.y)
    }

    fn training(&self, setup: &TrainSetup<'_>) -> Box<dyn TrainOp> {
        Box::new(LinearTape::new(self, setup))
    }

    fn decoding<'a>(&self, setup: &DecodeSetup<'_, 'a>) -> Option<Box<dyn DecodeOp + 'a>> {
        let weight =
            WeightMatrix::new(setup.large_param(self.weight), setup.net.cols(self.y), OutputDim::Cols, setup.format);
        Some(Box::new(DecodeLinear { x: self.x, y: self.y, weight, bias: self.bias.map(|bias| setup.param(bias)) }))
    }
}

#[derive(Debug)]
struct DecodeLinear<'a> {
    x: Value,
    y: Value,
    weight: WeightMatrix<'a>,
    bias: Option<&'a [f32]>,
}

impl DecodeOp for DecodeLinear<'_> {
    fn run(&mut self, step: &mut DecodeStep<'_, '_>) {
        let n = step.n;
        let (x, y, context) = step.product(self.x, self.y);
        self.weight.apply(context, n, x, self.bias, y);
    }
}

/// A linear layer with its tape of one sequence. The gradient of the weights is computed from the operands `x` and `dy` of
/// all sequences (`cpu/training/mod.rs`).
#[derive(Debug)]
struct LinearTape {
    op: Linear,
    /// The gradient of the bias, `(out)`, summed over the sequence.
    db: Option<Vec<f32>>,
}

impl LinearTape {
    fn new(op: &Linear, setup: &TrainSetup<'_>) -> Self {
        Self { op: op.clone(), db: op.bias.map(|_| vec![0.0; setup.net.cols(op.y)]) }
    }

    /// Computes the value `out = accumulate + x w`, `(T, out)`.
    fn multiply(&self, pass: &mut TrainPass<'_>, out: Value, accumulate: Accumulate<'_>) {
        let weight = &pass.weights.packed(self.op.weight).weight;
        let (x, out) = pass.values.pair(self.op.x, out, &mut pass.scratch.rows);
        let ld = out.ld;
        x.multiply(pass.level, 0..pass.t, &pass.scratch.quantized, weight, accumulate, (out.at_mut(0, 0), ld));
    }

    /// Computes the gradient of the input `(T, in)` and that of the bias from the f32 rows of `dy (T, out)`, which it
    /// quantizes.
    fn input_grad(&mut self, pass: &mut TrainPass<'_>) {
        let (level, t) = (pass.level, pass.t);
        if let Some(db) = &mut self.db {
            let dy = pass.grads.rows_mut(self.op.y, &mut pass.scratch.rows);
            db.fill(0.0);
            for i in 0..t {
                db.iter_mut().zip(dy.row(i)).for_each(|(sum, grad)| *sum += grad);
            }
        }
        pass.grads.get_mut(self.op.y).quantize(level, t, pass.scratch);
        let transposed = &pass.weights.packed(self.op.weight).transposed;
        let (dy, dx) = pass.grads.pair(self.op.y, self.op.x, &mut pass.scratch.rows);
        let ld = dx.ld;
        dy.multiply(level, 0..t, &pass.scratch.quantized, transposed, Accumulate::Zero, (dx.at_mut(0, 0), ld));
    }
}

impl TrainOp for LinearTape {
    fn forward(&mut self, pass: &mut TrainPass<'_>) {
        let bias = self.op.bias.map(|bias| pass.weights.param(bias));
        self.multiply(pass, self.op.y, bias.map_or(Accumulate::Zero, Accumulate::Row));
    }

    fn backward(&mut self, pass: &mut TrainPass<'_>) {
        self.input_grad(pass);
    }

    fn add_vector_grads(&self, layout: &ParamLayout, grads: &mut [f32]) {
        if let (Some(bias), Some(db)) = (self.op.bias, &self.db) {
            layout.add(bias, db, grads);
        }
    }
}

/// The fused step `sum = x + dropout(y w + b)`: a linear layer, dropout and the addition to the residual stream. Without
/// dropout, the product accumulates into a copy of the stream.
#[derive(Debug)]
pub(crate) struct ResidualLinear {
    linear: LinearTape,
    add: Add,
    mask: Option<DropoutMask>,
}

impl ResidualLinear {
    pub(crate) fn new(linear: &Linear, drop: Option<&ApplyDropout>, add: &Add, setup: &TrainSetup<'_>) -> Self {
        let mask = drop.map(|drop| DropoutMask::new(setup, drop.site, setup.net.cols(drop.y)));
        Self { linear: LinearTape::new(linear, setup), add: add.clone(), mask }
    }
}

impl TrainOp for ResidualLinear {
    fn forward(&mut self, pass: &mut TrainPass<'_>) {
        let t = pass.t;
        let bias = self.linear.op.bias.map(|bias| pass.weights.param(bias));
        if let (Some(masks), Some(mask)) = (pass.dropout, &mut self.mask) {
            self.linear.multiply(pass, self.add.sum, bias.map_or(Accumulate::Zero, Accumulate::Row));
            let (x, sum) = pass.values.pair(self.add.x, self.add.sum, &mut pass.scratch.rows);
            mask.draw(pass.level, masks, t, sum.cols);
            mask.apply(masks, t, sum);
            sum.add(x.rows(), t);
            return;
        }
        let (x, sum) = pass.values.pair(self.add.x, self.add.sum, &mut pass.scratch.rows);
        sum.copy_from(x.rows(), t);
        if let Some(bias) = bias {
            for i in 0..t {
                sum.row_mut(i).iter_mut().zip(bias).for_each(|(sum, b)| *sum += b);
            }
        }
        self.linear.multiply(pass, self.add.sum, Accumulate::Add);
    }

    /// The gradients of `x` and of the sum are the same and share a buffer.
    fn backward(&mut self, pass: &mut TrainPass<'_>) {
        let (d_sum, dy) = pass.grads.pair(self.add.sum, self.linear.op.y, &mut pass.scratch.rows);
        dy.copy_from(d_sum.rows(), pass.t);
        if let (Some(masks), Some(mask)) = (pass.dropout, &self.mask) {
            mask.apply(masks, pass.t, dy);
        }
        self.linear.input_grad(pass);
    }

    fn add_vector_grads(&self, layout: &ParamLayout, grads: &mut [f32]) {
        self.linear.add_vector_grads(layout, grads);
    }
}

/// `x @ w + b` over the last dimension: `(.., in)`, `(in, out)`, `(out)` to `(.., out)`. Operands are rounded to
/// `precision`, in the products of the backward pass too.
///
/// All rows are one product, forward and backward. candle's own gradient of a broadcast product would compute a weight
/// gradient for each row of the batch, and sum those.
///
/// # Errors
/// On a shape mismatch.
pub fn linear(x: &Tensor, w: &Tensor, b: Option<&Tensor>, precision: Precision) -> Result<Tensor> {
    linear_rounded(x, (w, None), b, precision)
}

/// [`linear()`] with the matrix as an operand of products, where the caller has it rounded already.
pub(super) fn linear_rounded(
    x: &Tensor,
    (w, rounded): (&Tensor, Option<&Tensor>),
    b: Option<&Tensor>,
    precision: Precision,
) -> Result<Tensor> {
    let n_out = w.dim(1)?;
    let mut shape = x.dims().to_vec();
    shape.pop();
    shape.push(n_out);
    let operand = rounded.unwrap_or(w);
    let y = product(x, operand, precision)?.reshape(shape)?; // (N, out) to (.., out)
    let (inputs, of_weight) = ((x.clone(), operand.clone()), w.dtype());
    tape::record("linear", [x, w], &y, move |dy| {
        let (x, w) = (&inputs.0, &inputs.1);
        let (n_in, dtype) = (w.dim(0)?, x.dtype());
        let w = &to_operand_view(w, precision)?;
        let x_rows = &to_operand(&x.reshape(((), n_in))?, precision)?; // (.., in) to (N, in)
        let dy = &to_operand(&dy.reshape(((), n_out))?, precision)?; // (.., out) to (N, out)
        let dx = upcast(&count_launch(dy.matmul(&w.t()?))?, dtype)?.reshape(x.shape())?; // (N, in) to (.., in)
        Ok([dx, weight_grad(x_rows, dy, of_weight)?])
    });
    add_bias(y, b)
}

/// The gradient `(in, out)` of a matrix in its own type, from the rows `x (N, in)` that it was multiplied with and `dy (N, out)`. On
/// CUDA products of 16 bits give it without rounding it to 16 bits first.
fn weight_grad(x: &Tensor, dy: &Tensor, dtype: DType) -> candle_core::Result<Tensor> {
    if x.dtype() != dtype
        && dtype == DType::F32
        && let Some((kernels, _)) = kernels_for_values(dy)
    {
        let dw = kernels.output((x.dim(1)?, dy.dim(1)?), dtype)?;
        return count_launch(kernels.product(&x.t()?, dy, &dw, false).map(|()| dw));
    }
    upcast(&count_launch(x.t()?.matmul(dy))?, dtype)
}

/// The product of `x (.., in)` and `w (in, out)`: `(N, out)` in the type of `x`.
fn product(x: &Tensor, w: &Tensor, precision: Precision) -> candle_core::Result<Tensor> {
    let rows = to_operand(&x.reshape(((), w.dim(0)?))?, precision)?; // (.., in) to (N, in)
    upcast(&count_launch(rows.matmul(&to_operand_view(w, precision)?))?, x.dtype())
}

/// [`to_operand`] of a matrix that may be a transposed view, which a product reads without a copy.
fn to_operand_view(w: &Tensor, precision: Precision) -> candle_core::Result<Tensor> {
    if precision.dtype().is_some() { to_operand(w, precision) } else { Ok(w.clone()) }
}

/// [`linear()`] for `x (B, T, in)` with one product for each row of the batch, so that no bit of a row's result depends on
/// the other rows. Products are computed in the type of `w`, which may be narrower than that of `x`.
///
/// A single product over `(B * T, in)` would choose its kernel, and so its order of summation, by the number of rows. cuBLAS
/// chooses by the number of products in a batch too (an H100 showed it), so that on CUDA each row's is one by itself.
///
/// # Errors
/// On a shape mismatch.
pub fn linear_by_row(x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
    let (rows, _, n_in) = x.dims3()?;
    let n_out = w.dim(1)?;
    if x.device().is_cuda() && rows > 0 {
        let operand = x.to_dtype(w.dtype())?;
        let y = (0..rows).map(|row| count_launch(operand.narrow(0, row, 1)?.squeeze(0)?.matmul(w))); // (T, out) each
        let y = cat(&y.collect::<candle_core::Result<Vec<_>>>()?)?.reshape((rows, (), n_out))?; // (B * T, out) to (B, T, out)
        return add_bias(y.to_dtype(x.dtype())?, b);
    }
    // y^T = w^T x^T. candle folds a batch that shares its right operand into one product, but not one that shares its left.
    let w = w.t()?.broadcast_as((rows, n_out, n_in))?; // (B, out, in), stride 0 over B
    let y = w.matmul(&x.to_dtype(w.dtype())?.transpose(1, 2)?)?; // (B, out, T)
    add_bias(y.transpose(1, 2)?.contiguous()?.to_dtype(x.dtype())?, b) // (B, T, out)
}

/// f32 matrices as operands of products in 16 bits, rounded in one launch; nothing where there are no kernels for such values.
///
/// # Errors
/// When the device is out of memory.
pub(crate) fn round_matrices(matrices: &[&Tensor], dtype: DType) -> Result<Option<Vec<Tensor>>> {
    match kernels_for(matrices) {
        Some(kernels) => Ok(Some(elementwise::round_matrices(&kernels, matrices, dtype)?)),
        None => Ok(None),
    }
}

/// Adds a bias `(out)` to each row of `y (.., out)`.
pub(super) fn add_bias(y: Tensor, b: Option<&Tensor>) -> Result<Tensor> {
    Ok(match b {
        Some(b) => {
            let sum = match kernels_for_values(&y) {
                Some((kernels, element)) if b.dtype() == DType::F32 => {
                    elementwise::add_bias(&kernels, (&y, element), &b.contiguous()?)?
                }
                _ => count_launch(y.broadcast_add(b))?,
            };
            tape::record("bias", [&y, b], &sum, |dy| Ok([dy.clone(), sum_rows(dy)?]));
            sum
        }
        None => y,
    })
}
