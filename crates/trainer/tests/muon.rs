//! Muon, and learning rates of their own for groups of parameters, on both engines.

use std::sync::Arc;

use candle_core::Device;
use tinygpt_model::{
    GptConfig, Precision,
    cpu::{CpuPrecision, POLAR_EXPRESS, ParamLayout},
    init_params, network, param_specs,
    plan::Role,
};
use tinygpt_sampler::simd::SimdLevel;
use tinygpt_trainer::{
    RunDir,
    config::{OptimizerKind, TrainConfig},
    engine::{
        AdamW, Batch, CpuEngine, CpuUpdate, Engine, EngineState, LossScaling, Muon, Optimizer, ParameterGroup,
        RateFactors, TensorEngine,
    },
    run::{IfExists, LoopState},
};

const RATES: RateFactors = RateFactors { matrices: 0.5, embeddings: 3.0 };
const ADAMW: AdamW = AdamW { beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1, rates: RATES };

/// With square, wide and high matrices, and three side by side.
fn config() -> GptConfig {
    GptConfig {
        vocab_size: 11,
        block_size: 8,
        n_layer: 2,
        n_head: 2,
        n_embd: 12,
        mlp_hidden: 20,
        tie_embeddings: false,
        ..GptConfig::default()
    }
}

fn muon() -> Arc<dyn Optimizer> {
    Muon::new(ADAMW, 0.9, 3).into()
}

fn start() -> EngineState {
    EngineState::fresh(init_params(&config(), 1))
}

fn cpu(optimizer: impl Into<Arc<dyn Optimizer>>, state: &EngineState) -> CpuEngine {
    CpuEngine::new(&config(), CpuPrecision::F32, optimizer, 1, state).unwrap()
}

fn tensors(optimizer: impl Into<Arc<dyn Optimizer>>, precision: Precision, state: &EngineState) -> TensorEngine {
    TensorEngine::new(&config(), precision, optimizer, 1, state, &Device::Cpu).unwrap()
}

fn batch(step: u32) -> Batch {
    let tokens = |shift: u32| (0..24).map(|i| (i * 7 + step * 3 + shift * (i + 1)) % 11).collect();
    Batch { ids: tokens(0), targets: tokens(1), rows: 3, cols: 8 }
}

fn updates(engine: &mut dyn Engine, steps: std::ops::Range<u32>) {
    for step in steps {
        engine.forward_backward(&batch(step), u64::from(step)).unwrap();
        engine.optimizer_step(0.05, 1.0).unwrap();
    }
}

/// The step of a matrix `(n_in, n_out)` by the formulas of the papers, in f64.
fn plain_step(u: &[f64], n_in: usize, n_out: usize) -> Vec<f64> {
    let product = |x: &[f64], y: &[f64], m: usize, k: usize, n: usize| -> Vec<f64> {
        (0..m * n).map(|at| (0..k).map(|l| x[at / n * k + l] * y[l * n + at % n]).sum()).collect()
    };
    let transpose =
        |x: &[f64], m: usize, n: usize| -> Vec<f64> { (0..m * n).map(|at| x[at % m * n + at / m]).collect() };
    let wide = n_in <= n_out;
    let mut x = if wide { u.to_vec() } else { transpose(u, n_in, n_out) };
    let (m, n) = (n_in.min(n_out), n_in.max(n_out));
    let norm = x.iter().map(|x| x * x).sum::<f64>().sqrt() * 1.02 + 1e-7;
    x.iter_mut().for_each(|x| *x /= norm);
    for [a, b, c] in &POLAR_EXPRESS[..3] {
        let gram = product(&x, &transpose(&x, m, n), m, n, m);
        let square = product(&gram, &gram, m, m, m);
        let sum: Vec<f64> = gram.iter().zip(&square).map(|(gram, square)| b * gram + c * square).collect();
        let more = product(&sum, &x, m, m, n);
        x.iter_mut().zip(more).for_each(|(x, more)| *x = a * *x + more);
    }
    let factor = (n_out as f64 / n_in as f64).max(1.0).sqrt();
    let x = if wide { x } else { transpose(&x, m, n) };
    x.into_iter().map(|x| factor * x).collect()
}

