//! The linear layer.

use candle_core::Tensor;

use super::{
    add_bias,
    custom_grad::{count_launch, operand, widened, with_gradients},
};
use crate::{Precision, Result};

/// `x @ w + b` over the last dimension: `(.., in)`, `(in, out)`, `(out)` to `(.., out)`. Operands are rounded to
/// `precision`, in the products of the backward pass too.
///
/// All rows are one product, forward and backward: candle's gradient of a broadcast product would be one matrix of
/// weights for each row of the batch, added up afterwards.
///
/// # Errors
/// On a shape mismatch.
pub fn linear(x: &Tensor, w: &Tensor, b: Option<&Tensor>, precision: Precision) -> Result<Tensor> {
    let n_out = w.dim(1)?;
    let mut shape = x.dims().to_vec();
    shape.pop();
    shape.push(n_out);
    let y = product(&x.detach(), &w.detach(), precision)?.reshape(shape)?; // (N, out) to (.., out)
    let y = with_gradients("linear", (x, w), y, move |(x, w), _, dy| {
        let (n_in, dtype) = (w.dim(0)?, x.dtype());
        let w = &operand_view(w, precision)?;
        let x_rows = &operand(&x.reshape(((), n_in))?, precision)?; // (.., in) to (N, in)
        let dy = &operand(&dy.reshape(((), n_out))?, precision)?; // (.., out) to (N, out)
        let dx = widened(&count_launch(dy.matmul(&w.t()?))?, dtype)?.reshape(x.shape())?; // (N, in) to (.., in)
        let dw = widened(&count_launch(x_rows.t()?.matmul(dy))?, dtype)?; // (in, out)
        Ok((dx, dw))
    })?;
    add_bias(y, b)
}

/// `(.., in)` and `(in, out)` to `(N, out)`, in the type of `x`.
fn product(x: &Tensor, w: &Tensor, precision: Precision) -> candle_core::Result<Tensor> {
    let rows = operand(&x.reshape(((), w.dim(0)?))?, precision)?; // (.., in) to (N, in)
    widened(&count_launch(rows.matmul(&operand_view(w, precision)?))?, x.dtype())
}

/// [`operand`] of a matrix that may be transposed: products read it as it lies.
fn operand_view(w: &Tensor, precision: Precision) -> candle_core::Result<Tensor> {
    if precision.dtype().is_some() { operand(w, precision) } else { Ok(w.clone()) }
}
