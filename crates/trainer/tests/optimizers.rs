//! Other optimizers than AdamW: whatever slots one has, a checkpoint carries them, and a run goes on with them. Muon on both
//! engines, and learning rates of their own for groups of parameters.

use std::sync::Arc;

use candle_core::Device;
use tinygpt_model::{GptConfig, Precision, cpu::CpuPrecision, init_params};
use tinygpt_trainer::{
    Result, RunDir,
    engine::{
        AdamW, Batch, CpuEngine, CpuUpdate, Engine, EngineState, Optimizer, RateFactors, StateSlot, TensorEngine,
        TensorStep, TensorUpdate,
    },
    run::{IfExists, LoopState},
};

/// Stochastic gradient descent, with a slot for momentum or without any.
#[derive(Debug)]
struct Sgd {
    momentum: Option<f64>,
}

impl Optimizer for Sgd {
    fn slots(&self) -> &'static [&'static str] {
        if self.momentum.is_some() { &["momentum"] } else { &[] }
    }

    fn step_cpu(&self, update: CpuUpdate<'_>) -> Result<()> {
        let CpuUpdate { params, grads, slots, lr, scale, .. } = update;
        for (i, (param, grad)) in params.iter_mut().zip(&mut *grads).enumerate() {
            let mut step = scale * f64::from(*grad);
            if let (Some(decay), [momentum]) = (self.momentum, &mut *slots) {
                step += decay * f64::from(momentum[i]);
                momentum[i] = step as f32;
            }
            *param -= (lr * step) as f32;
            *grad = 0.0;
        }
        Ok(())
    }

    fn step_tensors(&self, update: TensorUpdate<'_>) -> Result<TensorStep> {
        let TensorUpdate { grads, slots, lr, .. } = update;
        let step = match (self.momentum, slots) {
            (Some(decay), [momentum]) => (grads + momentum.affine(decay, 0.0)?)?,
            _ => grads.clone(),
        };
        let slots = if slots.is_empty() { vec![] } else { vec![step.clone()] };
        Ok(TensorStep { slots, step: step.affine(lr, 0.0)? })
    }

    fn weight_decay(&self) -> f64 {
        0.0
    }
}

fn config() -> GptConfig {
    GptConfig { vocab_size: 11, block_size: 8, n_layer: 1, n_head: 2, n_embd: 8, ..GptConfig::default() }
}

fn optimizers() -> [Arc<dyn Optimizer>; 2] {
    [Arc::new(Sgd { momentum: None }), Arc::new(Sgd { momentum: Some(0.9) })]
}

/// The two engines.
fn engines(optimizer: &Arc<dyn Optimizer>, state: &EngineState) -> Result<[Box<dyn Engine>; 2]> {
    let (config, optimizer) = (config(), || Arc::clone(optimizer));
    Ok([
        Box::new(CpuEngine::new(&config, CpuPrecision::F32, optimizer(), 1, state)?),
        Box::new(TensorEngine::new(&config, Precision::F32, optimizer(), 1, state, &Device::Cpu)?),
    ])
}

fn updates(engine: &mut dyn Engine, steps: std::ops::Range<u32>) {
    for step in steps {
        let tokens = |shift: u32| (0..24).map(|i| (i * 7 + step * 3 + shift) % 11).collect();
        let batch = Batch { ids: tokens(0), targets: tokens(1), rows: 3, cols: 8 };
        engine.forward_backward(&batch, u64::from(step)).unwrap();
        engine.optimizer_step(0.5, 1.0).unwrap();
    }
}

#[test]
fn a_checkpoint_carries_the_slots_of_any_optimizer_and_a_run_goes_on_to_the_same_bytes() {
    let start = EngineState::fresh(init_params(&config(), 1));
    for optimizer in optimizers() {
        for (which, mut engine) in engines(&optimizer, &start).unwrap().into_iter().enumerate() {
            updates(engine.as_mut(), 0..3);
            let saved = engine.state_dict().unwrap();
            assert!(saved.params != start.params);
            let dir = tempfile::tempdir().unwrap();
            let run = RunDir::create(&dir.path().join("run"), IfExists::Refuse).unwrap();
            let state = LoopState { step: 3, ..LoopState::fresh("hash".into()) };
            run.last().save(&config(), &saved, &state).unwrap();
            let read = run.last().read_engine(&config(), &state, None).unwrap();
            assert!(read == saved, "{optimizer:?}");
            let mut resumed = engines(&optimizer, &read).unwrap().into_iter().nth(which).unwrap();
            updates(engine.as_mut(), 3..5);
            updates(resumed.as_mut(), 3..5);
            assert!(resumed.state_dict().unwrap() == engine.state_dict().unwrap(), "{optimizer:?}");
        }
    }
}

#[test]
fn the_state_of_another_optimizer_is_refused() {
    let adamw: Arc<dyn Optimizer> =
        AdamW { beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1, rates: RateFactors::EQUAL }.into();
    let [plain, momentum] = optimizers();
    let start = EngineState::fresh(init_params(&config(), 1));
    let after_one = |optimizer: &Arc<dyn Optimizer>| {
        let [mut cpu, _] = engines(optimizer, &start).unwrap();
        updates(cpu.as_mut(), 0..1);
        cpu.state_dict().unwrap()
    };
    let message = |optimizer, state: &EngineState| engines(optimizer, state).err().unwrap().to_string();
    for (optimizer, state, name) in [
        (&adamw, after_one(&momentum), "`momentum`, which the optimizer lacks"),
        (&plain, after_one(&adamw), "`m`, which the optimizer lacks"),
        (&momentum, after_one(&plain), "no `momentum`"),
        (&adamw, EngineState { optimizer: vec![], ..after_one(&adamw) }, "no `m`"),
    ] {
        assert!(message(optimizer, &state).contains(name), "{name}: {}", message(optimizer, &state));
    }
    let mut half = after_one(&adamw);
    half.optimizer.retain(|StateSlot { name, .. }| name == "m");
    assert!(message(&adamw, &half).contains("no `v`"));
}
