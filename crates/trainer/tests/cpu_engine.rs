//! The CPU engine against the tensor engine: losses, every gradient, evaluations and updates, on shapes that fill no
//! vector and no tile; in bf16 too, by the software path where the processor has no instructions for it.

use candle_core::Device;
use proptest::prelude::*;
use tinygpt_model::{
    GptConfig, Mlp, Precision,
    config::{Norm, Position},
    cpu::CpuPrecision,
    init_params, param_specs,
};
use tinygpt_sampler::{RngDomain, philox_at};
use tinygpt_trainer::engine::{AdamW, Batch, CpuEngine, Engine, EngineState, Evaluator, RateFactors, TensorEngine};

const ADAMW: AdamW = AdamW { beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1, rates: RateFactors::EQUAL };

fn initial(config: &GptConfig, seed: u64) -> EngineState {
    let mut params = init_params(config, seed);
    for (spec, values) in param_specs(config).iter().zip(&mut params) {
        if spec.decays() {
            values.iter_mut().for_each(|x| *x *= 6.0);
        } else {
            // Norms and biases of no special value.
            for (i, x) in values.iter_mut().enumerate() {
                *x += 0.1 * ((i * 7 % 13) as f32 / 13.0 - 0.4);
            }
        }
    }
    EngineState::fresh(params)
}

fn batch(config: &GptConfig, n: u64, rows: usize, cols: usize) -> Batch {
    let token = |place: u32| {
        let token = |i: usize| philox_at(n, RngDomain::Noise, i as u64, place)[0] % config.vocab_size as u32;
        (0..rows * cols).map(token).collect()
    };
    Batch { ids: token(0), targets: token(1), rows, cols }
}

/// Fails unless each tensor is within `tolerance` of the other, relative to its largest element.
fn assert_close(label: &str, config: &GptConfig, ours: &[Vec<f32>], theirs: &[Vec<f32>], tolerance: f32) {
    for ((spec, ours), theirs) in param_specs(config).iter().zip(ours).zip(theirs) {
        let largest = theirs.iter().fold(0f32, |max, x| max.max(x.abs()));
        let worst = ours.iter().zip(theirs).fold(0f32, |max, (a, b)| max.max((a - b).abs()));
        assert!(worst <= tolerance * largest + 1e-8, "{label} {}: {worst} of {largest}\n{config:?}", spec.name);
        assert!(ours.iter().all(|x| x.is_finite()), "{label} {}", spec.name);
    }
}

/// A processor without AVX512-BF16 computes bf16 too, slowly and with the same bits.
const PRECISIONS: [CpuPrecision; 2] = [CpuPrecision::F32, CpuPrecision::Bf16];

fn compare(config: &GptConfig, rows: usize, cols: usize, seed: u64) {
    for precision in PRECISIONS {
        compare_in(precision, config, rows, cols, seed);
    }
}

fn compare_in(precision: CpuPrecision, config: &GptConfig, rows: usize, cols: usize, seed: u64) {
    // Of a loss, of a tensor's largest element, and of the norm of all gradients. A bf16 is off by up to 2^-9, and behind a
    // norm over a few channels that shows thirtyfold, over four of them up to ninetyfold.
    let (of_loss, of_tensor, of_norm) = match precision {
        CpuPrecision::F32 => (1e-5, 3e-5, 1e-4),
        CpuPrecision::Bf16 => {
            let of_tensor = match config.n_embd {
                ..8 => 0.3,
                8..16 => 0.15,
                _ => 5e-2,
            };
            (2e-2, of_tensor, 5e-2)
        }
    };
    let state = initial(config, seed);
    let mut tensors = TensorEngine::new(config, Precision::F32, ADAMW, 5, &state, &Device::Cpu).unwrap();
    let mut cpu = CpuEngine::new(config, precision, ADAMW, 5, &state).unwrap();
    let engines: [&mut dyn Engine; 2] = [&mut tensors, &mut cpu];
    let batches = [batch(config, seed, rows, cols), batch(config, seed + 1, rows.div_ceil(2), cols)];
    let [theirs, ours] = engines.map(|engine| {
        let eval = engine.eval(&batches[0]).unwrap() / (rows * cols) as f64;
        // Two batches gather gradients.
        [
            eval,
            engine.forward_backward(&batches[0], 3).unwrap().read().unwrap(),
            engine.forward_backward(&batches[1], 4).unwrap().read().unwrap(),
        ]
    });
    for (ours, theirs) in ours.iter().zip(theirs) {
        assert!((ours - theirs).abs() < of_loss * theirs.max(1.0), "{ours} {theirs}: {config:?} {rows} x {cols}");
    }
    assert_close("gradient", config, &cpu.gradients(), &tensors.gradients().unwrap(), of_tensor);
    let norms = [
        tensors.optimizer_step(1e-3, 1.0).unwrap().read().unwrap(),
        cpu.optimizer_step(1e-3, 1.0).unwrap().read().unwrap(),
    ];
    assert!((norms[0] - norms[1]).abs() < of_norm * norms[0], "{norms:?}");
    let (theirs, ours) = (tensors.state_dict().unwrap(), cpu.state_dict().unwrap());
    assert_close("m", config, ours.slot("m").unwrap(), theirs.slot("m").unwrap(), of_tensor);
    assert_close("v", config, ours.slot("v").unwrap(), theirs.slot("v").unwrap(), 2.0 * of_tensor);
}

