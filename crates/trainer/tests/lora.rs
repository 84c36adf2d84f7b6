//! Engines that train an adapter: what they compute is that of the effective weights, and nothing but the adapter changes.

use candle_core::Tensor;
use tinygpt_model::{
    Adapter, AdapterShape, GptConfig, Mlp, Precision,
    config::{Norm, Position},
    cpu::CpuPrecision,
    init_params,
    ops::count_launch,
    param_specs,
};
use tinygpt_trainer::engine::{
    AdamW, Batch, CpuEngine, CpuUpdate, Engine, EngineState, Evaluator, Optimizer, RateFactors, TensorEngine,
    TensorStep, TensorUpdate,
};

/// Plain gradient descent, whose step is the gradient.
#[derive(Debug)]
struct Descent;

impl Optimizer for Descent {
    fn slots(&self) -> &'static [&'static str] {
        &[]
    }

    fn step_cpu(&self, update: CpuUpdate<'_>) -> tinygpt_trainer::Result<()> {
        let CpuUpdate { params, grads, lr, scale, .. } = update;
        for (param, grad) in params.iter_mut().zip(grads) {
            *param -= (lr * scale * f64::from(*grad)) as f32;
            *grad = 0.0;
        }
        Ok(())
    }

    fn step_tensors(&self, update: TensorUpdate<'_>) -> tinygpt_trainer::Result<TensorStep> {
        let step: Tensor = count_launch(update.grads.affine(update.lr, 0.0))?;
        Ok(TensorStep { slots: Vec::new(), step })
    }

    fn weight_decay(&self) -> f64 {
        0.0
    }
}

const ADAMW: AdamW = AdamW { beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1, rates: RateFactors::EQUAL };

fn gpt2() -> GptConfig {
    GptConfig { vocab_size: 13, block_size: 8, n_layer: 2, n_head: 2, n_embd: 12, bias: true, ..GptConfig::default() }
}

fn qwen3() -> GptConfig {
    let (norm, position, mlp) = (Norm::Rms, Position::Rope, Mlp::Swiglu);
    GptConfig { norm, position, mlp, qk_norm: true, n_kv_head: 1, bias: false, ..gpt2() }
}

/// An adapter that changes what the model computes, over random weights.
fn start(config: &GptConfig, targets: &[&str]) -> EngineState {
    let targets: Vec<String> = targets.iter().map(|target| target.to_string()).collect();
    let shape = AdapterShape::new(config, 3, 2.0, &targets).unwrap();
    let mut values = shape.initial_values(5);
    // `B` begins as zeros, of which `A` would have no gradients.
    for (i, b) in values.iter_mut().skip(1).step_by(2).enumerate() {
        b.iter_mut().enumerate().for_each(|(j, b)| *b = 0.1 * (((7 * i + 3 * j) % 11) as f32 / 5.0 - 1.0));
    }
    let mut params = init_params(config, 1);
    for (spec, values) in param_specs(config).iter().zip(&mut params) {
        // Larger than GPT-2's, so that few updates change the loss.
        let factor = if spec.decays() { 6.0 } else { 1.0 };
        values.iter_mut().for_each(|x| *x *= factor);
    }
    EngineState { adapter: Some(Adapter::new(shape, values).unwrap()), ..EngineState::fresh(params) }
}

fn batch(seed: u32) -> Batch {
    let token = |i: u32| (i * i + 5 * i + seed) % 13;
    Batch { ids: (0..32).map(token).collect(), targets: (1..33).map(token).collect(), rows: 4, cols: 8 }
}

fn cpu(config: &GptConfig, optimizer: impl Into<std::sync::Arc<dyn Optimizer>>, state: &EngineState) -> CpuEngine {
    CpuEngine::new(config, CpuPrecision::F32, optimizer, 1, state).unwrap()
}

fn tensors(
    config: &GptConfig,
    optimizer: impl Into<std::sync::Arc<dyn Optimizer>>,
    state: &EngineState,
) -> TensorEngine {
    TensorEngine::new(config, Precision::F32, optimizer, 1, state, &candle_core::Device::Cpu).unwrap()
}

fn descent() -> std::sync::Arc<dyn Optimizer> {
    std::sync::Arc::new(Descent)
}

fn values(engine: &dyn Engine) -> Vec<Vec<f32>> {
    engine.state_dict().unwrap().adapter.unwrap().values
}

fn bits(values: &[Vec<f32>]) -> Vec<u32> {
    values.iter().flatten().map(|x| x.to_bits()).collect()
}

/// The gradients of the adapter by an engine: what a step of plain descent subtracts.
fn gradients(engine: &mut dyn Engine, clip: f64) -> (Vec<Vec<f32>>, f64) {
    let before = values(engine);
    engine.forward_backward(&batch(1), 0).unwrap();
    engine.forward_backward(&batch(2), 1).unwrap();
    let norm = engine.optimizer_step(1.0, clip).unwrap().read().unwrap();
    let difference = |(a, b): (Vec<f32>, Vec<f32>)| a.iter().zip(&b).map(|(a, b)| a - b).collect();
    (before.into_iter().zip(values(engine)).map(difference).collect(), norm)
}

/// The mean loss of both batches of [`gradients`].
fn loss(engine: &mut dyn Evaluator) -> f64 {
    (engine.eval(&batch(1)).unwrap() + engine.eval(&batch(2)).unwrap()) / 64.0
}

