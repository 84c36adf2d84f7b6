//! The tensor engine, which a GPU runs, computes on the CPU the bits that an earlier version did: losses, gradients,
//! norms and updates. So do the decoders, of tensor operations and of the CPU: logits. Hashes are in `golden.json`.
//! `tests/golden.rs` of the workspace does the same for the program, and with it for the CPU engine.
//!
//! A change that is meant to change results records them anew, and commits the file with the reason:
//!
//!     rm crates/trainer/tests/golden.json
//!     TINYGPT_RECORD_GOLDEN=1 cargo test -p tinygpt-trainer --test main golden::
//!
//! candle's matrix products choose their kernels by the processor, so these hashes depend on its vector instructions.

use crate::recorded::{self, Found, hash};
use candle_core::{DType, Device};
use tinygpt_model::{
    ContextPolicy, Decoder, GptConfig, Mlp, Precision, TensorDecoder,
    cpu::{CpuDecoder, WeightFormat},
    init_params, param_specs,
};
use tinygpt_trainer::engine::{AdamW, Batch, Engine, EngineState, Evaluator, RateFactors, TensorEngine};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden.json");
const ADAMW: AdamW = AdamW { beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1, rates: RateFactors::EQUAL };

/// A shape with biases and dropout, and one whose sizes are no multiples of a vector or a tile.
fn shapes() -> [(&'static str, GptConfig); 2] {
    let even = GptConfig {
        vocab_size: 65,
        block_size: 32,
        n_layer: 2,
        n_head: 3,
        n_embd: 48,
        dropout: 0.1,
        bias: true,
        mlp: Mlp::Gelu,
        ..GptConfig::default()
    };
    let odd = GptConfig {
        vocab_size: 37,
        block_size: 17,
        n_layer: 1,
        n_head: 2,
        n_embd: 22,
        dropout: 0.0,
        bias: false,
        mlp: Mlp::GeluNew,
        ..GptConfig::default()
    };
    [("even", even), ("odd", odd)]
}

/// Initial weights with matrices four times GPT-2's, for logits that are far from uniform.
fn params(config: &GptConfig) -> Vec<Vec<f32>> {
    let mut params = init_params(config, 7);
    for (spec, values) in param_specs(config).iter().zip(&mut params) {
        if spec.decays() {
            values.iter_mut().for_each(|x| *x *= 4.0);
        }
    }
    params
}

/// Pseudorandom tokens: the linear congruential generator of Numerical Recipes, seeded with `n`.
fn tokens(config: &GptConfig, n: u32, len: usize) -> Vec<u32> {
    let mut state = n.wrapping_mul(0x9E37_79B9).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % config.vocab_size as u32
    };
    (0..len).map(|_| next()).collect()
}

/// A batch of seven rows, so that its shards differ in size.
fn batch(config: &GptConfig, n: u32) -> Batch {
    let (rows, cols) = (7, config.block_size);
    Batch { ids: tokens(config, 2 * n, rows * cols), targets: tokens(config, 2 * n + 1, rows * cols), rows, cols }
}

/// The hash of the values' bits.
fn bits(tensors: &[Vec<f32>]) -> String {
    let bytes: Vec<u8> = tensors.iter().flatten().flat_map(|x| x.to_bits().to_le_bytes()).collect();
    hash(&bytes)
}

#[test]
fn the_engine_of_tensor_operations_makes_the_recorded_updates() {
    for (shape, config) in shapes() {
        for precision in [Precision::F32, Precision::Bf16, Precision::F16] {
            let start = EngineState::fresh(params(&config));
            let mut engine = TensorEngine::new(&config, precision, ADAMW, 5, &start, &Device::Cpu).unwrap();
            let mut found = Found::new();
            for update in 0..3 {
                let losses: Vec<f64> = (0..2)
                    .map(|n| {
                        let n = 2 * update + n;
                        engine.forward_backward(&batch(&config, n), u64::from(n)).unwrap().read().unwrap()
                    })
                    .collect();
                found.insert(format!("gradients {update}"), bits(&engine.gradients().unwrap()));
                let norm = engine.optimizer_step(3e-3, 1.0).unwrap().read().unwrap();
                found.insert(format!("losses and norm {update}"), format!("{losses:?} {norm:?}"));
            }
            found.insert("evaluation".into(), format!("{:?}", engine.eval(&batch(&config, 99)).unwrap()));
            let state = engine.state_dict().unwrap();
            for (name, tensors) in
                [("weights", &*state.params), ("m", state.slot("m").unwrap()), ("v", state.slot("v").unwrap())]
            {
                found.insert(name.into(), bits(tensors));
            }
            let scaling = state.loss_scaling.map(|scaling| (scaling.scale, scaling.good, scaling.skipped));
            found.insert("updates and loss scaling".into(), format!("{} {scaling:?}", state.updates));
            recorded::check(FILE, &format!("engine {shape} {}", precision.name()), &found);
        }
    }
}

/// The hash of the logits of three rows, from the prompt to beyond the context.
fn logits(decoder: &mut dyn Decoder, config: &GptConfig, prompt: usize, steps: u32) -> String {
    let mut all = vec![decoder.start(&tokens(config, 1, prompt), 3).unwrap().to_host().unwrap().into_owned()];
    for step in 0..steps {
        all.push(decoder.step(&tokens(config, 100 + step, 3)).unwrap().to_host().unwrap().into_owned());
    }
    bits(&all)
}

#[test]
fn the_decoders_give_the_recorded_logits() {
    for (shape, config) in shapes() {
        let params = params(&config);
        let slices: Vec<&[f32]> = params.iter().map(Vec::as_slice).collect();
        let prompt = config.block_size - 5;
        for (window, policy) in [("slide", ContextPolicy::Slide), ("half", ContextPolicy::Half)] {
            let mut found = Found::new();
            for (name, format) in
                [("f32", WeightFormat::F32), ("bf16", WeightFormat::Bf16), ("int8", WeightFormat::Int8)]
            {
                let mut decoder = CpuDecoder::new(&config, &slices, policy, format).unwrap();
                found.insert(format!("cpu {name}"), logits(&mut decoder, &config, prompt, 20));
            }
            for (name, dtype) in [("f32", DType::F32), ("bf16", DType::BF16), ("f16", DType::F16)] {
                let mut decoder = TensorDecoder::new(&config, &params, policy, dtype, &Device::Cpu).unwrap();
                found.insert(format!("tensors {name}"), logits(&mut decoder, &config, prompt, 20));
            }
            recorded::check(FILE, &format!("logits {shape} {window}"), &found);
        }
    }
}
