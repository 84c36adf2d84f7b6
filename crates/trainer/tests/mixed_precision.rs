//! Products in bf16 and f16 on the tensor engine, which a GPU runs: what they are off by, and how f16 scales its loss.

use candle_core::Device;
use tinygpt_model::{GptConfig, Mlp, Precision, init_params, param_specs};
use tinygpt_sampler::{RngDomain, philox_at};
use tinygpt_trainer::engine::{AdamW, Batch, Engine, EngineState, LossScaling, RateFactors, TensorEngine};

const ADAMW: AdamW = AdamW { beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1, rates: RateFactors::EQUAL };

fn config() -> GptConfig {
    GptConfig {
        vocab_size: 29,
        block_size: 16,
        n_layer: 2,
        n_head: 3,
        n_embd: 48,
        dropout: 0.1,
        bias: true,
        mlp: Mlp::Gelu,
        ..GptConfig::default()
    }
}

fn engine(precision: Precision, state: &EngineState) -> TensorEngine {
    TensorEngine::new(&config(), precision, ADAMW, 5, state, &Device::Cpu).unwrap()
}

fn fresh() -> EngineState {
    EngineState::fresh(init_params(&config(), 1))
}

/// Windows of counting with some noise, so that there is something to learn.
fn batch(n: u64) -> Batch {
    let (rows, cols, v) = (8, 16, config().vocab_size as u32);
    let word = |i: usize| philox_at(n, RngDomain::Noise, i as u64, 0);
    let token = |i: usize, ahead: usize| {
        let [start, noise, other, _] = [word(i / cols)[0], word(i + ahead + 1000)[1], word(i + ahead + 1000)[2], 0];
        if noise % 8 == 0 { other % v } else { (start + (i % cols + ahead) as u32 * 3) % v }
    };
    let tokens = |ahead: usize| (0..rows * cols).map(|i| token(i, ahead)).collect();
    Batch { ids: tokens(0), targets: tokens(1), rows, cols }
}

/// The loss falls as in f32: of 60 updates, by which it has more than halved, none is off by more than 1%.
#[test]
fn the_losses_of_training_are_those_of_f32_within_a_hundredth() {
    let curve = |precision| -> Vec<f64> {
        let mut engine = engine(precision, &fresh());
        (0..60)
            .map(|n| {
                let loss = engine.forward_backward(&batch(n), n).unwrap().read().unwrap();
                engine.optimizer_step(3e-3, 1.0).unwrap().read().unwrap();
                loss
            })
            .collect()
    };
    let expected = curve(Precision::F32);
    assert!(expected[59] < 0.5 * expected[0], "{} to {}", expected[0], expected[59]);
    for precision in [Precision::Bf16, Precision::F16] {
        let losses = curve(precision);
        assert_ne!(losses, expected, "{precision:?} rounds nothing");
        for (n, (loss, expected)) in losses.iter().zip(&expected).enumerate() {
            assert!((loss / expected - 1.0).abs() < 0.01, "{precision:?}, update {n}: {loss}, in f32 {expected}");
        }
    }
}

/// By their distance, relative to their norm: of elements near zero, rounding leaves nothing.
#[test]
fn gradients_are_those_of_f32_within_what_the_operands_round() {
    let gradients = |precision| {
        let mut engine = engine(precision, &fresh());
        engine.forward_backward(&batch(0), 0).unwrap().read().unwrap();
        engine.gradients().unwrap()
    };
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let expected = gradients(Precision::F32);
    for (precision, scale, tolerance) in [(Precision::Bf16, 1.0, 0.03), (Precision::F16, 65536.0, 0.004)] {
        for ((spec, ours), theirs) in param_specs(&config()).iter().zip(gradients(precision)).zip(&expected) {
            // Of the biases of keys the gradient is zero but for rounding.
            let range = if spec.name.ends_with("c_attn.bias") { 0..48 } else { 0..spec.len() };
            let pairs = || range.clone().map(|i| (f64::from(ours[i]) / scale, f64::from(theirs[i])));
            let (off, size) = (norm(&mut pairs().map(|(a, b)| a - b)), norm(&mut pairs().map(|(_, b)| b)));
            assert!(off < tolerance * size, "{precision:?}, {}: off by {off:e} of {size:e}", spec.name);
        }
    }
}

fn scaled(scale: f32, good: u64) -> EngineState {
    EngineState { loss_scaling: Some(LossScaling { scale, good, skipped: 0 }), ..fresh() }
}