/// The parameters after a first step without clipping, with gradients from the engine, by the formulas in f64.
fn first_step_by_hand(lr: f64, is_muon: bool) -> Vec<Vec<f64>> {
    let mut engine = cpu(ADAMW, &start());
    engine.forward_backward(&batch(0), 0).unwrap();
    let mut params = Vec::new();
    for ((spec, p), g) in param_specs(&config()).iter().zip(start().params).zip(engine.gradients()) {
        let (p, g): (Vec<f64>, Vec<f64>) =
            (p.iter().map(|&x| x.into()).collect(), g.iter().map(|&x| x.into()).collect());
        let factor = match spec.role {
            Role::Matrix => 0.5,
            Role::Embedding | Role::Position | Role::Head => 3.0,
            Role::Norm | Role::Bias => 1.0,
        };
        // The moments of a first step are those of its gradient alone.
        let mut step: Vec<f64> = g.iter().map(|g| g / (g.abs() + 1e-8)).collect();
        if is_muon && spec.role == Role::Matrix {
            let (n_in, ld) = (spec.shape[0], spec.shape[1]);
            let parts = if spec.parts.is_empty() { vec![ld] } else { spec.parts.clone() };
            let mut from = 0;
            for n_out in parts {
                let place = |at: usize| at / n_out * ld + from + at % n_out;
                let u: Vec<f64> = (0..n_in * n_out).map(|at| (0.1 + 0.9 * 0.1) * g[place(at)]).collect();
                for (at, x) in plain_step(&u, n_in, n_out).into_iter().enumerate() {
                    step[place(at)] = x;
                }
                from += n_out;
            }
        }
        let decay = if spec.decays() { 1.0 - lr * factor * 0.1 } else { 1.0 };
        params.push(p.iter().zip(step).map(|(p, step)| decay * p - lr * factor * step).collect());
    }
    params
}

fn largest_difference(found: &[Vec<f32>], expected: &[Vec<f64>]) -> f64 {
    let pairs = found.iter().flatten().zip(expected.iter().flatten());
    pairs.map(|(x, y)| (f64::from(*x) - y).abs()).fold(0.0, f64::max)
}

fn in_f64(x: &[Vec<f32>]) -> Vec<Vec<f64>> {
    x.iter().map(|x| x.iter().map(|&x| x.into()).collect()).collect()
}

#[test]
fn a_first_step_of_either_optimizer_is_that_of_the_formulas_with_a_rate_for_each_group() {
    for is_muon in [false, true] {
        let expected = first_step_by_hand(0.01, is_muon);
        let rule = || if is_muon { muon() } else { ADAMW.into() };
        let engines: [Box<dyn Engine>; 2] =
            [Box::new(cpu(rule(), &start())), Box::new(tensors(rule(), Precision::F32, &start()))];
        for mut engine in engines {
            engine.forward_backward(&batch(0), 0).unwrap();
            engine.optimizer_step(0.01, 0.0).unwrap();
            let state = engine.state_dict().unwrap();
            // Where a gradient is tiny, AdamW's step of it depends on its rounding.
            let error = largest_difference(&state.params, &expected);
            assert!(error < 2e-5, "muon: {is_muon}, {error}");
            for (spec, v) in param_specs(&config()).iter().zip(state.slot("v").unwrap()) {
                let zero = v.iter().all(|&x| x == 0.0);
                assert_eq!(zero, is_muon && spec.role == Role::Matrix, "{}", spec.name);
            }
        }
    }
}

#[test]
fn both_engines_make_the_same_updates_with_muon() {
    let (mut cpu, mut tensors) = (cpu(muon(), &start()), tensors(muon(), Precision::F32, &start()));
    updates(&mut cpu, 0..5);
    updates(&mut tensors, 0..5);
    let (cpu, tensors) = (cpu.state_dict().unwrap(), tensors.state_dict().unwrap());
    for slot in ["momentum", "v"] {
        let error = largest_difference(cpu.slot(slot).unwrap(), &in_f64(tensors.slot(slot).unwrap()));
        assert!(error < 1e-4, "{slot}: {error}");
    }
    let error = largest_difference(&cpu.params, &in_f64(&tensors.params));
    assert!(error < 1e-3, "{error}");
}

