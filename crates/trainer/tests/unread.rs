//! Training on an engine that leaves its figures on the device: they are read where they are logged or something is
//! saved, and nothing that has diverged is saved.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use crate::common::{Prepared, assert_same_weights, prepare};
use candle_core::{Device, Tensor};
use tinygpt_model::{ContextPolicy, Decoder, GptConfig, Precision};
use tinygpt_trainer::{
    Result, RunDir, TrainError,
    engine::{AdamW, Batch, DeferredScalar, Engine, EngineState, Evaluator, Objective, TensorEngine},
    train::{Event, Outcome, Trainer},
};

/// A tensor engine one of whose losses or norms is no number.
struct Poisoned {
    engine: TensorEngine,
    /// The batch.
    loss: Option<u64>,
    /// The update.
    norm: Option<u64>,
    updates: u64,
}

fn not_a_number() -> DeferredScalar {
    DeferredScalar::OnDevice(Tensor::new(f32::NAN, &Device::Cpu).unwrap())
}

impl Evaluator for Poisoned {
    fn config(&self) -> &GptConfig {
        self.engine.config()
    }

    fn eval(&mut self, batch: &Batch) -> Result<f64> {
        self.engine.eval(batch)
    }
}

impl Engine for Poisoned {
    fn set_objective(&mut self, objective: &Objective) -> Result<()> {
        self.engine.set_objective(objective)
    }

    fn forward_backward(&mut self, batch: &Batch, micro_step: u64) -> Result<DeferredScalar> {
        let loss = self.engine.forward_backward(batch, micro_step)?;
        Ok(if self.loss == Some(micro_step) { not_a_number() } else { loss })
    }

    fn optimizer_step(&mut self, lr: f64, clip: f64) -> Result<DeferredScalar> {
        let norm = self.engine.optimizer_step(lr, clip)?;
        self.updates += 1;
        Ok(if self.norm == Some(self.updates) { not_a_number() } else { norm })
    }

    fn decoder(&self, window: ContextPolicy) -> Result<Box<dyn Decoder + '_>> {
        self.engine.decoder(window)
    }

    fn params(&self) -> Result<Vec<Vec<f32>>> {
        self.engine.params()
    }

    fn state_dict(&self) -> Result<EngineState> {
        self.engine.state_dict()
    }

    fn load_state_dict(&mut self, state: &EngineState) -> Result<()> {
        self.engine.load_state_dict(state)
    }
}

/// What a run is to do, and what is to happen to it.
#[derive(Default)]
struct Case {
    precision: Precision,
    log_every: u64,
    loss: Option<u64>,
    norm: Option<u64>,
    /// After this step.
    interrupt: Option<u64>,
    resume: bool,
}

impl Case {
    fn train(&self, folder: &Path, steps: &mut Vec<(u64, bool)>) -> Result<Outcome> {
        let log_every = format!("train.log_every={}", self.log_every);
        let settings = ["train.grad_accum=2", "train.eval_batches=2", &log_every];
        let Prepared { config, data, gpt, run, state, weights } = prepare(&settings, folder, self.resume);
        let adamw = AdamW::from(&config.train);
        let engine = TensorEngine::new(&gpt, self.precision, adamw, 1, &weights, &Device::Cpu).unwrap();
        let mut engine = Poisoned { engine, loss: self.loss, norm: self.norm, updates: state.step };
        let stop = AtomicBool::new(false);
        let trainer = Trainer { config: &config, data: &data, engine: &mut engine, run: &run, state };
        trainer.train(&stop, &mut |event| {
            if let Event::Step { metrics, .. } = event {
                steps.push((metrics.step, metrics.loss.is_some()));
                stop.store(self.interrupt == Some(metrics.step), Ordering::Relaxed);
            }
            Ok(())
        })
    }
}

fn saved_step(folder: &Path) -> u64 {
    RunDir::open_for_writing(folder).unwrap().last().read_state().unwrap().step
}

/// The lines of the metrics without times.
fn rows(folder: &Path, kind: &str) -> Vec<String> {
    let text = std::fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    let rows = text.lines().filter(|line| line.contains(kind));
    rows.map(|row| row.split(",\"tokens_per_s\"").next().unwrap().split(",\"seconds\"").next().unwrap().into())
        .collect()
}

#[test]
fn only_what_is_logged_is_read_and_the_run_is_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let (often, seldom) = (dir.path().join("often"), dir.path().join("seldom"));
    let mut steps = Vec::new();
    Case { log_every: 1, ..Case::default() }.train(&often, &mut steps).unwrap();
    assert!(steps.iter().all(|&(_, read)| read));
    steps.clear();
    Case { log_every: 4, ..Case::default() }.train(&seldom, &mut steps).unwrap();
    let read: Vec<u64> = steps.iter().filter(|step| step.1).map(|step| step.0).collect();
    assert_eq!((steps.len(), read), (9, vec![1, 4, 8, 9]));

    let all = rows(&often, "\"train\"");
    assert_eq!(rows(&seldom, "\"train\""), [0, 3, 7, 8].map(|i: usize| all[i].clone()));
    assert_eq!(rows(&seldom, "\"eval\""), rows(&often, "\"eval\""));
    assert_same_weights(&often, &seldom);
}

#[test]
fn a_figure_that_is_no_number_ends_the_run_by_its_step_before_anything_is_saved() {
    // Step 5 is the second after the save of step 3; batches 8 and 9 are its own. It is read before step 6 is saved, or
    // before the interruption is.
    for (loss, norm, what) in [(Some(8), None, "loss"), (Some(9), None, "loss"), (None, Some(5), "gradient norm")] {
        for interrupt in [None, Some(5)] {
            let dir = tempfile::tempdir().unwrap();
            let folder = dir.path().join("run");
            let case = Case { log_every: 100, loss, norm, interrupt, ..Case::default() };
            let error = case.train(&folder, &mut Vec::new()).unwrap_err();
            assert!(
                matches!(error, TrainError::NonFiniteLoss { step: 5, what: named, .. } if named == what),
                "{loss:?} {norm:?} {interrupt:?}: {error}"
            );
            assert_eq!(saved_step(&folder), 3);
        }
    }
}

#[test]
fn an_interrupted_run_in_f16_goes_on_with_its_scale_and_leaves_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, parts) = (dir.path().join("whole"), dir.path().join("parts"));
    let case =
        |interrupt, resume| Case { precision: Precision::F16, log_every: 4, interrupt, resume, ..Case::default() };
    case(None, false).train(&whole, &mut Vec::new()).unwrap();
    case(Some(5), false).train(&parts, &mut Vec::new()).unwrap();
    assert_eq!(saved_step(&parts), 5);
    case(None, true).train(&parts, &mut Vec::new()).unwrap();
    assert_same_weights(&whole, &parts);
    let scaling = prepare(&[], &whole, true).weights.loss_scaling.unwrap();
    assert_eq!((scaling.scale, scaling.good + scaling.skipped), (65536.0, 9));
}
