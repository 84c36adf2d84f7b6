//! The training loop.

mod record;
mod saving;

use std::{
    ops::Range,
    sync::atomic::{AtomicBool, Ordering},
};

use tinygpt_model::{Adapter, ContextPolicy};

use crate::{
    Result, TrainError,
    config::{RunConfig, TrainConfig},
    data::Dataset,
    engine::{Batch, DeferredScalar, Engine},
    evaluate::{self, Evaluation, Report},
    metrics::{self, Metrics, MetricsFile, RowKind},
    run::{Best, FinalEvaluation, LoopState, RunDir},
    samples::{self, Sample},
    schedule::learning_rate,
};
use record::{Clock, Record, Update};

/// The file of the metrics in a run.
pub const METRICS_FILE: &str = "metrics.jsonl";
/// The plot of the losses in a run.
pub const LOSS_SVG: &str = "loss.svg";
/// The same, written when training ends or is interrupted, for what shows no SVG.
pub const LOSS_PNG: &str = "loss.png";

/// Training has diverged where the validation loss is so many times that of guessing, or the best one where that is worse, and
/// the training loss is worse than that as well: a text that is learned by heart is learned.
const DIVERGED: f64 = 2.0;

/// What a training run tells while it works.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Event<'a> {
    /// An update was made. `logged` says whether it went to `metrics.jsonl`.
    Step {
        /// The figures of the update.
        metrics: &'a Metrics,
        /// Whether this is one of the updates that are logged.
        logged: bool,
    },
    /// An evaluation was made and the run saved.
    Eval {
        /// The figures of the evaluation.
        metrics: &'a Metrics,
        /// Whether it is the best so far, and `model.safetensors` was written.
        best: bool,
    },
    /// A sample was drawn, and written to `samples.jsonl`.
    Sample(&'a Sample),
    /// Training has ended, and the best weights are evaluated.
    FinalEvaluation {
        /// The tokens that are predicted.
        done: u64,
        /// Those that will be.
        tokens: u64,
    },
}

/// Why the caller's function for events failed.
pub type CallbackError = Box<dyn std::error::Error + Send + Sync>;

/// Is told every [`Event`]. An error of it ends training, or the evaluation behind it, as an interruption does: the state is
/// saved, and [`Trainer::train`] gives it back as [`TrainError::Callback`].
pub type OnEvent<'a> = &'a mut dyn FnMut(Event<'_>) -> std::result::Result<(), CallbackError>;

/// Why training ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// `max_steps` updates are made.
    MaxSteps,
    /// `max_minutes` have passed.
    MaxMinutes,
    /// The validation loss has not improved for `patience` evaluations.
    Patience,
    /// The caller asked to stop. The run is saved and can be resumed.
    Interrupted,
}

/// The end of a training run.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Why it ended.
    pub ending: StopReason,
    /// The state of the loop at the end.
    pub state: LoopState,
    /// The validation split under the best weights, as much of it as `final_eval_batches` says; not computed when interrupted.
    pub report: Option<Report>,
}

/// Everything that training works with.
pub struct Trainer<'a> {
    /// The configuration as resolved.
    pub config: &'a RunConfig,
    /// The tokens.
    pub data: &'a Dataset,
    /// Computes losses, gradients and updates.
    pub engine: &'a mut dyn Engine,
    /// Where everything is written.
    pub run: &'a RunDir,
    /// Where to go on from.
    pub state: LoopState,
}

