//! Terms of the loss beside the cross-entropy: the gradient of a prior is that of its penalty, and a model stays near another,
//! in both engines alike. `crates/model/tests/gradients.rs` has the gradient of the divergence by finite differences.

use candle_core::{DType, Device, Tensor};
use tinygpt_model::{
    Gpt, GptConfig, Precision, cpu::CpuPrecision, init_params, ops::Tokens, param_specs, params::to_tensors,
};
use tinygpt_sampler::{RngDomain, philox_at};
use tinygpt_trainer::{
    config::PriorKind,
    engine::{AdamW, Batch, CpuEngine, Engine, EngineState, Objective, Prior, RateFactors, Reference, TensorEngine},
};

/// The first moment after a first update is the gradient that it was given.
const ADAMW: AdamW = AdamW { beta1: 0.0, beta2: 0.99, eps: 1e-8, weight_decay: 0.1, rates: RateFactors::EQUAL };
const LR: f64 = 3e-3;
const PRIORS: [Prior; 2] = [Prior { kind: PriorKind::L2, weight: 0.03 }, Prior { kind: PriorKind::L1, weight: 0.002 }];

fn config() -> GptConfig {
    GptConfig { vocab_size: 29, block_size: 16, n_layer: 1, n_head: 2, n_embd: 24, bias: true, ..GptConfig::default() }
}

/// Initial weights with one that is zero.
fn initial() -> EngineState {
    let mut params = init_params(&config(), 1);
    params[0][5] = 0.0;
    EngineState::fresh(params)
}

fn engines(precision: Precision) -> Vec<Box<dyn Engine>> {
    let (config, state) = (config(), initial());
    let tensors = TensorEngine::new(&config, precision, ADAMW, 5, &state, &Device::Cpu).unwrap();
    let mut engines: Vec<Box<dyn Engine>> = vec![Box::new(tensors)];
    if precision == Precision::F32 {
        engines.push(Box::new(CpuEngine::new(&config, CpuPrecision::F32, ADAMW, 5, &state).unwrap()));
    }
    engines
}

/// A batch of random tokens, the `n`th of its kind.
fn batch(n: u64) -> Batch {
    let config = config();
    let token = |place: u32| {
        let token = |i: usize| philox_at(n, RngDomain::Noise, i as u64, place)[0] % config.vocab_size as u32;
        (0..4 * 16).map(token).collect()
    };
    Batch { ids: token(0), targets: token(1), rows: 4, cols: 16 }
}

/// One update from two batches: the losses, the norm, and the gradient.
fn update(engine: &mut dyn Engine, prior: Prior, clip: f64) -> (Vec<f64>, f64, Vec<Vec<f32>>) {
    engine.set_objective(&Objective { prior, reference: None }).unwrap();
    two_batches(engine, clip)
}

fn two_batches(engine: &mut dyn Engine, clip: f64) -> (Vec<f64>, f64, Vec<Vec<f32>>) {
    let losses = (0..2).map(|n| engine.forward_backward(&batch(n), n).unwrap().read().unwrap()).collect();
    let norm = engine.optimizer_step(LR, clip).unwrap().read().unwrap();
    (losses, norm, engine.state_dict().unwrap().slot("m").unwrap().to_vec())
}

/// The penalty as the documentation has it, in f64.
fn penalty(prior: Prior, params: &[Vec<f64>]) -> f64 {
    let specs = param_specs(&config());
    let covered = specs.iter().zip(params).filter(|(spec, _)| spec.decays()).flat_map(|(_, values)| values);
    match prior.kind {
        PriorKind::None => 0.0,
        PriorKind::L2 => prior.weight / 2.0 * covered.map(|w| w * w).sum::<f64>(),
        PriorKind::L1 => prior.weight * covered.map(|w| w.abs()).sum::<f64>(),
    }
}

fn norm(gradient: &[Vec<f32>]) -> f64 {
    gradient.iter().flatten().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt()
}