fn shapes() -> impl Strategy<Value = (GptConfig, usize, usize)> {
    let shape = (1usize..80, 1usize..100, 1usize..3, 1usize..4, 1usize..40);
    let rest = (any::<bool>(), any::<bool>(), prop_oneof![Just(0.0), Just(0.25)], 1usize..7);
    let modern = (any::<bool>(), any::<bool>(), any::<bool>(), 0usize..20);
    (shape, rest, modern).prop_flat_map(|(shape, (bias, new, dropout, rows), (rms, rope, tie_embeddings, own_size))| {
        let (vocab_size, block_size, n_layer, n_head, head_size) = shape;
        // A norm over one or two channels is the same for nearly all weights: gradients would be rounding errors.
        let n_embd = (n_head * head_size).max(4).next_multiple_of(n_head);
        // A third of the heads has a size of its own.
        let head_size = if own_size < 14 { 0 } else { 2 * own_size - 24 };
        let rope = rope && (head_size > 0 || (n_embd / n_head) % 2 == 0);
        let config = GptConfig {
            vocab_size: vocab_size + 1,
            block_size,
            n_layer,
            n_head,
            n_embd,
            head_size,
            norm_eps: if own_size % 2 == 0 { 0.0 } else { 1e-3 },
            dropout,
            bias,
            mlp: if new { Mlp::GeluNew } else { Mlp::Gelu },
            norm: if rms { Norm::Rms } else { Norm::Layer },
            position: if rope { Position::Rope } else { Position::Learned },
            tie_embeddings,
            ..GptConfig::default()
        };
        (Just(config), Just(rows), 1..=block_size)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn losses_and_gradients_are_those_of_the_tensor_engine((config, rows, cols) in shapes(), seed in 0u64..1000) {
        compare(&config, rows, cols, seed);
    }
}

#[test]
fn the_shapes_of_the_recipes_agree_too() {
    for (n_head, n_embd, block_size, dropout) in [(4, 128, 64, 0.0), (6, 96, 256, 0.2), (2, 128, 130, 0.0)] {
        let config = GptConfig {
            vocab_size: 65,
            block_size,
            n_layer: 2,
            n_head,
            n_embd,
            dropout,
            bias: false,
            mlp: Mlp::Gelu,
            ..GptConfig::default()
        };
        compare(&config, 3, block_size, 1);
    }
}

#[test]
fn a_batch_without_positions_is_refused_by_that_name() {
    let config = tinygpt_trainer::RunConfig::default().gpt(11);
    let mut engine = CpuEngine::new(&config, CpuPrecision::F32, ADAMW, 5, &initial(&config, 1)).unwrap();
    let nothing = Batch { ids: Vec::new(), targets: Vec::new(), rows: 0, cols: 0 };
    let error = engine.eval(&nothing).unwrap_err().to_string();
    assert_eq!(error, "there are no positions: the model needs at least one token of each sequence");
    let error = engine.eval(&batch(&config, 1, 1, 65)).unwrap_err().to_string();
    assert_eq!(error, "65 positions do not fit the context of 64 (block_size)");
}

#[test]
fn neither_threads_nor_sequences_at_a_time_show_in_the_bits() {
    let config = GptConfig {
        vocab_size: 19,
        block_size: 37,
        n_layer: 2,
        n_head: 3,
        n_embd: 33,
        dropout: 0.25,
        bias: true,
        mlp: Mlp::Gelu,
        ..GptConfig::default()
    };
    let state = initial(&config, 1);
    let batch = batch(&config, 1, 17, 37);
    for precision in PRECISIONS {
        let updated = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut engine = CpuEngine::new(&config, precision, ADAMW, 5, &state).unwrap();
                let loss = engine.forward_backward(&batch, 3).unwrap().read().unwrap();
                engine.optimizer_step(1e-3, 1.0).unwrap().read().unwrap();
                (loss, engine.state_dict().unwrap())
            })
        };
        let expected = updated(1);
        for threads in [2, 3, 5] {
            assert!(updated(threads) == expected, "{precision:?}, {threads} threads");
        }
    }
}
