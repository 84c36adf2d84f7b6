//! The fastest decoder of a device.

use candle_core::{DType, Device};

use crate::{
    ContextPolicy, Decoder, GptConfig, ModelError, Result, TensorDecoder,
    cpu::{CpuDecoder, WeightFormat},
};

/// A decoder of the model with these parameter values (in parameter order): [`CpuDecoder`] on the CPU,
/// [`TensorDecoder`] elsewhere.
///
/// # Errors
/// [`ModelError::Int8OnGpu`]; when the values do not match the configuration or the device is out of memory.
pub fn open_decoder<'a>(
    config: &GptConfig,
    params: &[&'a [f32]],
    window: ContextPolicy,
    format: WeightFormat,
    device: &Device,
) -> Result<Box<dyn Decoder + 'a>> {
    if device.is_cpu() {
        return Ok(Box::new(CpuDecoder::new(config, params, window, format)?));
    }
    let params = params.iter().map(|values| values.to_vec()).collect();
    Ok(Box::new(tensor_decoder(config, params, window, format, device)?))
}

/// The decoder of a GPU. The values are dropped once they are there.
pub(super) fn tensor_decoder(
    config: &GptConfig,
    params: Vec<Vec<f32>>,
    window: ContextPolicy,
    format: WeightFormat,
    device: &Device,
) -> Result<TensorDecoder> {
    let weights = match format {
        WeightFormat::F32 => DType::F32,
        WeightFormat::Bf16 => DType::BF16,
        WeightFormat::Int8 => return Err(ModelError::Int8OnGpu),
    };
    TensorDecoder::new(config, &params, window, weights, device)
}
