//! Adapters in the engine of tensor operations.

use candle_core::{DType, Device, Tensor, Var};
use tinygpt_model::{
    Adapter, AdapterShape,
    adapter::LinearLayer,
    ops::{cat_last, count_launch},
};

use super::FlatParams;
use crate::Result;

/// An adapter in training, on the device.
#[derive(Debug)]
pub(super) struct TensorLora {
    shape: AdapterShape,
    /// The layout of the adapter's parameters.
    pub(super) flat: FlatParams,
    /// `A` and `B` of each layer.
    pub(super) vars: Vec<Var>,
    /// The model's parameters that the adapter changes, as they were without it, with their places in parameter order.
    base: Vec<(usize, Tensor)>,
}

impl TensorLora {
    /// An adapter of a model with these parameters, in parameter order.
    pub(super) fn new(adapter: &Adapter, params: &[Var], device: &Device) -> Result<Self> {
        let Adapter { shape, values } = adapter;
        let flat = FlatParams::new(shape.specs(), device)?;
        let vars = flat.upload(values)?.iter().map(Var::from_tensor).collect::<candle_core::Result<_>>()?;
        // A copy, since the variable's storage will be written to.
        let base = |param: usize| Ok((param, params[param].as_tensor().copy()?.detach()));
        let base = shape.changed_params().into_iter().map(base).collect::<Result<_>>()?;
        Ok(Self { shape: shape.clone(), flat, vars, base })
    }

    /// The adapter as it is now.
    pub(super) fn adapter(&self) -> Result<Adapter> {
        let values: Vec<Tensor> = self.vars.iter().map(Var::as_detached_tensor).collect();
        Ok(Adapter { shape: self.shape.clone(), values: self.flat.read(&self.flat.join(&values)?)? })
    }

    /// Puts the values without the adapter into parameters given in parameter order.
    pub(super) fn restore_base(&self, params: &mut [Vec<f32>]) -> Result<()> {
        for (param, base) in &self.base {
            params[*param] = base.flatten_all()?.to_vec1()?;
        }
        Ok(())
    }

    /// The gradients of the adapter by those of the model's parameters, in parameter order: `scale (dW B)^T` and
    /// `scale dW^T A^T`.
    pub(super) fn gradients(&self, grads: &[Tensor]) -> Result<Vec<Tensor>> {
        let scale = f64::from(self.shape.scale());
        let mut of_adapter = Vec::with_capacity(self.vars.len());
        for (layer, [a, b]) in self.layers() {
            let LinearLayer { param, first_column, n_out, .. } = *layer;
            // (in, columns) to (in, out) to (out, in)
            let d_weights = grads[param].to_dtype(DType::F32)?.narrow(1, first_column, n_out)?;
            let d_weights = count_launch(d_weights.t()?.contiguous())?;
            let scaled = |product: Tensor| count_launch(product.affine(scale, 0.0));
            of_adapter.push(scaled(count_launch(b.t()?.contiguous()?.matmul(&d_weights))?)?); // (rank, in)
            of_adapter.push(scaled(count_launch(d_weights.matmul(&a.t()?.contiguous()?))?)?); // (out, rank)
        }
        Ok(of_adapter)
    }

    /// Forms the effective weights in the model's parameters.
    pub(super) fn merge(&self, params: &[Var]) -> Result<()> {
        let scale = f64::from(self.shape.scale());
        for (param, base) in &self.base {
            let (n_in, columns) = base.dims2()?;
            // The products of the layers that lie side by side in the parameter, with zeros for those without an adapter.
            let (mut parts, mut end) = (Vec::new(), 0);
            let zeros = |n: usize| Tensor::zeros((n_in, n), DType::F32, base.device());
            for (layer, [a, b]) in self.layers().filter(|(layer, _)| layer.param == *param) {
                if layer.first_column > end {
                    parts.push(zeros(layer.first_column - end)?);
                }
                // (in, rank) by (rank, out)
                let product = count_launch(a.t()?.contiguous()?.matmul(&b.t()?.contiguous()?))?;
                parts.push(count_launch(product.affine(scale, 0.0))?);
                end = layer.first_column + layer.n_out;
            }
            if columns > end {
                parts.push(zeros(columns - end)?);
            }
            let weights = count_launch(base + cat_last(&parts)?)?;
            count_launch(params[*param].set(&weights))?; // a copy
        }
        Ok(())
    }

    /// Each layer, with its `A (rank, in)` and `B (out, rank)`.
    fn layers(&self) -> impl Iterator<Item = (&LinearLayer, [Tensor; 2])> {
        let pairs = self.vars.as_chunks::<2>().0.iter();
        self.shape.layers.iter().zip(pairs.map(|pair| pair.each_ref().map(Var::as_detached_tensor)))
    }
}
