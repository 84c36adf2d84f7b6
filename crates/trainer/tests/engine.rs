//! What the training loop relies on in an engine: exact resumption, accumulation, the same bits for the same seed,
//! dropout in training alone, and failures that are reported.

use std::process::Command;

use candle_core::Device;
use tinygpt_model::{GptConfig, Mlp, Precision, cpu::CpuPrecision, init_params, param_specs};
use tinygpt_sampler::{RngDomain, philox_at};
use tinygpt_trainer::{
    TrainError,
    engine::{AdamW, Batch, CpuEngine, Engine, EngineState, Evaluator, RateFactors, TensorEngine},
};

const ADAMW: AdamW = AdamW { beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1, rates: RateFactors::EQUAL };
const LR: f64 = 3e-3;
const CLIP: f64 = 1.0;

fn config(dropout: f64) -> GptConfig {
    GptConfig {
        vocab_size: 29,
        block_size: 16,
        n_layer: 2,
        n_head: 3,
        n_embd: 24,
        dropout,
        bias: true,
        mlp: Mlp::Gelu,
        ..GptConfig::default()
    }
}

/// Initial weights, larger than GPT-2's so that few updates change the loss.
fn initial(config: &GptConfig, seed: u64) -> EngineState {
    let mut params = init_params(config, seed);
    for (spec, values) in param_specs(config).iter().zip(&mut params) {
        if spec.decays() {
            values.iter_mut().for_each(|x| *x *= 4.0);
        }
    }
    EngineState::fresh(params)
}

/// An engine with what the tests need to know of it.
trait Tested: Engine + Sized {
    fn open(config: &GptConfig, adamw: AdamW, seed: u64, state: &EngineState) -> Self;
    fn gradients(&self) -> Vec<Vec<f32>>;
}

impl Tested for TensorEngine {
    fn open(config: &GptConfig, adamw: AdamW, seed: u64, state: &EngineState) -> Self {
        Self::new(config, Precision::F32, adamw, seed, state, &Device::Cpu).unwrap()
    }

    fn gradients(&self) -> Vec<Vec<f32>> {
        self.gradients().unwrap()
    }
}

impl Tested for CpuEngine {
    fn open(config: &GptConfig, adamw: AdamW, seed: u64, state: &EngineState) -> Self {
        Self::new(config, CpuPrecision::F32, adamw, seed, state).unwrap()
    }

    fn gradients(&self) -> Vec<Vec<f32>> {
        self.gradients()
    }
}

