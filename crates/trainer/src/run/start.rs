//! The weights that a run starts with: random ones, or those of a model; and an adapter over them.

use tinygpt_model::{Adapter, AdapterShape, GptConfig, init_params};

use super::{InitialModel, LoopState, RunDir, initial::weights_sha256};
use crate::{
    Result, TrainError,
    config::{ConfigError, RunConfig},
    engine::EngineState,
};

/// Refuses a configuration that contradicts the model to start from, and an adapter over random weights.
pub(super) fn check_init(config: &RunConfig, init_from: Option<&InitialModel>) -> Result<()> {
    match init_from {
        Some(model) => Ok(config.check_base(&model.defaults())?),
        None if config.lora.rank > 0 => {
            let (key, value) = ("lora.rank".into(), config.lora.rank.to_string());
            let reason = "an adapter is trained over the weights of a model: give one to start from (--init-from DIR)";
            Err(ConfigError::Range { key, value, reason: reason.into() }.into())
        }
        None => Ok(()),
    }
}

/// The state before the first update. Where the weights come from goes to the state of the loop.
pub(super) fn weights(
    config: &RunConfig,
    gpt: &GptConfig,
    init_from: Option<&InitialModel>,
    state: &mut LoopState,
) -> Result<EngineState> {
    let Some(model) = init_from else { return Ok(EngineState::fresh(init_params(gpt, config.seed))) };
    let shape = config.lora.shape(gpt)?;
    shape.iter().try_for_each(|shape| shape.check_queries(model.queries_are_scaled))?;
    let adapter = shape.map(|shape| Adapter { values: shape.initial_values(config.seed), shape });
    let params = model.read_weights(gpt)?;
    state.init_from = Some(model.origin(&params));
    Ok(EngineState { adapter, ..EngineState::fresh(params) })
}

/// Writes the model that an adapter is for into the run, which needs it to go on.
pub(super) fn write_base(dir: &RunDir, gpt: &GptConfig, weights: &EngineState) -> Result<()> {
    if weights.adapter.is_none() {
        return Ok(());
    }
    let (base, model) = (dir.base(), dir.model());
    std::fs::create_dir_all(base.path()).map_err(TrainError::io("create", base.path()))?;
    base.write_description(gpt, &model.read_tokenizer()?, &model.read_generation_defaults()?)?;
    Ok(base.write_weights(gpt, &weights.params)?)
}

/// The shape of the adapter of a run that goes on, with the parameters of the model that it is for; `None` where it trains none.
pub(super) fn base_of_adapter(
    dir: &RunDir,
    config: &RunConfig,
    gpt: &GptConfig,
    state: &LoopState,
) -> Result<Option<(AdapterShape, Vec<Vec<f32>>)>> {
    let Some(shape) = config.lora.shape(gpt)? else { return Ok(None) };
    let params = dir.base().read_weights(gpt)?;
    let started_with = state.init_from.as_ref().map(|origin| &origin.weights_sha256);
    if started_with != Some(&weights_sha256(&params)) {
        let (path, reason) =
            (dir.base().path().to_owned(), "its weights are not those that the run started from".into());
        return Err(TrainError::InitialModel { path, reason });
    }
    Ok(Some((shape, params)))
}
