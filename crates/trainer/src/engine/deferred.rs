//! Scalars that an engine has computed, but may not have read back from its device.

use candle_core::Tensor;

use crate::Result;

/// A scalar that may still be on a device. Reading one from a GPU is a synchronisation: it waits for all queued work.
#[derive(Debug, Clone)]
pub enum DeferredScalar {
    /// A number on the host.
    Known(f64),
    /// A scalar in f32 on a device.
    OnDevice(Tensor),
}

impl DeferredScalar {
    /// Whether it is on the host, so that reading it does not wait.
    pub fn is_known(&self) -> bool {
        matches!(self, Self::Known(_))
    }

    /// Reads the number. Waits for the device.
    ///
    /// # Errors
    /// When the device fails.
    pub fn read(&self) -> Result<f64> {
        match self {
            Self::Known(value) => Ok(*value),
            Self::OnDevice(scalar) => Ok(f64::from(scalar.to_scalar::<f32>()?)),
        }
    }

    /// Reads all numbers in order. Waits for the device once, or not at all if all are known.
    ///
    /// # Errors
    /// When the device fails.
    pub fn read_all<'a>(deferred: impl IntoIterator<Item = &'a DeferredScalar>) -> Result<Vec<f64>> {
        let mut scalars = Vec::new();
        let places: Vec<std::result::Result<f64, usize>> = deferred
            .into_iter()
            .map(|scalar| match scalar {
                Self::Known(value) => Ok(*value),
                Self::OnDevice(scalar) => {
                    scalars.push(scalar);
                    Err(scalars.len() - 1)
                }
            })
            .collect();
        let read = if scalars.is_empty() { Vec::new() } else { Tensor::stack(&scalars, 0)?.to_vec1::<f32>()? };
        Ok(places.into_iter().map(|place| place.unwrap_or_else(|at| f64::from(read[at]))).collect())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn known_and_unread_figures_come_back_in_their_order() {
        let on_device = |x: f32| DeferredScalar::OnDevice(Tensor::new(x, &Device::Cpu).unwrap());
        let deferred = [DeferredScalar::Known(0.1), on_device(2.5), DeferredScalar::Known(3.0), on_device(-4.0)];
        assert_eq!(DeferredScalar::read_all(&deferred).unwrap(), [0.1, 2.5, 3.0, -4.0]);
        assert!(DeferredScalar::read_all(&[]).unwrap().is_empty());
        assert_eq!(deferred[1].read().unwrap(), 2.5);
    }
}
