//! The fastest decoder of a device.

use candle_core::{DType, Device};

use crate::{
    BatchDecoder, ContextPolicy, Decoder, GptConfig, ModelError, Result, TensorDecoder,
    batch_decode::LoneDecoders,
    cpu::{CpuBatchDecoder, CpuDecoder, DecodeFormats, KvCacheFormat, WeightFormat},
    tensors,
};

/// A decoder of the model with these parameter values (in parameter order): [`CpuDecoder`] on the CPU,
/// [`TensorDecoder`] elsewhere.
///
/// # Errors
/// [`ModelError::IntegersOnGpu`], [`ModelError::KvCacheOnGpu`]; when the values do not match the configuration or the
/// device is out of memory.
pub fn open_decoder<'a>(
    config: &GptConfig,
    params: &[&'a [f32]],
    window: ContextPolicy,
    formats: impl Into<DecodeFormats>,
    device: &Device,
) -> Result<Box<dyn Decoder + 'a>> {
    if device.is_cpu() {
        return Ok(Box::new(CpuDecoder::new(config, params, window, formats)?));
    }
    let params = params.iter().map(|values| values.to_vec()).collect();
    Ok(Box::new(tensor_decoder(config, params, window, formats.into(), device)?))
}

/// The decoder of a GPU. The values are dropped once they are there.
pub(super) fn tensor_decoder(
    config: &GptConfig,
    params: Vec<Vec<f32>>,
    window: ContextPolicy,
    formats: DecodeFormats,
    device: &Device,
) -> Result<TensorDecoder> {
    TensorDecoder::new(config, &params, window, stored_type(formats)?, device)
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
    formats: impl Into<DecodeFormats>,
    (device, slots): (&Device, usize),
) -> Result<Box<dyn BatchDecoder + 'a>> {
    if device.is_cpu() {
        return Ok(Box::new(CpuBatchDecoder::new(config, params, window, formats, slots)?));
    }
    let params = params.iter().map(|values| values.to_vec()).collect();
    tensor_batch_decoder(config, params, window, formats.into(), (device, slots))
}

/// The decoders of a GPU over the same weights. The values are dropped once they are there.
pub(super) fn tensor_batch_decoder<'a>(
    config: &GptConfig,
    params: Vec<Vec<f32>>,
    window: ContextPolicy,
    formats: DecodeFormats,
    (device, slots): (&Device, usize),
) -> Result<Box<dyn BatchDecoder + 'a>> {
    let weights = tensors::decoding_weights(config, &params, stored_type(formats)?, device)?;
    let shape = config.clone();
    let open = move || Ok(Box::new(TensorDecoder::over(&shape, &weights, window)?) as Box<dyn Decoder + 'a>);
    Ok(Box::new(LoneDecoders::new(config.vocab_size, slots, Box::new(open))))
}

/// The type in which a GPU stores matrices. Its caches are in f32.
fn stored_type(formats: DecodeFormats) -> Result<DType> {
    if formats.kv_cache != KvCacheFormat::F32 {
        return Err(ModelError::KvCacheOnGpu);
    }
    match formats.weights {
        WeightFormat::F32 => Ok(DType::F32),
        WeightFormat::Bf16 => Ok(DType::BF16),
        WeightFormat::Int8 | WeightFormat::Int4 => Err(ModelError::IntegersOnGpu),
    }
}
