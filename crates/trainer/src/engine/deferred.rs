//! Numbers that an engine has computed, but may not have read back from its device.

use candle_core::Tensor;

use crate::Result;

/// A number. To read one from a GPU is to wait for all that the GPU has been asked for: a synchronisation.
#[derive(Debug, Clone)]
pub enum DeferredScalar {
    /// A number on the host.
    Known(f64),
    /// A scalar in f32 on a device.
    OnDevice(Tensor),
}

impl DeferredScalar {
    /// Whether reading it is free.
    pub fn is_known(&self) -> bool {
        matches!(self, Self::Known(_))
    }

    /// The number. Waits for the device.
    ///
    /// # Errors
    /// When the device fails.
    pub fn read(&self) -> Result<f64> {
        match self {
            Self::Known(value) => Ok(*value),
            Self::OnDevice(scalar) => Ok(f64::from(scalar.to_scalar::<f32>()?)),
        }
    }

    /// The numbers. Waits for the device once, or not at all if all of them are known.
    ///
    /// # Errors
    /// When the device fails.
    pub fn read_all<'a>(figures: impl IntoIterator<Item = &'a DeferredScalar>) -> Result<Vec<f64>> {
        let mut scalars = Vec::new();
        let places: Vec<std::result::Result<f64, usize>> = figures
            .into_iter()
            .map(|figure| match figure {
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
        let figures = [DeferredScalar::Known(0.1), on_device(2.5), DeferredScalar::Known(3.0), on_device(-4.0)];
        assert_eq!(DeferredScalar::read_all(&figures).unwrap(), [0.1, 2.5, 3.0, -4.0]);
        assert!(DeferredScalar::read_all(&[]).unwrap().is_empty());
        assert_eq!(figures[1].read().unwrap(), 2.5);
    }
}
