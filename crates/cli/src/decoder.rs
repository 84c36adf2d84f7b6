//! The fastest decoder of a device.

use candle_core::{DType, Device};
use tinygpt_model::{
    ContextPolicy, Decoder, GptConfig, TensorDecoder,
    cpu::{CpuDecoder, WeightFormat},
};

use crate::output::Usage;

/// A decoder of the model with these parameter values (in parameter order).
pub fn open<'a>(
    config: &GptConfig,
    params: &[&'a [f32]],
    window: ContextPolicy,
    format: WeightFormat,
    device: &Device,
) -> anyhow::Result<Box<dyn Decoder + 'a>> {
    if device.is_cpu() {
        return Ok(Box::new(CpuDecoder::new(config, params, window, format)?));
    }
    let weights = match format {
        WeightFormat::F32 => DType::F32,
        WeightFormat::Bf16 => DType::BF16,
        WeightFormat::Int8 => {
            return Err(Usage("--weights int8 is for --device cpu; on a GPU, use bf16 or f32".into()).into());
        }
    };
    let params: Vec<Vec<f32>> = params.iter().map(|values| values.to_vec()).collect();
    Ok(Box::new(TensorDecoder::new(config, &params, window, weights, device)?))
}