#[test]
fn a_prior_adds_the_gradient_of_its_penalty_once_an_update_and_losses_are_without_it() {
    for precision in [Precision::F32, Precision::F16] {
        for prior in PRIORS {
            for (with, without) in engines(precision).iter_mut().zip(&mut engines(precision)) {
                let (losses, _, with) = update(with.as_mut(), prior, 0.0);
                let (losses_without, _, without) = update(without.as_mut(), Prior::default(), 0.0);
                assert_eq!(losses, losses_without);
                let mut params: Vec<Vec<f64>> =
                    initial().params.iter().map(|values| values.iter().map(|&x| f64::from(x)).collect()).collect();
                for (i, spec) in param_specs(&config()).iter().enumerate() {
                    for e in [0, 5, spec.len() / 2, spec.len() - 1] {
                        // At zero the difference of L1 is that of both sides: 0.
                        const H: f64 = 1e-6;
                        let value = params[i][e];
                        let mut at = |x| {
                            params[i][e] = x;
                            penalty(prior, &params)
                        };
                        let difference = (at(value + H) - at(value - H)) / (2.0 * H);
                        at(value);
                        let found = f64::from(with[i][e]) - f64::from(without[i][e]);
                        let name = &spec.name;
                        assert!((found - difference).abs() < 2e-7, "{name}[{e}]: {found}, by differences {difference}");
                        assert!(spec.decays() || found == 0.0, "{name} has no prior");
                    }
                }
            }
        }
    }
}

#[test]
fn a_prior_is_part_of_the_gradient_that_is_clipped() {
    for prior in PRIORS.map(|prior| Prior { weight: 100.0 * prior.weight, ..prior }) {
        for (engine, clipped) in engines(Precision::F32).iter_mut().zip(&mut engines(Precision::F32)) {
            let (_, told, gradient) = update(engine.as_mut(), prior, 0.0);
            assert!((told / norm(&gradient) - 1.0).abs() < 1e-5);
            let (_, told_too, clipped) = update(clipped.as_mut(), prior, 0.1 * told);
            assert_eq!(told, told_too);
            assert!((norm(&clipped) / (0.1 * told) - 1.0).abs() < 1e-5);
        }
    }
}

#[test]
fn engines_agree_on_updates_with_a_prior() {
    for prior in PRIORS {
        let [tensors, cpu] = [0, 1].map(|n| {
            let mut engine = engines(Precision::F32).swap_remove(n);
            (0..5).for_each(|_| drop(update(engine.as_mut(), prior, 1.0)));
            engine.state_dict().unwrap().params
        });
        for ((spec, a), b) in param_specs(&config()).iter().zip(&tensors).zip(&cpu) {
            let off = a.iter().zip(b).fold(0.0f32, |off, (a, b)| off.max((a - b).abs()));
            assert!(off < 1e-4, "{}: {off:e}", spec.name);
        }
    }
}

#[test]
fn without_a_prior_or_weight_nothing_changes_in_a_bit_and_a_loaded_state_keeps_it() {
    let bits = |engine: &mut dyn Engine, priors: &[Prior]| {
        for &prior in priors {
            update(engine, prior, 1.0);
        }
        engine.state_dict().unwrap()
    };
    let none = Prior { kind: PriorKind::None, weight: 1.0 };
    let weightless = Prior { kind: PriorKind::L2, weight: 0.0 };
    for n in 0..2 {
        let engine = || engines(Precision::F32).swap_remove(n);
        let mut untold = engine();
        for micro_step in 0..2 {
            untold.forward_backward(&batch(micro_step), micro_step).unwrap();
        }
        untold.optimizer_step(LR, 1.0).unwrap();
        for prior in [none, weightless] {
            assert_eq!(bits(engine().as_mut(), &[prior]), untold.state_dict().unwrap());
        }
        let (mut loaded, mut whole) = (engine(), engine());
        loaded.set_objective(&Objective { prior: PRIORS[0], reference: None }).unwrap();
        loaded.load_state_dict(&initial()).unwrap();
        for engine in [&mut loaded, &mut whole] {
            engine.forward_backward(&batch(0), 0).unwrap();
        }
        whole.set_objective(&Objective { prior: PRIORS[0], reference: None }).unwrap();
        for engine in [&mut loaded, &mut whole] {
            engine.optimizer_step(LR, 1.0).unwrap();
        }
        assert_eq!(loaded.state_dict().unwrap(), whole.state_dict().unwrap());
    }
}

/// A model of another shape, with larger weights and a longer context, to stay near.
fn reference(weight: f64, logit_cap: f64) -> Reference {
    let config = GptConfig { n_embd: 16, n_layer: 2, block_size: 80, bias: false, logit_cap, ..config() };
    let mut params = init_params(&config, 9);
    params[0].iter_mut().for_each(|x| *x *= 20.0);
    Reference { config, params, weight }
}

fn near(reference: Reference) -> Objective {
    Objective { prior: Prior::default(), reference: Some(reference) }
}

