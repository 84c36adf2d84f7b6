//! The fastest decoder of a device.

use candle_core::{DType, Device};

use crate::{
    BatchDecoder, ContextPolicy, Decoder, GptConfig, ModelError, Result, TensorDecoder,
    batch_decode::LoneDecoders,
    cpu::{CpuBatchDecoder, CpuDecoder, WeightFormat},
    tensors,
};

/// A decoder of the model with these parameter values (in parameter order): [`CpuDecoder`] on the CPU,
/// [`TensorDecoder`] elsewhere.
///
/// # Errors
/// [`ModelError::IntegersOnGpu`]; when the values do not match the configuration or the device is out of memory.
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
    TensorDecoder::new(config, &params, window, stored_type(format)?, device)
}

/// A decoder of up to `slots` texts side by side of the model with these parameter values (in parameter order):
/// [`CpuBatchDecoder`] on the CPU, and elsewhere a [`TensorDecoder`] for each text over the same weights.
///
/// # Errors
/// As [`open_decoder`].
pub fn open_batch_decoder<'a>(
    config: &GptConfig,
    params: &[&'a [f32]],
    window: ContextPolicy,
    format: WeightFormat,
    (device, slots): (&Device, usize),
) -> Result<Box<dyn BatchDecoder + 'a>> {
    if device.is_cpu() {
        return Ok(Box::new(CpuBatchDecoder::new(config, params, window, format, slots)?));
    }
    let params = params.iter().map(|values| values.to_vec()).collect();
    tensor_batch_decoder(config, params, window, format, (device, slots))
}

/// The decoders of a GPU over the same weights. The values are dropped once they are there.
pub(super) fn tensor_batch_decoder<'a>(
    config: &GptConfig,
    params: Vec<Vec<f32>>,
    window: ContextPolicy,
    format: WeightFormat,
    (device, slots): (&Device, usize),
) -> Result<Box<dyn BatchDecoder + 'a>> {
    let weights = tensors::decoding_weights(config, &params, stored_type(format)?, device)?;
    let shape = config.clone();
    let open = move || Ok(Box::new(TensorDecoder::over(&shape, &weights, window)?) as Box<dyn Decoder + 'a>);
    Ok(Box::new(LoneDecoders::new(config.vocab_size, slots, Box::new(open))))
}

/// The type in which a GPU stores matrices.
fn stored_type(format: WeightFormat) -> Result<DType> {
    match format {
        WeightFormat::F32 => Ok(DType::F32),
        WeightFormat::Bf16 => Ok(DType::BF16),
        WeightFormat::Int8 | WeightFormat::Int4 => Err(ModelError::IntegersOnGpu),
    }
}
