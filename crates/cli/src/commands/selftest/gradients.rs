//! What an operation computes on a device, with the gradients of its inputs.

use candle_core::{DType, Tensor};
use tinygpt_model::ops::Tape;
use tinygpt_sampler::{RngDomain, philox_at, unit_f64};

/// `n` numbers between -1 and 1, another sequence for each `stream`.
pub fn numbers(stream: u32, n: usize) -> Vec<f32> {
    let number = |i: usize| {
        let [low, high, ..] = philox_at(0, RngDomain::Noise, i as u64, stream);
        (2.0 * unit_f64(low, high) - 1.0) as f32
    };
    (0..n).map(number).collect()
}

/// The result of `op`, then the gradients of the `inputs` that it reads, for the sum of the result by fixed weights, all in f32.
pub fn with_gradients(inputs: &[Tensor], op: impl FnOnce() -> anyhow::Result<Tensor>) -> anyhow::Result<Vec<Vec<f32>>> {
    let (y, tape) = Tape::record(inputs, op);
    let y = y?;
    let values = |x: &Tensor| x.to_dtype(DType::F32)?.flatten_all()?.to_vec1();
    let weights = Tensor::from_vec(numbers(99, y.elem_count()), y.shape(), y.device())?.to_dtype(y.dtype())?;
    let mut gradients = tape.backward(&y, weights)?;
    let mut found = vec![values(&y)?];
    for (i, input) in inputs.iter().enumerate() {
        let gradient = gradients.take(input).ok_or_else(|| anyhow::anyhow!("input {i} has no gradient"))?;
        found.push(values(&gradient)?);
    }
    Ok(found)
}