#[test]
fn gradients_of_an_adapter_are_those_of_finite_differences() {
    for (config, targets) in [(gpt2(), &[][..]), (qwen3(), &["k_proj", "up_proj", "o_proj"])] {
        let state = start(&config, targets);
        let (of_cpu, norm) = gradients(&mut cpu(&config, descent(), &state), 0.0);
        let (of_tensors, tensor_norm) = gradients(&mut tensors(&config, descent(), &state), 0.0);
        let square: f64 = of_cpu.iter().flatten().map(|&x| f64::from(x) * f64::from(x)).sum();
        assert!((norm - square.sqrt()).abs() < 1e-4 * norm, "the norm is that of the adapter: {norm} {square}");
        assert!((norm - tensor_norm).abs() < 1e-4 * norm);
        let mut largest = 0f64;
        for at in 0..of_cpu.len() {
            for i in (0..of_cpu[at].len()).step_by(7) {
                const STEP: f32 = 2e-2;
                let loss_at = |step: f32| {
                    let mut state = state.clone();
                    state.adapter.as_mut().unwrap().values[at][i] += step;
                    loss(&mut cpu(&config, descent(), &state))
                };
                let expected = (loss_at(STEP) - loss_at(-STEP)) / (2.0 * f64::from(STEP));
                for found in [of_cpu[at][i], of_tensors[at][i]] {
                    assert!((f64::from(found) - expected).abs() < 2e-4, "{at} {i}: {found} {expected}");
                }
                largest = largest.max(expected.abs());
            }
        }
        assert!(largest > 0.01, "{largest}");
    }
}

#[test]
fn gradients_are_clipped_to_the_norm_of_the_adapter() {
    let (config, state) = (gpt2(), start(&gpt2(), &["c_attn", "c_fc"]));
    let (whole, norm) = gradients(&mut cpu(&config, descent(), &state), 0.0);
    for engine in [&mut cpu(&config, descent(), &state) as &mut dyn Engine, &mut tensors(&config, descent(), &state)] {
        let (clipped, same_norm) = gradients(engine, norm / 4.0);
        assert!((same_norm - norm).abs() < 1e-4 * norm);
        for (whole, clipped) in whole.iter().flatten().zip(clipped.iter().flatten()) {
            assert!((whole / 4.0 - clipped).abs() < 1e-5, "{whole} {clipped}");
        }
    }
}

/// Three updates of AdamW.
fn train(engine: &mut dyn Engine) {
    for step in 0..3 {
        engine.forward_backward(&batch(step), step.into()).unwrap();
        engine.optimizer_step(1e-2, 1.0).unwrap();
    }
}

#[test]
fn only_the_adapter_changes_and_the_model_computes_with_both() {
    for (config, targets) in [(gpt2(), &["c_proj"][..]), (qwen3(), &["q_proj", "v_proj", "down_proj"])] {
        let state = start(&config, targets);
        let engines: [Box<dyn Engine>; 2] =
            [Box::new(cpu(&config, ADAMW, &state)), Box::new(tensors(&config, ADAMW, &state))];
        let mut trained = Vec::new();
        for mut engine in engines {
            train(engine.as_mut());
            let after = engine.state_dict().unwrap();
            assert_eq!(bits(&after.params), bits(&state.params), "the model is as it was");
            assert_ne!(after.adapter, state.adapter);
            let mut merged = after.params.clone();
            after.adapter.unwrap().merge_into(&config, &mut merged).unwrap();
            for (found, expected) in engine.params().unwrap().iter().flatten().zip(merged.iter().flatten()) {
                assert!((found - expected).abs() < 1e-6, "{found} {expected}");
            }
            let plain = loss(&mut cpu(&config, ADAMW, &EngineState::fresh(merged)));
            assert!((loss(engine.as_mut()) - plain).abs() < 1e-5);
            trained.push(values(engine.as_ref()));
        }
        for (a, b) in trained[0].iter().flatten().zip(trained[1].iter().flatten()) {
            assert!((a - b).abs() < 2e-4, "the engines differ: {a} {b}");
        }
    }
}

#[test]
fn an_engine_goes_on_from_its_state_with_the_same_bits() {
    let (config, state) = (qwen3(), start(&qwen3(), &[]));
    type Open = fn(&GptConfig, &EngineState) -> Box<dyn Engine>;
    let open_cpu: Open = |config, state| Box::new(cpu(config, ADAMW, state));
    let open_tensors: Open = |config, state| Box::new(tensors(config, ADAMW, state));
    for open in [open_cpu, open_tensors] {
        let mut whole = open(&config, &state);
        train(whole.as_mut());
        let between = whole.state_dict().unwrap();
        train(whole.as_mut());
        let mut resumed = open(&config, &between);
        train(resumed.as_mut());
        let mut loaded = open(&config, &state);
        loaded.load_state_dict(&between).unwrap();
        train(loaded.as_mut());
        let expected = whole.state_dict().unwrap();
        assert_eq!(resumed.state_dict().unwrap(), expected);
        assert_eq!(loaded.state_dict().unwrap(), expected);
        assert_eq!(bits(&resumed.params().unwrap()), bits(&whole.params().unwrap()));
    }
}

#[test]
fn the_number_of_threads_shows_in_no_bit_of_an_adapter() {
    let (config, state) = (gpt2(), start(&gpt2(), &[]));
    let trained = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut engine = cpu(&config, ADAMW, &state);
            train(&mut engine);
            bits(&values(&engine))
        })
    };
    assert_eq!(trained(1), trained(3));
}

#[test]
fn state_of_the_optimizer_of_all_weights_is_none_of_an_adapter() {
    let config = gpt2();
    let mut engine = cpu(&config, ADAMW, &EngineState::fresh(init_params(&config, 1)));
    train(&mut engine);
    let adapter = start(&config, &[]).adapter;
    let state = EngineState { adapter, ..engine.state_dict().unwrap() };
    assert!(CpuEngine::new(&config, CpuPrecision::F32, ADAMW, 1, &state).is_err());
}