#[test]
fn engines_agree_on_the_gradient_of_staying_near_a_model() {
    for (weight, own_cap, cap) in [(0.5, 0.0, 0.0), (4.0, 3.0, 0.0), (1.0, 0.0, 2.0), (40.0, 5.0, 5.0)] {
        // Windows of more than one task of the head, and more than are in flight at a time.
        let config = GptConfig { block_size: 72, logit_cap: own_cap, ..config() };
        let state = EngineState::fresh(init_params(&config, 1));
        let batch = |n: u64| {
            let token = |place: u32| {
                let token = |i: usize| philox_at(n, RngDomain::Noise, i as u64, place)[0] % config.vocab_size as u32;
                (0..11 * 72).map(token).collect()
            };
            Batch { ids: token(0), targets: token(1), rows: 11, cols: 72 }
        };
        let mut engines: [Box<dyn Engine>; 2] = [
            Box::new(TensorEngine::new(&config, Precision::F32, ADAMW, 5, &state, &Device::Cpu).unwrap()),
            Box::new(CpuEngine::new(&config, CpuPrecision::F32, ADAMW, 5, &state).unwrap()),
        ];
        let [tensors, cpu] = [0, 1].map(|n| {
            let engine = engines[n].as_mut();
            let loss_without = engine.forward_backward(&batch(0), 0).unwrap().read().unwrap();
            engine.load_state_dict(&state).unwrap();
            engine.set_objective(&near(reference(weight, cap))).unwrap();
            let evaluated = engine.eval(&batch(0)).unwrap();
            assert_eq!(engine.forward_backward(&batch(0), 0).unwrap().read().unwrap(), loss_without);
            assert_eq!(engine.eval(&batch(0)).unwrap(), evaluated);
            engine.forward_backward(&batch(1), 1).unwrap();
            engine.optimizer_step(LR, 0.0).unwrap();
            engine.state_dict().unwrap().slot("m").unwrap().to_vec()
        });
        for ((spec, a), b) in param_specs(&config).iter().zip(&tensors).zip(&cpu) {
            let largest = a.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
            let off = a.iter().zip(b).fold(0.0f32, |off, (a, b)| off.max((a - b).abs()));
            assert!(largest > 0.0 && off < 1e-4 * largest, "{}: {off:e} of {largest:e}, {weight}", spec.name);
        }
    }
}

/// The mean divergence of an engine's model from the reference, in nats a token, on some batches.
fn divergence(engine: &dyn Engine, reference: &Reference) -> f64 {
    let gpt = |config: &GptConfig, params: &[Vec<f32>]| {
        Gpt::new(config, &to_tensors(config, params, DType::F32, &Device::Cpu).unwrap()).unwrap()
    };
    let model = gpt(&config(), &engine.state_dict().unwrap().params);
    let other = gpt(&reference.config, &reference.params);
    let Batch { ids, targets, rows, cols } = batch(50);
    let tokens = Tokens::new(&ids, rows, cols, config().vocab_size, &Device::Cpu).unwrap();
    let targets = Tensor::from_vec(targets, rows * cols, &Device::Cpu).unwrap();
    let (losses, objective) = model.losses_near(&tokens, &targets, None, Some((&other, 1.0))).unwrap();
    f64::from((objective - losses).unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap())
}

#[test]
fn a_large_weight_keeps_a_model_near_and_none_lets_it_go() {
    let reference = reference(100.0, 0.0);
    for n in 0..2 {
        let trained = |objective: Objective| {
            let mut engine = engines(Precision::F32).swap_remove(n);
            engine.set_objective(&objective).unwrap();
            for _ in 0..60 {
                two_batches(engine.as_mut(), 1.0);
            }
            divergence(engine.as_ref(), &reference)
        };
        let (near, far) = (trained(near(reference.clone())), trained(Objective::default()));
        assert!(near < 0.1 * far, "{near} nats from the reference, and {far} without it");
    }
}

#[test]
fn a_reference_stays_when_a_state_is_loaded_and_one_that_does_not_match_is_refused() {
    for n in 0..2 {
        let engine = || engines(Precision::F32).swap_remove(n);
        let (mut loaded, mut told) = (engine(), engine());
        loaded.set_objective(&near(reference(2.0, 0.0))).unwrap();
        loaded.load_state_dict(&initial()).unwrap();
        told.set_objective(&near(reference(2.0, 0.0))).unwrap();
        for bad in [GptConfig { vocab_size: 30, ..config() }, GptConfig { block_size: 8, ..config() }] {
            let params = init_params(&bad, 1);
            let error = told.set_objective(&near(Reference { config: bad, params, weight: 1.0 })).unwrap_err();
            assert!(error.to_string().contains("that of the reference"), "{error}");
        }
        let updates = [&mut loaded, &mut told].map(|engine| two_batches(engine.as_mut(), 1.0));
        assert_eq!(updates[0], updates[1]);
        assert_ne!(updates[0].2, two_batches(engine().as_mut(), 1.0).2);
    }
}
