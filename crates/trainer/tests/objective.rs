//! Terms of the loss beside the cross-entropy: the gradient of a prior is that of its penalty, in both engines alike.

use candle_core::Device;
use tinygpt_model::{GptConfig, Precision, cpu::CpuPrecision, init_params, param_specs};
use tinygpt_sampler::{RngDomain, philox_at};
use tinygpt_trainer::{
    config::PriorKind,
    engine::{AdamW, Batch, CpuEngine, Engine, EngineState, Objective, Prior, RateFactors, TensorEngine},
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
    engine.set_objective(&Objective { prior }).unwrap();
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
        loaded.set_objective(&Objective { prior: PRIORS[0] }).unwrap();
        loaded.load_state_dict(&initial()).unwrap();
        for engine in [&mut loaded, &mut whole] {
            engine.forward_backward(&batch(0), 0).unwrap();
        }
        whole.set_objective(&Objective { prior: PRIORS[0] }).unwrap();
        for engine in [&mut loaded, &mut whole] {
            engine.optimizer_step(LR, 1.0).unwrap();
        }
        assert_eq!(loaded.state_dict().unwrap(), whole.state_dict().unwrap());
    }
}