#[test]
fn muon_goes_on_from_a_checkpoint_to_the_same_bytes_with_any_number_of_threads() {
    let run = |threads: usize, on_tensors: bool| {
        let engine = |state: &EngineState| -> Box<dyn Engine> {
            if on_tensors { Box::new(tensors(muon(), Precision::F32, state)) } else { Box::new(cpu(muon(), state)) }
        };
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| {
            let mut whole = engine(&start());
            updates(whole.as_mut(), 0..3);
            let saved = whole.state_dict().unwrap();
            let dir = tempfile::tempdir().unwrap();
            let run = RunDir::create(&dir.path().join("run"), IfExists::Refuse).unwrap();
            let state = LoopState { step: 3, ..LoopState::fresh("hash".into()) };
            run.last().save(&config(), &saved, &state).unwrap();
            let mut resumed = engine(&run.last().read_engine(&config(), &state, None).unwrap());
            updates(whole.as_mut(), 3..5);
            updates(resumed.as_mut(), 3..5);
            let end = whole.state_dict().unwrap();
            assert!(resumed.state_dict().unwrap() == end, "{threads} threads, tensors: {on_tensors}");
            end
        })
    };
    for on_tensors in [false, true] {
        let one = run(1, on_tensors);
        assert!([2, 3].into_iter().all(|threads| run(threads, on_tensors) == one), "tensors: {on_tensors}");
    }
}

/// One step with these gradients on the CPU; gives the parameters.
fn step_of(layout: &ParamLayout, grads: &[f32], level: SimdLevel) -> Vec<f32> {
    let (mut params, mut grads) = (vec![0.0; layout.len()], grads.to_vec());
    let mut slots = [vec![0.0; layout.len()], vec![0.0; layout.len()]];
    let (params_mut, grads_mut, slots) = (&mut params[..], &mut grads[..], &mut slots[..]);
    let (lr, scale, n) = (0.1, 1.0, 1);
    let update = CpuUpdate { level, layout, params: params_mut, grads: grads_mut, slots, lr, scale, n };
    muon().step_cpu(update).unwrap();
    assert!(layout.ranges.iter().all(|range| grads[range.clone()].iter().all(|&g| g == 0.0)), "gradients are zeroed");
    params
}

#[test]
fn matrices_side_by_side_are_orthogonalised_apart() {
    let mut layout = ParamLayout::new(&network(&config()));
    // Of unequal width, one of them wider than high.
    for spec in layout.specs.iter_mut().filter(|spec| spec.parts.len() > 1) {
        spec.parts = vec![19, 17];
    }
    let grads: Vec<f32> = (0..layout.len()).map(|i| ((i * 37) % 101) as f32 / 50.0 - 1.0).collect();
    let before = step_of(&layout, &grads, SimdLevel::detect());
    let several = layout.specs.iter().zip(&layout.ranges).filter(|(spec, _)| spec.parts.len() > 1);
    let mut seen = 0;
    for (spec, range) in several {
        // The first part's gradient is another: its step alone changes.
        let (ld, first) = (spec.shape[1], spec.parts[0]);
        let mut other = grads.clone();
        for (at, g) in other[range.clone()].iter_mut().enumerate().filter(|(at, _)| at % ld < first) {
            *g = -*g + (at % 7) as f32;
        }
        let after = step_of(&layout, &other, SimdLevel::detect());
        for at in 0..layout.len() {
            let inside = range.contains(&at) && (at - range.start) % ld < first;
            assert!(inside || before[at] == after[at], "{} {at}", spec.name);
        }
        assert!(before[range.clone()] != after[range.clone()], "{}", spec.name);
        seen += 1;
    }
    assert_eq!(seen, 2, "queries, keys and values of two layers");
}

