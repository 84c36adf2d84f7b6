//! Adapters in the CPU engine: the network computes with the effective weights, and the optimizer steps over the adapter.

use tinygpt_model::{Adapter, AdapterShape, adapter::LinearLayer, cpu::ParamLayout};
use tinygpt_sampler::simd::SimdLevel;

use crate::Result;

/// An adapter in training.
#[derive(Debug)]
pub(super) struct CpuLora {
    shape: AdapterShape,
    /// The layout of the adapter's parameters.
    pub(super) layout: ParamLayout,
    /// The adapter, flat.
    values: Vec<f32>,
    /// Its gradients, flat.
    grads: Vec<f32>,
    /// The model's parameters that the adapter changes, as they were without it, with their places in parameter order.
    base: Vec<(usize, Vec<f32>)>,
}

impl CpuLora {
    /// An adapter of a model with these parameters, in parameter order.
    ///
    /// # Errors
    /// When the adapter's values are not of its shape.
    pub(super) fn new(adapter: &Adapter, params: &[Vec<f32>]) -> Result<Self> {
        let Adapter { shape, values } = adapter;
        let layout = ParamLayout::of(shape.specs());
        let mut flat = vec![0.0; layout.len()];
        layout.fill(values, &mut flat)?;
        let base = shape.changed_params().into_iter().map(|param| (param, params[param].clone())).collect();
        Ok(Self { shape: shape.clone(), grads: vec![0.0; flat.len()], values: flat, layout, base })
    }

    /// The adapter as it is now.
    pub(super) fn adapter(&self) -> Adapter {
        Adapter { shape: self.shape.clone(), values: self.layout.split(&self.values) }
    }

    /// Puts the values without the adapter into parameters given in parameter order.
    pub(super) fn restore_base(&self, params: &mut [Vec<f32>]) {
        for (param, base) in &self.base {
            params[*param].clone_from(base);
        }
    }

    /// Runs `step(layout, values, grads)` on the adapter, with its gradients by those of the model's flat parameters, which
    /// are zeroed, and forms the effective weights anew.
    ///
    /// # Errors
    /// That of the step.
    pub(super) fn step<R>(
        &mut self,
        level: SimdLevel,
        model: &ParamLayout,
        params: &mut [f32],
        grads: &mut [f32],
        step: impl FnOnce(&ParamLayout, &mut [f32], &mut [f32]) -> Result<R>,
    ) -> Result<R> {
        self.gradients(level, model, grads);
        grads.fill(0.0);
        let done = step(&self.layout, &mut self.values, &mut self.grads)?;
        self.merge(level, model, params);
        Ok(done)
    }

    /// Forms the effective weights in the model's flat parameters.
    pub(super) fn merge(&self, level: SimdLevel, model: &ParamLayout, params: &mut [f32]) {
        for (param, base) in &self.base {
            params[model.ranges[*param].clone()].copy_from_slice(base);
        }
        for (layer, [a, b]) in self.layers() {
            let (a, b) = (&self.values[a], &self.values[b]);
            self.shape.product(layer, a, b).add_to(level, &mut params[model.ranges[layer.param].clone()]);
        }
    }

    /// Computes the adapter's gradients.
    fn gradients(&mut self, level: SimdLevel, model: &ParamLayout, grads: &[f32]) {
        let mut own = std::mem::take(&mut self.grads);
        for (layer, [a, b]) in self.layers() {
            let product = self.shape.product(layer, &self.values[a.clone()], &self.values[b.clone()]);
            let (d_a, d_b) = own.split_at_mut(b.start);
            product.gradients(level, &grads[model.ranges[layer.param].clone()], &mut d_a[a], &mut d_b[..b.len()]);
        }
        self.grads = own;
    }

    /// Each layer, with the ranges of its `A` and `B` in the flat values.
    fn layers(&self) -> impl Iterator<Item = (&LinearLayer, [std::ops::Range<usize>; 2])> {
        self.shape.layers.iter().zip(self.layout.ranges.as_chunks::<2>().0).map(|(layer, pair)| (layer, pair.clone()))
    }
}
