//! The fastest decoder of a device.

use candle_core::Device;
use tinygpt_model::{
    ComposedDecoder, Decoder, GptConfig, Window,
    cpu::{CpuDecoder, WeightFormat},
};

use crate::output::Usage;

/// A decoder of the model with these parameter values (in parameter order).
pub fn open<'a>(
    config: &GptConfig,
    params: &[&'a [f32]],
    window: Window,
    format: WeightFormat,
    device: &Device,
) -> anyhow::Result<Box<dyn Decoder + 'a>> {
    if device.is_cpu() {
        return Ok(Box::new(CpuDecoder::new(config, params, window, format)?));
    }
    if format != WeightFormat::F32 {
        return Err(Usage("--weights bf16 and int8 are for --device cpu".into()).into());
    }
    let params: Vec<Vec<f32>> = params.iter().map(|values| values.to_vec()).collect();
    Ok(Box::new(ComposedDecoder::new(config, &params, window, device)?))
}