/// Every test of both engines.
macro_rules! for_each_engine {
    ($($test:ident),* $(,)?) => {
        mod tensor_ops {
            $(#[test] fn $test() { super::$test::<super::TensorEngine>() })*
        }
        mod cpu {
            $(#[test] fn $test() { super::$test::<super::CpuEngine>() })*
        }
    };
}

for_each_engine!(
    a_single_parameter_that_is_no_number_shows_in_the_loss,
    an_imported_state_goes_on_bit_for_bit_as_if_uninterrupted,
    an_exported_state_is_a_copy,
    a_state_of_another_shape_is_refused_and_nothing_changes,
    two_half_batches_accumulate_to_the_full_one,
    gradients_do_not_survive_an_update,
    clipping_scales_the_gradient_to_the_limit_and_reports_the_norm_before,
    a_learning_rate_of_zero_changes_the_moments_alone,
    some_updates_on_one_batch_lower_its_loss,
    dropout_differs_by_draw_and_by_seed_and_repeats,
    every_row_has_masks_of_its_own,
    evaluation_is_without_dropout_and_leaves_gradients_alone,
    windows_shorter_than_the_context_train_and_evaluate,
    two_engines_of_one_seed_make_the_same_updates,
    a_parameter_without_a_gradient_is_an_error_that_names_it,
    an_imported_state_is_checked_again,
    parameters_that_are_not_numbers_give_a_loss_that_is_none_and_no_panic,
    tokens_outside_the_vocabulary_are_an_error_and_no_panic,
    a_batch_that_fails_leaves_no_gradients_behind,
);

fn engine<E: Tested>(config: &GptConfig, seed: u64, state: &EngineState) -> E {
    E::open(config, ADAMW, seed, state)
}

/// A batch of random tokens, the `n`th of its kind.
fn batch(config: &GptConfig, n: u64, rows: usize, cols: usize) -> Batch {
    let token = |place: u32| {
        let token = |i: usize| philox_at(n, RngDomain::Noise, i as u64, place)[0] % config.vocab_size as u32;
        (0..rows * cols).map(token).collect()
    };
    Batch { ids: token(0), targets: token(1), rows, cols }
}

/// One update from one batch: loss and norm.
fn update(engine: &mut dyn Engine, n: u64) -> (f64, f64) {
    let batch = batch(engine.config(), n, 4, 16);
    (
        engine.forward_backward(&batch, n).unwrap().read().unwrap(),
        engine.optimizer_step(LR, CLIP).unwrap().read().unwrap(),
    )
}

fn bits(tensors: &[Vec<f32>]) -> Vec<u32> {
    tensors.iter().flatten().map(|x| x.to_bits()).collect()
}

/// Fails unless the two agree in every bit, and names the first parameter that does not.
fn assert_same_bits(label: &str, config: &GptConfig, a: &EngineState, b: &EngineState) {
    assert_eq!(a.updates, b.updates, "{label}");
    for (kind, a, b) in [
        ("value", &*a.params, &*b.params),
        ("m", a.slot("m").unwrap(), b.slot("m").unwrap()),
        ("v", a.slot("v").unwrap(), b.slot("v").unwrap()),
    ] {
        for ((spec, a), b) in param_specs(config).iter().zip(a).zip(b) {
            let differ = a.iter().zip(b).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
            assert!(a.len() == b.len() && differ == 0, "{label}: {kind} of {}: {differ} differ", spec.name);
        }
    }
}

fn an_imported_state_goes_on_bit_for_bit_as_if_uninterrupted<E: Tested>() {
    let config = config(0.2);
    let mut whole = engine::<E>(&config, 5, &initial(&config, 1));
    for n in 0..3 {
        update(&mut whole, n);
    }
    let state = whole.state_dict().unwrap();
    assert_eq!(state.updates, 3);
    // Into an engine that starts from it, and into one that has trained something else before.
    let mut fresh = engine::<E>(&config, 5, &state);
    let mut used = engine::<E>(&config, 5, &initial(&config, 2));
    update(&mut used, 9);
    used.forward_backward(&batch(&config, 8, 2, 16), 8).unwrap().read().unwrap();
    used.load_state_dict(&state).unwrap();
    assert_same_bits("imported", &config, &used.state_dict().unwrap(), &state);
    for n in 3..7 {
        let expected = update(&mut whole, n);
        assert_eq!(update(&mut fresh, n), expected, "update {n}");
        assert_eq!(update(&mut used, n), expected, "update {n}");
    }
    let end = whole.state_dict().unwrap();
    assert_same_bits("fresh", &config, &fresh.state_dict().unwrap(), &end);
    assert_same_bits("used", &config, &used.state_dict().unwrap(), &end);
}

fn an_exported_state_is_a_copy<E: Tested>() {
    let config = config(0.0);
    let mut engine = engine::<E>(&config, 5, &initial(&config, 1));
    update(&mut engine, 0);
    let state = engine.state_dict().unwrap();
    let kept = state.clone();
    update(&mut engine, 1);
    assert_eq!(state, kept);
    assert_ne!(engine.state_dict().unwrap().params, kept.params);
}

fn a_state_of_another_shape_is_refused_and_nothing_changes<E: Tested>() {
    let config = config(0.0);
    let mut engine = engine::<E>(&config, 5, &initial(&config, 1));
    update(&mut engine, 0);
    let before = engine.state_dict().unwrap();
    for spoil in [
        (|s: &mut EngineState| drop(s.params.pop())) as fn(&mut EngineState),
        |s| drop(s.optimizer[0].values.pop()),
        |s| s.optimizer[1].values[0].push(0.0),
        |s| drop(s.optimizer.pop()),
        |s| s.params[3].truncate(5),
    ] {
        let mut bad = before.clone();
        spoil(&mut bad);
        assert!(engine.load_state_dict(&bad).is_err());
        assert_same_bits("after a refused import", &config, &engine.state_dict().unwrap(), &before);
    }
}

fn two_half_batches_accumulate_to_the_full_one<E: Tested>() {
    let config = config(0.0);
    let full = batch(&config, 3, 6, 16);
    let half = |rows: std::ops::Range<usize>| Batch {
        ids: full.ids[rows.start * 16..rows.end * 16].to_vec(),
        targets: full.targets[rows.start * 16..rows.end * 16].to_vec(),
        rows: rows.len(),
        cols: 16,
    };
    for clip in [0.0, 0.3] {
        // beta1 = 0: the first moment is the gradient after clipping.
        let build = || {
            let adamw = AdamW { beta1: 0.0, ..ADAMW };
            E::open(&config, adamw, 5, &initial(&config, 1))
        };
        let (mut one, mut two) = (build(), build());
        let loss = one.forward_backward(&full, 0).unwrap().read().unwrap();
        let first = two.forward_backward(&half(0..3), 0).unwrap().read().unwrap();
        let second = two.forward_backward(&half(3..6), 1).unwrap().read().unwrap();
        assert_ne!(first, second);
        assert!((loss - (first + second) / 2.0).abs() < 1e-5);
        let (one_norm, two_norm) = (
            one.optimizer_step(LR, clip).unwrap().read().unwrap(),
            two.optimizer_step(LR, clip).unwrap().read().unwrap(),
        );
        assert!((one_norm / two_norm - 1.0).abs() < 1e-5, "{one_norm} {two_norm}");
        assert!(one_norm > 0.3, "clipping must be active: {one_norm}");

        let (one, two) = (one.state_dict().unwrap(), two.state_dict().unwrap());
        for ((spec, a), b) in param_specs(&config).iter().zip(one.slot("m").unwrap()).zip(two.slot("m").unwrap()) {
            let largest = a.iter().fold(0.0f32, |l, x| l.max(x.abs()));
            let off = a.iter().zip(b).fold(0.0f32, |l, (a, b)| l.max((a - b).abs()));
            assert!(off <= 1e-5 * largest, "{}: {off:e} of {largest:e}, clip {clip}", spec.name);
        }
    }
}

/// The gradients add up until an update is made, and start from nothing after it.
fn gradients_do_not_survive_an_update<E: Tested>() {
    let config = config(0.0);
    let mut used = engine::<E>(&config, 5, &initial(&config, 1));
    update(&mut used, 0);
    let mut fresh = engine::<E>(&config, 5, &used.state_dict().unwrap());
    for engine in [&mut used, &mut fresh] {
        engine.forward_backward(&batch(&config, 1, 4, 16), 1).unwrap().read().unwrap();
    }
    assert_eq!(bits(&used.gradients()), bits(&fresh.gradients()));
}

fn clipping_scales_the_gradient_to_the_limit_and_reports_the_norm_before<E: Tested>() {
    let config = config(0.0);
    let build = || {
        let adamw = AdamW { beta1: 0.0, ..ADAMW };
        E::open(&config, adamw, 5, &initial(&config, 1))
    };
    let norm = |tensors: &[Vec<f32>]| tensors.iter().flatten().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    let after = |clip: f64| {
        let mut engine = build();
        engine.forward_backward(&batch(&config, 0, 4, 16), 0).unwrap().read().unwrap();
        let reported = engine.optimizer_step(LR, clip).unwrap().read().unwrap();
        (reported, norm(engine.state_dict().unwrap().slot("m").unwrap()))
    };
    let (reported, unclipped) = after(0.0);
    assert!((reported / unclipped - 1.0).abs() < 1e-5);
    for (clip, expected) in [(0.5 * unclipped, 0.5 * unclipped), (2.0 * unclipped, unclipped)] {
        let (again, clipped) = after(clip);
        assert_eq!(again, reported);
        assert!((clipped / expected - 1.0).abs() < 1e-5, "clip {clip}: {clipped}, expected {expected}");
    }
}

fn a_learning_rate_of_zero_changes_the_moments_alone<E: Tested>() {
    let config = config(0.0);
    let start = initial(&config, 1);
    let mut engine = engine::<E>(&config, 5, &start);
    engine.forward_backward(&batch(&config, 0, 4, 16), 0).unwrap().read().unwrap();
    engine.optimizer_step(0.0, CLIP).unwrap().read().unwrap();
    let end = engine.state_dict().unwrap();
    assert_eq!(bits(&end.params), bits(&start.params));
    assert!(end.slot("m").unwrap().iter().flatten().any(|&m| m != 0.0), "moments begin as zeros");
    assert_eq!(end.updates, 1);
}

fn some_updates_on_one_batch_lower_its_loss<E: Tested>() {
    let config = config(0.0);
    let mut engine = engine::<E>(&config, 5, &initial(&config, 1));
    let batch = batch(&config, 0, 4, 16);
    let before = engine.eval(&batch).unwrap();
    for n in 0..20 {
        engine.forward_backward(&batch, n).unwrap().read().unwrap();
        engine.optimizer_step(1e-2, CLIP).unwrap().read().unwrap();
    }
    let after = engine.eval(&batch).unwrap();
    assert!(after < 0.7 * before, "{before} to {after}");
}

// ---------------------------------------------------------------------------------------------------------------------
// Dropout
// ---------------------------------------------------------------------------------------------------------------------

fn dropout_differs_by_draw_and_by_seed_and_repeats<E: Tested>() {
    let config = config(0.2);
    let batch = batch(&config, 0, 4, 16);
    let run = |seed: u64, micro_step: u64| {
        let mut engine = engine::<E>(&config, seed, &initial(&config, 1));
        let loss = engine.forward_backward(&batch, micro_step).unwrap().read().unwrap();
        (loss, bits(&engine.gradients()))
    };
    let base = run(5, 0);
    assert_eq!(run(5, 0), base);
    for (seed, micro_step) in [(5, 1), (5, 1 << 40), (6, 0)] {
        let other = run(seed, micro_step);
        assert!(other.0 != base.0 && other.1 != base.1, "seed {seed}, micro_step {micro_step}");
    }
}

/// Equal rows of a batch lose different values.
fn every_row_has_masks_of_its_own<E: Tested>() {
    let config = config(0.2);
    let row = batch(&config, 0, 1, 16);
    let loss = |rows: usize| {
        let batch = Batch { ids: row.ids.repeat(rows), targets: row.targets.repeat(rows), rows, cols: 16 };
        engine::<E>(&config, 5, &initial(&config, 1)).forward_backward(&batch, 0).unwrap().read().unwrap()
    };
    let losses = [1, 2, 4, 8].map(loss);
    for (i, a) in losses.iter().enumerate() {
        for b in &losses[i + 1..] {
            assert!((a - b).abs() > 1e-4, "{losses:?}");
        }
    }
}

fn evaluation_is_without_dropout_and_leaves_gradients_alone<E: Tested>() {
    let (with, without) = (config(0.2), config(0.0));
    let state = initial(&with, 1);
    let mut dropping = engine::<E>(&with, 5, &state);
    let mut plain = engine::<E>(&without, 6, &state);
    let batch = batch(&with, 0, 4, 16);
    let reference = plain.eval(&batch).unwrap();
    assert_eq!(dropping.eval(&batch).unwrap(), reference);
    // The sum over tokens, where training gives the mean.
    assert!((plain.forward_backward(&batch, 0).unwrap().read().unwrap() - reference / 64.0).abs() < 1e-5);

    dropping.forward_backward(&batch, 0).unwrap().read().unwrap();
    let gradients = bits(&dropping.gradients());
    assert_eq!(dropping.eval(&batch).unwrap(), reference);
    assert_eq!(bits(&dropping.gradients()), gradients);
    // An evaluation between two updates changes nothing, and sees each update.
    let mut other = engine::<E>(&with, 5, &state);
    other.forward_backward(&batch, 0).unwrap().read().unwrap();
    for engine in [&mut dropping, &mut other] {
        engine.optimizer_step(LR, CLIP).unwrap().read().unwrap();
    }
    let end = other.state_dict().unwrap();
    assert_same_bits("with evaluations", &with, &dropping.state_dict().unwrap(), &end);
    let evaluated = dropping.eval(&batch).unwrap();
    assert_ne!(evaluated, reference);
    assert_eq!(evaluated, engine::<E>(&with, 7, &end).eval(&batch).unwrap());
}

fn windows_shorter_than_the_context_train_and_evaluate<E: Tested>() {
    let config = config(0.2);
    let mut engine = engine::<E>(&config, 5, &initial(&config, 1));
    for (n, (rows, cols)) in [(1, 1), (3, 7), (1, 16)].into_iter().enumerate() {
        let batch = batch(&config, n as u64, rows, cols);
        assert!(engine.eval(&batch).unwrap().is_finite());
        assert!(engine.forward_backward(&batch, n as u64).unwrap().read().unwrap().is_finite());
        assert!(engine.optimizer_step(LR, CLIP).unwrap().read().unwrap() > 0.0);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The same bits
// ---------------------------------------------------------------------------------------------------------------------

/// Five updates: losses, norms and the state, in bits. Products large enough to be cut among threads.
fn five_updates<E: Tested>() -> Vec<u64> {
    let config = GptConfig { vocab_size: 65, block_size: 32, n_head: 4, n_embd: 96, ..config(0.2) };
    let mut engine = engine::<E>(&config, 5, &initial(&config, 1));
    let mut all = Vec::new();
    for n in 0..5 {
        for half in 0..2 {
            let loss =
                engine.forward_backward(&batch(&config, 2 * n + half, 20, 32), 2 * n + half).unwrap().read().unwrap();
            all.push(loss.to_bits());
        }
        all.push(engine.optimizer_step(LR, CLIP).unwrap().read().unwrap().to_bits());
    }
    all.push(engine.eval(&batch(&config, 99, 6, 32)).unwrap().to_bits());
    let state = engine.state_dict().unwrap();
    let EngineState { params, updates, .. } = &state;
    let [m, v] = ["m", "v"].map(|name| state.slot(name).unwrap());
    assert_eq!(*updates, 5);
    all.extend([params, m, v].iter().flat_map(|t| bits(t)).map(u64::from));
    all
}

/// FNV-1a.
fn digest(words: &[u64]) -> u64 {
    words.iter().fold(0xCBF2_9CE4_8422_2325, |hash, &word| (hash ^ word).wrapping_mul(0x0100_0000_01B3))
}

fn two_engines_of_one_seed_make_the_same_updates<E: Tested>() {
    let one = five_updates::<E>();
    assert!(one == five_updates::<E>());
    assert!(one.len() > 100_000);
}

fn a_single_parameter_that_is_no_number_shows_in_the_loss<E: Tested>() {
    let config = config(0.0);
    let mut state = initial(&config, 1);
    // The embedding of a token that the text does not have: the logits alone know it.
    state.params[0][28 * config.n_embd] = f32::NAN;
    let mut engine = engine::<E>(&config, 5, &state);
    let mut batch = batch(&config, 0, 4, 16);
    batch.ids.iter_mut().chain(&mut batch.targets).for_each(|id| *id %= 28);
    assert!(engine.eval(&batch).unwrap().is_nan());
    assert!(engine.forward_backward(&batch, 0).unwrap().read().unwrap().is_nan());
}

#[test]
fn a_batch_of_no_windows_is_an_error_and_no_panic_on_the_cpu() {
    let config = config(0.0);
    let mut engine = engine::<CpuEngine>(&config, 5, &initial(&config, 1));
    let empty = Batch { ids: vec![], targets: vec![], rows: 0, cols: 16 };
    assert!(engine.forward_backward(&empty, 0).is_err() && engine.eval(&empty).is_err());
}

#[test]
#[ignore = "run by updates_have_the_same_bits_on_one_and_on_two_threads, in processes of its own"]
#[expect(clippy::print_stdout, reason = "how the other process gets the result")]
fn print_digest() {
    println!("\ndigest {:016x} {:016x}", digest(&five_updates::<TensorEngine>()), digest(&five_updates::<CpuEngine>()));
}

/// The numbers of threads come from the environment, so each choice is a process of its own. The program gives rayon
/// the cores and candle one thread inside an operation; no other choice may change a bit either.
#[test]
fn updates_have_the_same_bits_on_one_and_on_two_threads() {
    let digest = |rayon: &str, candle: &str| {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "engine::print_digest", "--ignored", "--nocapture"])
            .env("RAYON_NUM_THREADS", rayon)
            .env("CANDLE_NUM_THREADS", candle)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{rayon} and {candle} threads: {text}");
        text.lines().find(|line| line.starts_with("digest ")).unwrap().to_owned()
    };
    let one = digest("1", "1");
    for (rayon, candle) in [("2", "1"), ("3", "1"), ("2", "2")] {
        assert_eq!(digest(rayon, candle), one, "{rayon} threads of rayon, {candle} of candle");
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Failures
// ---------------------------------------------------------------------------------------------------------------------

/// The initial state with one parameter set to a value throughout.
fn with(config: &GptConfig, name: &str, value: f32) -> EngineState {
    let mut state = initial(config, 1);
    let index = param_specs(config).iter().position(|spec| spec.name == name).unwrap();
    state.params[index].fill(value);
    state
}

fn a_parameter_without_a_gradient_is_an_error_that_names_it<E: Tested>() {
    let config = config(0.0);
    for (zero, dead) in [
        // Nothing behind a zero matrix matters to the loss.
        ("transformer.h.1.mlp.c_proj.weight", "transformer.h.1.ln_2.weight"),
        ("transformer.h.0.attn.c_proj.weight", "transformer.h.0.ln_1.weight"),
    ] {
        let mut engine = engine::<E>(&config, 5, &with(&config, zero, 0.0));
        let error = engine.forward_backward(&batch(&config, 0, 4, 16), 0).unwrap_err();
        assert!(matches!(&error, TrainError::MissingGradient { name, .. } if name == dead), "{error}");
        assert!(error.to_string().contains(dead), "{error}");
    }
}

fn an_imported_state_is_checked_again<E: Tested>() {
    let config = config(0.0);
    let mut engine = engine::<E>(&config, 5, &initial(&config, 1));
    update(&mut engine, 0);
    engine.load_state_dict(&with(&config, "transformer.h.1.mlp.c_proj.weight", 0.0)).unwrap();
    let error = engine.forward_backward(&batch(&config, 1, 4, 16), 1).unwrap_err();
    assert!(matches!(error, TrainError::MissingGradient { .. }), "{error}");
}

fn parameters_that_are_not_numbers_give_a_loss_that_is_none_and_no_panic<E: Tested>() {
    let config = config(0.2);
    for bad in [f32::NAN, f32::INFINITY] {
        for name in ["transformer.wte.weight", "transformer.h.0.mlp.c_fc.weight", "transformer.ln_f.weight"] {
            let mut engine = engine::<E>(&config, 5, &with(&config, name, bad));
            let batch = batch(&config, 0, 4, 16);
            assert!(!engine.forward_backward(&batch, 0).unwrap().read().unwrap().is_finite(), "{name} = {bad}");
            assert!(!engine.eval(&batch).unwrap().is_finite(), "{name} = {bad}");
            assert!(!engine.optimizer_step(LR, CLIP).unwrap().read().unwrap().is_finite(), "{name} = {bad}");
            assert!(engine.state_dict().is_ok());
        }
    }
}

fn tokens_outside_the_vocabulary_are_an_error_and_no_panic<E: Tested>() {
    let config = config(0.0);
    let mut engine = engine::<E>(&config, 5, &initial(&config, 1));
    let good = batch(&config, 0, 2, 16);
    let (mut ids, mut targets, mut long) = (good.clone(), good.clone(), batch(&config, 0, 2, 17));
    ids.ids[3] = 29;
    targets.targets[3] = 29;
    long.rows = 2;
    for bad in [ids, targets, long] {
        assert!(engine.forward_backward(&bad, 0).is_err());
        assert!(engine.eval(&bad).is_err());
    }
    assert!(engine.forward_backward(&good, 0).unwrap().read().unwrap().is_finite());
}

fn a_batch_that_fails_leaves_no_gradients_behind<E: Tested>() {
    let config = config(0.0);
    for place in [0, 31] {
        let mut engine = engine::<E>(&config, 5, &initial(&config, 1));
        let mut bad = batch(&config, 0, 2, 16);
        bad.targets[place] = 29;
        assert!(engine.forward_backward(&bad, 0).is_err());
        assert!(engine.gradients().iter().flatten().all(|&grad| grad == 0.0), "token {place}");
    }
}
