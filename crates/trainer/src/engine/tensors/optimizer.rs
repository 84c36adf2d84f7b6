//! An optimizer step in tensor operations, over all parameters at once and without reading anything back: clipping, loss
//! scaling in f16, and the update rule.

use std::{ops::Range, sync::Arc};

use candle_core::{DType, Device, Tensor};
use tinygpt_model::{
    ParamSpec,
    ops::{cat, count_launch},
    params::check_values,
};

use super::super::{LossScaling, Optimizer, TensorStep, TensorUpdate};
use crate::Result;

/// The length of a row in the reductions of a flat tensor. A GPU reduces rows in parallel, but a single row on one
/// multiprocessor.
const ROW: usize = 1024;

/// The number of consecutive applied steps after which the loss scale is doubled, as in PyTorch's `GradScaler`.
const GROWTH_INTERVAL: f64 = 2000.0;

/// The layout of a flat tensor `(P)` of all parameters in their order, padded with zeros to whole rows.
#[derive(Debug)]
pub(super) struct FlatParams {
    pub(super) specs: Vec<ParamSpec>,
    /// The elements of each parameter.
    pub(super) ranges: Vec<Range<usize>>,
    /// The zeros at the end; none where the parameters fill whole rows, since a device without memory pools refuses to
    /// allocate nothing.
    padding: Option<Tensor>,
    device: Device,
}

impl FlatParams {
    pub(super) fn new(specs: Vec<ParamSpec>, device: &Device) -> Result<Self> {
        let mut len = 0;
        let ranges: Vec<Range<usize>> = specs
            .iter()
            .map(|spec| {
                len += spec.len();
                len - spec.len()..len
            })
            .collect();
        let padding = match len.next_multiple_of(ROW) - len {
            0 => None,
            zeros => Some(Tensor::zeros(zeros, DType::F32, device)?),
        };
        Ok(Self { specs, ranges, padding, device: device.clone() })
    }

    /// The parameters, with the ranges of their elements in a flat tensor.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&ParamSpec, &Range<usize>)> {
        self.specs.iter().zip(&self.ranges)
    }

    pub(super) fn zeros(&self) -> Result<Tensor> {
        let len = self.ranges.last().map_or(0, |range| range.end).next_multiple_of(ROW);
        Ok(Tensor::zeros(len, DType::F32, &self.device)?)
    }

    /// Copies values in parameter order to the device.
    ///
    /// # Errors
    /// When they are not as many, or as long, as the parameters.
    pub(super) fn upload(&self, values: &[Vec<f32>]) -> Result<Vec<Tensor>> {
        check_values(&self.specs, values)?;
        let tensor =
            |(spec, values): (&ParamSpec, &Vec<f32>)| Tensor::from_slice(values, spec.shape.as_slice(), &self.device);
        Ok(self.specs.iter().zip(values).map(tensor).collect::<candle_core::Result<_>>()?)
    }

    /// Concatenates tensors in parameter order to a flat one, with a copy of each.
    pub(super) fn join(&self, tensors: &[Tensor]) -> Result<Tensor> {
        let mut parts = tensors.iter().map(Tensor::flatten_all).collect::<candle_core::Result<Vec<_>>>()?;
        parts.extend(self.padding.clone());
        Ok(cat(&parts)?)
    }

    /// The parameters' parts of a flat tensor, as flat views.
    pub(super) fn parts(&self, flat: &Tensor) -> Result<Vec<Tensor>> {
        let parts = self.ranges.iter().map(|range| flat.narrow(0, range.start, range.len()));
        Ok(parts.collect::<candle_core::Result<_>>()?)
    }

    /// Copies the parameters' parts of a flat tensor to the host, with one read-back.
    pub(super) fn read(&self, flat: &Tensor) -> Result<Vec<Vec<f32>>> {
        let flat = flat.to_vec1::<f32>()?;
        Ok(self.ranges.iter().map(|range| flat[range.clone()].to_vec()).collect())
    }
}

/// An optimizer with its state on the device.
#[derive(Debug)]
pub(super) struct DeviceOptimizer {
    pub(super) rule: Arc<dyn Optimizer>,
    /// The optimizer's state, flat, in the order of [`Optimizer::slots`].
    pub(super) slots: Vec<Tensor>,
    /// The number of steps so far, skipped ones included.
    pub(super) updates: u64,
    scaling: Option<DeviceLossScaling>,
}

/// [`LossScaling`] in scalars on the device, so that no step waits for whether another was skipped.
#[derive(Debug)]
struct DeviceLossScaling {
    scale: Tensor,
    good: Tensor,
    skipped: Tensor,
    /// 1 if the last step was applied, 0 if it was skipped.
    applied: Tensor,
}

