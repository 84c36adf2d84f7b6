//! A look at a network before it is trained.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use tinygpt_model::{Gpt, GptConfig, Inspection, init_params, ops::Tokens, params};

use crate::{Dataset, Result, config::RunConfig, engine, run::check_memory, train::check_data};

/// How activations, weights and gradients of a configuration's network are spread at its start, for the first batch that
/// training would see, and the shape of the network. Computed by tensor operations on any device, and nothing is written but
/// the tokens of the corpus to `cache_dir`.
///
/// # Errors
/// When the configuration, the corpus, the device or the memory does not allow it.
pub fn inspect(config: RunConfig, cache_dir: &Path, device: &Device) -> Result<(GptConfig, Inspection)> {
    let config = config.resolved()?;
    engine::check_precision(config.train.precision, device)?;
    check_memory(&config, 1, None, device)?;
    let data = Dataset::load(&config.data, config.seed, None, cache_dir)?;
    check_data(&config, &data)?;
    let gpt = config.gpt(data.tokenizer.vocab_size());
    check_memory(&config, gpt.vocab_size, None, device)?;
    let batch = data.train.random_batch(config.train.batch_size, gpt.block_size, config.seed, 0)?;
    let weights = params::to_tensors(&gpt, &init_params(&gpt, config.seed), DType::F32, device)?;
    let model = Gpt::new(&gpt, &weights)?.with_precision(config.train.precision);
    let tokens = Tokens::new(&batch.ids, batch.rows, batch.cols, gpt.vocab_size, device)?;
    let targets = Tensor::from_slice(&batch.targets, batch.targets.len(), device)?;
    let inspection = model.inspect(&tokens, &targets)?;
    Ok((gpt, inspection))
}