impl Trainer<'_> {
    /// Trains until a limit of the configuration is reached or `stop` is set, then evaluates the best weights on the
    /// validation split, or on `final_eval_batches` of it. What it writes depends on the configuration and the corpus alone, but for times: not on
    /// where it was interrupted and resumed.
    ///
    /// # Errors
    /// When the loss is no number any more, the disk is full or the device fails: what was saved last stays whole. And
    /// [`TrainError::Callback`] when `on_event` fails, after everything was saved.
    pub fn train(mut self, stop: &AtomicBool, on_event: OnEvent<'_>) -> Result<Outcome> {
        let path = self.run.path().join(METRICS_FILE);
        let mut rows = metrics::read(&path)?;
        self.state.infer_last_evaluation(&rows);
        rows.retain(|row| self.state.has_seen(row));
        let metrics = MetricsFile::create(&path, rows)?;
        let samples = samples::open(self.run.path(), self.config, &self.state)?;
        let mut record = Record { metrics, samples, clock: Clock::new(self.state.seconds), unread: Vec::new() };
        self.catch_up(&record.metrics)?;
        match self.until_ending(&mut record, stop, on_event) {
            // Whole updates only: what an interruption cut short is done again.
            Ok(StopReason::Interrupted) | Err(TrainError::Interrupted) => {
                record.read()?;
                self.save()?;
                self.write_pixels(&record.metrics)?;
            }
            Err(TrainError::Callback(error)) => {
                record.read()?;
                self.save()?;
                return Err(TrainError::Callback(error));
            }
            Err(error) => return Err(error),
            Ok(ending) => {
                self.write_pixels(&record.metrics)?;
                match self.report(stop, on_event) {
                    Ok(report) => return Ok(Outcome { ending, state: self.state, report: Some(report) }),
                    // The run is saved, and the engine holds the best weights now, which are not to be saved as the last.
                    Err(TrainError::Interrupted) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(Outcome { ending: StopReason::Interrupted, state: self.state, report: None })
    }

    fn until_ending(&mut self, record: &mut Record, stop: &AtomicBool, on_event: OnEvent<'_>) -> Result<StopReason> {
        let config = &self.config.train;
        loop {
            // Before the first update too, and after an interruption that cut an evaluation short.
            if self.evaluation_is_due() {
                self.evaluate(record, stop, on_event)?;
            }
            if self.sample_is_due(record) {
                self.sample(record, stop, on_event)?;
            }
            if let Some(ending) = self.state.ending(config) {
                return Ok(ending);
            }
            if stop.load(Ordering::Relaxed) {
                return Ok(StopReason::Interrupted);
            }
            record.unread.push(self.update(stop)?);
            let step = self.state.step;
            let logged = step.is_multiple_of(config.log_every) || step == 1 || step == config.max_steps;
            let row = record.row(step, logged, self.config.tokens_per_step())?;
            self.state.seconds = row.seconds;
            let told = on_event(Event::Step { metrics: &row, logged });
            if logged {
                record.metrics.append(row)?;
            }
            told.map_err(TrainError::Callback)?;
        }
    }

    /// One update: the gradients of `grad_accum` batches, then the optimizer.
    fn update(&mut self, stop: &AtomicBool) -> Result<Update> {
        let step = self.state.step;
        let losses = accumulate_gradients(self.engine, self.data, self.config, step, stop)?;
        let lr = learning_rate(&self.config.train, step);
        let grad_norm = self.optimizer_step(lr)?;
        self.state.step += 1;
        self.state.final_evaluation = None;
        Ok(Update { step: self.state.step, losses, lr, grad_norm })
    }

    /// An estimate of the validation loss; the weights where they are the best so far; everything needed to go on.
    fn evaluate(&mut self, record: &mut Record, stop: &AtomicBool, on_event: OnEvent<'_>) -> Result<()> {
        // What has diverged must not be saved.
        record.read()?;
        let config = &self.config.train;
        let val = &self.data.val;
        let Evaluation { loss, floor, .. } =
            evaluate::estimate(self.engine, val, config.batch_size, self.state.eval_windows(config), &mut |_, _| {
                if stop.load(Ordering::Relaxed) { Err(TrainError::Interrupted) } else { Ok(()) }
            })?;
        if !loss.is_finite() {
            let what = "validation loss";
            return Err(TrainError::NonFiniteLoss { step: self.state.step, what, value: loss });
        }
        // A model that starts from another one may know less of a new text than guessing does, but never less than at its start.
        let uniform = (self.data.tokenizer.vocab_size() as f64).ln();
        let level = self.state.best.map(|best| best.val_loss.max(uniform));
        if let Some(level) = level
            && loss > DIVERGED * level
            && self.training_loss()? > level
        {
            return Err(TrainError::Diverged { step: self.state.step, loss, uniform });
        }
        let best = self.state.best.is_none_or(|best| loss < best.val_loss);
        if best {
            self.state.best = Some(Best { step: self.state.step, val_loss: loss });
            self.state.evaluations_since_best = 0;
        } else {
            self.state.evaluations_since_best += 1;
        }
        self.state.last_evaluation = Some(self.state.step);
        self.state.seconds = record.clock.seconds();
        let row = Metrics {
            val_loss: Some(loss),
            perplexity: Some(loss.exp()),
            bits_per_byte: Some(loss / std::f64::consts::LN_2 * self.data.val_tokens_per_byte()?),
            floor,
            update_ratio: self.state.update_ratio.take(),
            seconds: self.state.seconds,
            ..Metrics::new(RowKind::Eval, self.state.step)
        };
        // The line first, then the state that has seen it, then what can be made from both: a crash in between leaves
        // an evaluation that is made again, or files that `catch_up` writes.
        record.metrics.append(row.clone())?;
        record.metrics.sync()?;
        self.save()?;
        self.write_plot(&record.metrics)?;
        on_event(Event::Eval { metrics: &row, best }).map_err(TrainError::Callback)?;
        record.clock.restart();
        Ok(())
    }

    /// Whether this step is to be evaluated and has not been.
    fn evaluation_is_due(&self) -> bool {
        let step = self.state.step;
        let due = self.is_scheduled(step) || self.state.out_of_time(&self.config.train);
        due && self.state.last_evaluation != Some(step)
    }

    /// Whether a step is evaluated, however long it takes to get there.
    fn is_scheduled(&self, step: u64) -> bool {
        let train = &self.config.train;
        step.is_multiple_of(train.eval_every) || step >= train.max_steps
    }

    /// The optimizer's step, measured where an evaluation follows: copies of the parameters wait for the device.
    fn optimizer_step(&mut self, lr: f64) -> Result<DeferredScalar> {
        let before = if self.is_scheduled(self.state.step + 1) { Some(self.engine.params()?) } else { None };
        let grad_norm = self.engine.optimizer_step(lr, self.config.train.clip)?;
        self.state.update_ratio = match before {
            Some(before) => update_ratio(&before, &self.engine.params()?),
            None => None,
        };
        Ok(grad_norm)
    }

    /// Whether a sample is to be taken of this step and has not been.
    fn sample_is_due(&self, record: &Record) -> bool {
        let every = self.config.train.sample_every;
        let step = self.state.step;
        let over = || self.state.ending(&self.config.train).is_some();
        // All samples are looked through for a step that may have one, not for every step.
        let last = || record.samples.iter().flat_map(|samples| samples.rows()).map(|sample| sample.step).max();
        every > 0 && (step.is_multiple_of(every) || over()) && last().is_none_or(|last| last < step)
    }

    /// A text by the weights as they are now.
    fn sample(&self, record: &mut Record, stop: &AtomicBool, on_event: OnEvent<'_>) -> Result<()> {
        // What has diverged is told as such.
        record.read()?;
        // As `tinygpt generate` goes on beyond the context.
        let mut decoder = self.engine.decoder(ContextPolicy::Slide)?;
        let sample = samples::draw(decoder.as_mut(), &self.data.tokenizer, self.config, self.state.step, stop)?;
        if let Some(samples) = &mut record.samples {
            samples.append(sample.clone())?;
        }
        on_event(Event::Sample(&sample)).map_err(TrainError::Callback)?;
        record.clock.restart();
        Ok(())
    }

    /// The loss of the next update's batches under the weights as they are, in nats a token. It depends on nothing that an
    /// interruption would lose.
    fn training_loss(&mut self) -> Result<f64> {
        let mut total = 0.0;
        for micro_step in micro_steps(self.config, self.state.step) {
            total += self.engine.eval(&micro_batch(self.data, self.config, micro_step)?)?;
        }
        Ok(total / self.config.tokens_per_step() as f64)
    }

    /// The best weights on the validation split. A run that was finished before has its result in its state.
    fn report(&mut self, stop: &AtomicBool, on_event: OnEvent<'_>) -> Result<Report> {
        let TrainConfig { batch_size, final_eval_batches, .. } = self.config.train;
        let best_step = self.state.best.map_or(self.state.step, |best| best.step);
        let windows = self.state.first_batch_size(&self.config.train).saturating_mul(final_eval_batches);
        if let Some(known) = self.state.final_evaluation
            && (known.best_step, known.windows) == (best_step, windows)
        {
            return Ok(known.report);
        }
        let mut state = self.engine.state_dict()?;
        let config = self.engine.config();
        match &mut state.adapter {
            Some(adapter) => adapter.values = Adapter::open(self.run.adapter(), config)?.values,
            None => state.params = self.run.model().read_weights(config)?,
        }
        self.engine.load_state_dict(&state)?;
        let val = &self.data.val;
        let mut on_tokens = |done, tokens| {
            if stop.load(Ordering::Relaxed) {
                return Err(TrainError::Interrupted);
            }
            on_event(Event::FinalEvaluation { done, tokens }).map_err(TrainError::Callback)
        };
        let evaluation = evaluate::estimate(self.engine, val, batch_size, windows, &mut on_tokens)?;
        let report = Report::new(evaluation, val, &self.data.tokenizer)?;
        self.state.final_evaluation = Some(FinalEvaluation { best_step, windows, report });
        self.run.last().write_state(&self.state)?;
        Ok(report)
    }
}

/// The gradients of the `grad_accum` batches of update `step`, counted from 0, added up in the engine; their losses.
pub(crate) fn accumulate_gradients(
    engine: &mut dyn Engine,
    data: &Dataset,
    config: &RunConfig,
    step: u64,
    stop: &AtomicBool,
) -> Result<Vec<DeferredScalar>> {
    let loss = |micro_step| {
        if stop.load(Ordering::Relaxed) {
            return Err(TrainError::Interrupted);
        }
        engine.forward_backward(&micro_batch(data, config, micro_step)?, micro_step)
    };
    micro_steps(config, step).map(loss).collect()
}

/// The numbers of the batches of update `step`, both counted from 0.
fn micro_steps(config: &RunConfig, step: u64) -> Range<u64> {
    let accum = config.train.grad_accum as u64;
    step * accum..(step + 1) * accum
}

/// One of the batches of an update.
fn micro_batch(data: &Dataset, config: &RunConfig, micro_step: u64) -> Result<Batch> {
    data.train.random_batch(config.train.batch_size, config.model.block_size, config.seed, micro_step)
}

/// Refuses data that cannot fill one window, and a prompt of the samples that its tokenizer does not know.
///
/// # Errors
/// [`TrainError::SplitTooShort`], and [`TrainError::Config`] for the prompt.
pub fn check_data(config: &RunConfig, data: &Dataset) -> Result<()> {
    samples::prompt(config, &data.tokenizer)?;
    data.train.check("training", config.model.block_size + 1)?;
    data.val.check("validation", 2)
}

/// `||after - before|| / ||before||` over all parameters; none of parameters that are all zero or no numbers.
fn update_ratio(before: &[Vec<f32>], after: &[Vec<f32>]) -> Option<f64> {
    let square = |x: f64| x * x;
    let pairs = || before.iter().flatten().zip(after.iter().flatten()).map(|(&b, &a)| (f64::from(b), f64::from(a)));
    let step: f64 = pairs().map(|(before, after)| square(after - before)).sum();
    let size: f64 = pairs().map(|(before, _)| square(before)).sum();
    Some((step / size).sqrt()).filter(|ratio| ratio.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_is_measured_by_the_parameters_that_it_changed() {
        let before = [vec![3.0, 0.0], vec![4.0]];
        assert_eq!(update_ratio(&before, &[vec![3.0, 0.6], vec![4.8]]).map(|ratio| (1e6 * ratio).round()), Some(2e5));
        assert_eq!(update_ratio(&before, &before), Some(0.0));
        assert_eq!(update_ratio(&[vec![0.0]], &[vec![1.0]]), None, "nothing can be measured by nothing");
        assert_eq!(update_ratio(&[vec![1.0]], &[vec![f32::NAN]]), None);
    }
}