/// A factor, which is on the device where it depends on whether steps were skipped.
pub(super) enum DeferredFactor {
    Known(f64),
    OnDevice(Tensor),
}

impl DeferredFactor {
    pub(super) fn times(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::Known(factor) => count_launch(x.affine(*factor, 0.0)),
            Self::OnDevice(factor) => count_launch(x.broadcast_mul(factor)),
        }
    }
}

impl DeviceOptimizer {
    pub(super) fn new(
        rule: Arc<dyn Optimizer>,
        slots: Vec<Tensor>,
        updates: u64,
        scaling: Option<LossScaling>,
        device: &Device,
    ) -> Result<Self> {
        let scalar = |x: f32| Tensor::new(x, device);
        let scaling = scaling.map(|LossScaling { scale, good, skipped }| -> Result<_> {
            let (good, skipped) = (scalar(good as f32)?, scalar(skipped as f32)?);
            Ok(DeviceLossScaling { scale: scalar(scale)?, good, skipped, applied: scalar(1.0)? })
        });
        Ok(Self { rule, slots, updates, scaling: scaling.transpose()? })
    }

    /// The gradient of each of `losses (N)`, `each` times the loss scale, from which the backward pass starts: `(N)`.
    pub(super) fn loss_gradient(&self, each: f64, losses: &Tensor) -> Result<Tensor> {
        self.scaled(count_launch(Tensor::full(each as f32, losses.dims(), losses.device()))?)
    }

    /// A gradient times the loss scale.
    pub(super) fn scaled(&self, gradient: Tensor) -> Result<Tensor> {
        match &self.scaling {
            Some(scaling) => Ok(count_launch(gradient.broadcast_mul(&scaling.scale))?),
            None => Ok(gradient),
        }
    }

    /// The state of loss scaling, with one read-back.
    pub(super) fn loss_scaling(&self) -> Result<Option<LossScaling>> {
        let Some(DeviceLossScaling { scale, good, skipped, .. }) = &self.scaling else { return Ok(None) };
        let numbers = Tensor::stack(&[scale, good, skipped], 0)?.to_vec1::<f32>()?;
        Ok(Some(LossScaling { scale: numbers[0], good: numbers[1] as u64, skipped: numbers[2] as u64 }))
    }

    /// The factor by which weight decay multiplies matrices of a learning rate in this step: 1 where it is skipped.
    pub(super) fn decay(&self, lr: f64) -> Result<DeferredFactor> {
        let decay = lr * self.rule.weight_decay();
        Ok(match &self.scaling {
            Some(DeviceLossScaling { applied, .. }) => {
                DeferredFactor::OnDevice(count_launch(applied.affine(-decay, 1.0))?)
            }
            None => DeferredFactor::Known(1.0 - decay),
        })
    }

    /// Updates the state with the gradients `grads * mean`, clipped to the global norm `clip`. Returns their norm before
    /// clipping, and what is to be subtracted from the parameters, times the factors of their rates, flat.
    pub(super) fn step(
        &mut self,
        flat: &FlatParams,
        grads: &Tensor,
        mean: f64,
        lr: f64,
        clip: f64,
    ) -> Result<(Tensor, Tensor)> {
        self.updates += 1;
        let squares = count_launch(grads.sqr())?.reshape(((), ROW))?; // (P) to (P / ROW, ROW)
        let squares = count_launch(count_launch(squares.sum(1))?.sum_all())?;
        // The norm of the gradients without the loss scale.
        let mut norm = count_launch(count_launch(squares.sqrt())?.affine(mean, 0.0))?;
        let mut unscale = None;
        if let Some(DeviceLossScaling { scale, .. }) = &self.scaling {
            let inverse = count_launch(scale.recip())?;
            norm = count_launch(norm.mul(&inverse))?;
            unscale = Some(inverse);
        }
        // mean * min(1, clip / norm)
        let mut factor = if clip > 0.0 {
            let ratio = count_launch(count_launch(norm.recip())?.affine(clip, 0.0))?;
            count_launch(count_launch(ratio.minimum(1.0))?.affine(mean, 0.0))?
        } else {
            count_launch(norm.zeros_like()?.affine(1.0, mean))?
        };
        if let Some(inverse) = unscale {
            factor = count_launch(factor.mul(&inverse))?;
        }

        let grads = count_launch(grads.broadcast_mul(&factor))?;
        let applied = self.scaling.as_mut().map(|scaling| scaling.advance(&norm)).transpose()?;
        let bias_corrected =
            |x: &Tensor, beta: f64, factor: f64| -> Result<Tensor> { Ok(self.corrected(beta, factor)?.times(x)?) };
        let FlatParams { specs, ranges, .. } = flat;
        let (slots, bias_corrected) = (&self.slots[..], &bias_corrected);
        let update = TensorUpdate { specs, ranges, grads: &grads, slots, lr, bias_corrected };
        let TensorStep { slots, step } = self.rule.step_tensors(update)?;
        let Some((applied, reported)) = applied else {
            self.slots = slots;
            return Ok((norm, step));
        };
        // Selected, not multiplied, since a skipped step is NaN or infinite.
        let applied = applied.broadcast_as(step.shape())?;
        let chosen = |(new, old): (&Tensor, &Tensor)| count_launch(applied.where_cond(new, old));
        self.slots = slots.iter().zip(&self.slots).map(chosen).collect::<candle_core::Result<_>>()?;
        Ok((reported, count_launch(applied.where_cond(&step, &step.zeros_like()?))?))
    }