#[test]
fn every_level_makes_the_same_step() {
    let layout = ParamLayout::new(&network(&config()));
    let grads: Vec<f32> = (0..layout.len()).map(|i| ((i * 53) % 97) as f32 / 50.0 - 1.0).collect();
    let scalar = step_of(&layout, &grads, SimdLevel::SCALAR);
    assert!(SimdLevel::available().into_iter().all(|level| step_of(&layout, &grads, level) == scalar));
}

#[test]
fn a_step_with_too_few_slots_is_an_error() {
    let layout = ParamLayout::new(&network(&config()));
    for rule in [muon(), ADAMW.into()] {
        let (mut params, mut grads) = (vec![1.0; layout.len()], vec![1.0; layout.len()]);
        let (params, grads, slots) = (&mut params[..], &mut grads[..], &mut [vec![0.0; layout.len()]][..]);
        let (level, layout, lr, scale, n) = (SimdLevel::detect(), &layout, 0.1, 1.0, 1);
        let error = rule.step_cpu(CpuUpdate { level, layout, params, grads, slots, lr, scale, n }).unwrap_err();
        assert_eq!(error.to_string(), "the update has 1 slots of state, and the optimizer 2");
    }
}

#[test]
fn a_step_that_overflows_in_f16_leaves_muon_as_it_was_and_the_next_is_made() {
    // A scale at which gradients overflow.
    let scaling = LossScaling { scale: f32::MAX / 2.0, good: 0, skipped: 0 };
    let before = EngineState { loss_scaling: Some(scaling), ..start() };
    let mut engine = tensors(muon(), Precision::F16, &before);
    updates(&mut engine, 0..1);
    let skipped = engine.state_dict().unwrap();
    assert_eq!(skipped.loss_scaling.unwrap().skipped, 1);
    assert!(skipped.params == before.params);
    assert!(["momentum", "v"].iter().all(|slot| skipped.slot(slot).unwrap().iter().flatten().all(|&x| x == 0.0)));
    let good = LossScaling { scale: 1024.0, ..skipped.loss_scaling.unwrap() };
    let mut engine = tensors(muon(), Precision::F16, &EngineState { loss_scaling: Some(good), ..skipped });
    updates(&mut engine, 1..2);
    let made = engine.state_dict().unwrap();
    assert_eq!(made.loss_scaling.unwrap().skipped, 1);
    for ((spec, new), old) in param_specs(&config()).iter().zip(&made.params).zip(&before.params) {
        assert!(new != old && new.iter().all(|x| x.is_finite()), "{}", spec.name);
    }
}

#[test]
fn a_configuration_says_which_optimizer_has_what() {
    let train = TrainConfig { lr: 2e-3, ..TrainConfig::default() };
    let factors = |train: &TrainConfig| Arc::<dyn Optimizer>::from(train).rate_factors();
    assert_eq!(factors(&train), RateFactors::EQUAL);
    let train = TrainConfig { optimizer: OptimizerKind::Muon, lr_matrices: 0.02, lr_embeddings: 1e-3, ..train };
    assert_eq!(factors(&train), RateFactors { matrices: 0.02 / 2e-3, embeddings: 0.5 });
    let groups = ParameterGroup::of(&param_specs(&config()), &train);
    let found: Vec<_> = groups.iter().map(|g| (g.optimizer, g.name, g.tensors, g.parameters)).collect();
    let (muon, adamw) = (OptimizerKind::Muon, OptimizerKind::Adamw);
    let matrices = 2 * (4 * 12 * 12 + 2 * 12 * 20);
    let norms = param_specs(&config()).iter().filter(|spec| matches!(spec.role, Role::Norm | Role::Bias)).count();
    let of_norms = config().n_params() - matrices - (11 + 8 + 11) * 12;
    assert_eq!(
        found,
        [
            (muon, "matrices", 12, matrices),
            (adamw, "embeddings", 3, (11 + 8 + 11) * 12),
            (adamw, "norms and biases", norms, of_norms),
        ]
    );
    assert!((groups[0].lr - 0.02).abs() < 1e-15 && groups[1].lr == 1e-3 && groups[2].lr == 2e-3);
}