#[test]
fn an_update_whose_gradients_overflow_is_skipped_and_the_scale_halved() {
    let start = scaled(f32::MAX / 4.0, 7);
    let mut f16 = engine(Precision::F16, &start);
    let start = f16.state_dict().unwrap();
    assert!(f16.forward_backward(&batch(0), 0).unwrap().read().unwrap().is_finite());
    assert_eq!(f16.optimizer_step(3e-3, 1.0).unwrap().read().unwrap(), 0.0);
    let skipped = f16.state_dict().unwrap();
    assert_eq!((&skipped.params, &skipped.optimizer), (&start.params, &start.optimizer));
    let scaling = LossScaling { scale: f32::MAX / 8.0, good: 0, skipped: 1 };
    assert_eq!((skipped.updates, skipped.loss_scaling), (1, Some(scaling)));

    // A skipped update leaves no trace: the next one is as if it were the first.
    let state = EngineState { loss_scaling: Some(LossScaling { scale: 1024.0, ..scaling }), ..skipped };
    let (mut after, mut first) = (engine(Precision::F16, &state), engine(Precision::F16, &scaled(1024.0, 0)));
    let update = |engine: &mut TensorEngine| {
        engine.forward_backward(&batch(1), 1).unwrap().read().unwrap();
        engine.optimizer_step(3e-3, 1.0).unwrap().read().unwrap();
        engine.state_dict().unwrap()
    };
    let (after, first) = (update(&mut after), update(&mut first));
    assert_eq!((after.params == first.params, after.optimizer == first.optimizer), (true, true));
    assert_ne!(first.params, start.params);
}

#[test]
fn the_scale_doubles_after_two_thousand_good_updates() {
    for (good, expected) in [(1998, (1024.0, 1999)), (1999, (2048.0, 0))] {
        let mut f16 = engine(Precision::F16, &scaled(1024.0, good));
        f16.forward_backward(&batch(0), 0).unwrap().read().unwrap();
        assert!(f16.optimizer_step(3e-3, 1.0).unwrap().read().unwrap() > 0.0);
        let scaling = f16.state_dict().unwrap().loss_scaling.unwrap();
        assert_eq!((scaling.scale, scaling.good, scaling.skipped), (expected.0, expected.1, 0));
    }
}

/// A power of 2 changes no digit of what neither overflows nor underflows: norm and update do not depend on it.
#[test]
fn the_scale_cancels_out() {
    let updated = |precision, state: EngineState| {
        let mut engine = engine(precision, &state);
        engine.forward_backward(&batch(0), 0).unwrap().read().unwrap();
        let norm = engine.optimizer_step(3e-3, 0.1).unwrap().read().unwrap();
        (norm, engine.state_dict().unwrap())
    };
    let (norm, by_1024) = updated(Precision::F16, scaled(1024.0, 0));
    let (other_norm, by_4096) = updated(Precision::F16, scaled(4096.0, 0));
    let (expected, f32) = updated(Precision::F32, fresh());
    assert!(norm > 0.1 && (norm / expected - 1.0).abs() < 1e-2, "{norm}, in f32 {expected}");
    assert!((norm / other_norm - 1.0).abs() < 1e-3, "{norm} {other_norm}");
    let largest = |state: &EngineState| state.slot("m").unwrap().iter().flatten().fold(0f32, |a, x| a.max(x.abs()));
    assert!((largest(&by_1024) / largest(&by_4096) - 1.0).abs() < 1e-2);
    assert!((largest(&by_1024) / largest(&f32) - 1.0).abs() < 1e-2);
}

#[test]
fn gradients_that_are_no_numbers_at_a_scale_of_one_are_reported() {
    let mut state = scaled(1.0, 0);
    for (spec, values) in param_specs(&config()).iter().zip(&mut state.params) {
        if spec.name.ends_with("ln_f.weight") {
            values.iter_mut().for_each(|x| *x = f32::INFINITY);
        }
    }
    let mut f16 = engine(Precision::F16, &state);
    f16.forward_backward(&batch(0), 0).unwrap().read().unwrap();
    assert!(!f16.optimizer_step(3e-3, 1.0).unwrap().read().unwrap().is_finite());
}

#[test]
fn an_imported_state_goes_on_bit_for_bit_with_its_scale() {
    for (precision, start) in [(Precision::Bf16, fresh()), (Precision::F16, scaled(f32::MAX / 4.0, 0))] {
        let mut whole = engine(precision, &start);
        let update = |engine: &mut TensorEngine, n: u64| {
            (
                engine.forward_backward(&batch(n), n).unwrap().read().unwrap(),
                engine.optimizer_step(3e-3, 1.0).unwrap().read().unwrap(),
            )
        };
        for n in 0..3 {
            update(&mut whole, n);
        }
        let mut resumed = engine(precision, &whole.state_dict().unwrap());
        for n in 3..6 {
            assert_eq!(update(&mut whole, n), update(&mut resumed, n), "{precision:?}");
        }
        assert!(whole.state_dict().unwrap() == resumed.state_dict().unwrap(), "{precision:?}");
    }
}
