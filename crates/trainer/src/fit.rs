//! Training in memory: no folder, and nothing on disk.

use std::sync::atomic::AtomicBool;

use candle_core::Device;
use tinygpt_model::{Checkpoint, GptConfig, init_params};

use crate::{
    Dataset, Result, TrainError,
    config::RunConfig,
    engine::{self, Engine, EngineState},
    evaluate,
    schedule::learning_rate,
    train::{accumulate_gradients, check_data},
};

/// A model that is trained in memory. Its updates are those of a [`Run`](crate::Run) of the same configuration on the same text,
/// to the bit. It saves nothing and keeps no best weights: who wants some asks [`Fit::val_loss`] and takes [`Fit::params`].
///
/// ```
/// use tinygpt_model::SamplingParams;
/// use tinygpt_trainer::{Dataset, Fit, GptConfig, RunConfig};
///
/// let mut config = RunConfig::default();
/// config.model = GptConfig { n_layer: 1, n_head: 1, n_embd: 8, block_size: 8, ..GptConfig::default() };
/// config.train.max_steps = 4;
/// let data = Dataset::from_text(&"The sun is up. ".repeat(20), &config.data)?;
/// let mut fit = Fit::new(config, &data)?;
/// while let Some(loss) = fit.update()? {
///     assert!(loss > 0.0);
/// }
/// let text = fit.checkpoint()?.complete("The sun", 10, SamplingParams { seed: 1, ..SamplingParams::default() })?;
/// assert_eq!(text.chars().count(), 10);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Fit<'d> {
    config: RunConfig,
    data: &'d Dataset,
    engine: Box<dyn Engine>,
    /// The number of updates so far.
    step: u64,
}

impl<'d> Fit<'d> {
    /// A model with random weights, on the CPU. Of the configuration, `data` says nothing here, and neither what is logged,
    /// evaluated, sampled or ends a run early.
    ///
    /// # Errors
    /// When a value of the configuration is out of range, the data too short for a window, or an adapter or a model to stay near
    /// is configured: those need a [`Run`](crate::Run).
    pub fn new(config: RunConfig, data: &'d Dataset) -> Result<Self> {
        let config = config.resolved()?;
        let params = init_params(&config.gpt(data.tokenizer.vocab_size()), config.seed);
        Self::of_resolved(config, data, params)
    }

    /// [`Fit::new`] with these weights, given in parameter order.
    ///
    /// # Errors
    /// As [`Fit::new`]; when the weights do not match the shape.
    pub fn from_params(config: RunConfig, data: &'d Dataset, params: Vec<Vec<f32>>) -> Result<Self> {
        Self::of_resolved(config.resolved()?, data, params)
    }

    fn of_resolved(config: RunConfig, data: &'d Dataset, params: Vec<Vec<f32>>) -> Result<Self> {
        if config.lora.rank > 0 || !config.train.reference.is_empty() {
            return Err(TrainError::NeedsRun);
        }
        check_data(&config, data)?;
        let gpt = config.gpt(data.tokenizer.vocab_size());
        let (train, state) = (&config.train, EngineState::fresh(params));
        engine::check_precision(train.precision, &Device::Cpu)?;
        let engine = engine::open(&gpt, train.precision, train, config.seed, &state, &Device::Cpu)?;
        Ok(Self { config, data, engine, step: 0 })
    }

    /// Makes an update and gives the mean loss of its batches, in nats a token, before it; `None` when all of
    /// `train.max_steps` are made.
    ///
    /// # Errors
    /// [`TrainError::NonFiniteLoss`].
    pub fn update(&mut self) -> Result<Option<f64>> {
        let train = &self.config.train;
        if self.step >= train.max_steps {
            return Ok(None);
        }
        let engine = self.engine.as_mut();
        let losses = accumulate_gradients(engine, self.data, &self.config, self.step, &AtomicBool::new(false))?;
        engine.optimizer_step(learning_rate(train, self.step), train.clip)?;
        self.step += 1;
        let mut loss = 0.0;
        for of_batch in losses {
            loss += of_batch.read()? / train.grad_accum as f64;
        }
        if !loss.is_finite() {
            return Err(TrainError::NonFiniteLoss { step: self.step, what: "training loss", value: loss });
        }
        Ok(Some(loss))
    }

    /// The number of updates so far.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// The mean loss over the held-out split, in nats a token.
    ///
    /// # Errors
    /// When the device fails.
    pub fn val_loss(&mut self) -> Result<f64> {
        let rows = self.config.train.batch_size;
        Ok(evaluate::whole_split(self.engine.as_mut(), &self.data.val, rows, &mut |_, _| Ok(()))?.loss)
    }

    /// The shape of the model.
    pub fn gpt(&self) -> &GptConfig {
        self.engine.config()
    }

    /// A copy of the weights, in parameter order.
    ///
    /// # Errors
    /// When the device fails.
    pub fn params(&self) -> Result<Vec<Vec<f32>>> {
        self.engine.params()
    }

    /// A copy of the model as it is now, to generate from.
    ///
    /// # Errors
    /// When the device fails.
    pub fn checkpoint(&self) -> Result<Checkpoint> {
        Ok(Checkpoint::from_params(self.gpt().clone(), self.params()?, self.data.tokenizer.clone())?)
    }
}