    /// The bias correction `factor / (1 - beta^t)` after `t` applied steps.
    fn corrected(&self, beta: f64, factor: f64) -> Result<DeferredFactor> {
        let Some(DeviceLossScaling { skipped, .. }) = &self.scaling else {
            return Ok(DeferredFactor::Known(factor / (1.0 - beta.powf(self.updates as f64))));
        };
        let applied = count_launch(skipped.affine(-1.0, self.updates as f64))?;
        let power = count_launch(count_launch(applied.affine(beta.ln(), 0.0))?.exp())?;
        let inverse = count_launch(count_launch(power.affine(-1.0, 1.0))?.recip())?;
        Ok(DeferredFactor::OnDevice(count_launch(inverse.affine(factor, 0.0))?))
    }
}

/// One of two scalars. They get a dimension for it: candle uploads the dimensions of what it selects from, and a device without
/// memory pools refuses to allocate nothing.
fn select(condition: &Tensor, yes: &Tensor, no: &Tensor) -> candle_core::Result<Tensor> {
    count_launch(condition.reshape(1)?.where_cond(&yes.reshape(1)?, &no.reshape(1)?))?.reshape(())
}

impl DeviceLossScaling {
    /// Returns whether a step with this norm is applied (a U8 scalar), and the norm to report: 0 for a skipped step, except
    /// at scale 1, where the gradients themselves overflow.
    ///
    /// The scale is halved at a skipped step, and doubled after [`GROWTH_INTERVAL`] applied ones in a row.
    fn advance(&mut self, norm: &Tensor) -> Result<(Tensor, Tensor)> {
        // A comparison with NaN is false.
        let good = count_launch(norm.lt(f32::INFINITY))?;
        let applied = count_launch(good.to_dtype(DType::F32))?;
        let excused = count_launch(self.scale.gt(1f32))?;
        let zero = norm.zeros_like()?;
        let reported = select(&good, norm, &select(&excused, &zero, norm)?)?;

        let run = count_launch(count_launch(self.good.affine(1.0, 1.0))?.mul(&applied))?;
        let full = count_launch(count_launch(run.ge(GROWTH_INTERVAL as f32))?.to_dtype(DType::F32))?;
        let factor = count_launch(count_launch(applied.affine(0.5, 0.5))?.mul(&count_launch(full.affine(1.0, 1.0))?))?;
        self.scale = count_launch(self.scale.mul(&factor))?;
        self.good = count_launch(run.mul(&count_launch(full.affine(-1.0, 1.0))?))?;
        self.skipped = count_launch(&self.skipped + count_launch(applied.affine(-1.0, 1.0))?)?;
        self.applied = applied;
        Ok((good, reported))
    }
}

#[cfg(test)]
mod tests {
    use tinygpt_model::{GptConfig, param_specs};

    use super::*;

    #[test]
    fn a_flat_tensor_has_whole_rows_and_no_empty_padding() {
        let mut specs = param_specs(&GptConfig::default());
        specs.truncate(1);
        for (len, padding) in [(1, Some(1023)), (1023, Some(1)), (1024, None), (2048, None), (1025, Some(1023))] {
            specs[0].shape = vec![len];
            let flat = FlatParams::new(specs.clone(), &Device::Cpu).unwrap();
            assert_eq!(flat.padding.as_ref().map(Tensor::elem_count), padding, "{len}");
            let joined = flat.join(&[Tensor::ones(len, DType::F32, &Device::Cpu).unwrap()]).unwrap();
            assert_eq!(joined.dims(), flat.zeros().unwrap().dims());
            assert_eq!(flat.read(&joined).unwrap(), [vec![1.0; len]]);
        }
    }
}
