//! A decoder by the project's CUDA kernels against the tensor operations that they stand in for, both on the same device.

use std::ops::Range;

use candle_core::{DType, Device};
use tinygpt_model::{
    ContextPolicy, Decoder, GptConfig, Mlp, TensorDecoder,
    config::{Norm, Position, RopeScaling},
};
use tinygpt_sampler::kernels::{Kernels, without_kernels};

use super::{
    check::{Check, largest_difference, of_tensors},
    kernels::{moved_params, tokens},
};

/// The tolerance of logits with matrices in f32, relative to the largest: both sum in f32, in another order.
const OF_F32: f64 = 1e-4;
/// With matrices of 16 bits tensor operations round the other operands and the results of products, and kernels do not.
const OF_BF16: f64 = 5e-2;
const OF_F16: f64 = 1e-2;

/// A shape, the type of its matrices, what happens when the context is full, and how long the prompt is.
struct Case {
    name: &'static str,
    config: GptConfig,
    weights: DType,
    policy: ContextPolicy,
    prompt: usize,
}

/// Shapes whose dimensions are multiples of four and are not, contexts of several splits of attention, a context of one position.
fn cases() -> Vec<Case> {
    let shape = |n_head, n_kv_head, head_size: usize, block_size, vocab_size| GptConfig {
        vocab_size,
        block_size,
        n_layer: 2,
        n_head,
        n_kv_head,
        n_embd: n_head * head_size,
        ..GptConfig::default()
    };
    let gpt2 = |config: GptConfig| GptConfig { bias: true, mlp: Mlp::GeluNew, ..config };
    let qwen = |config: GptConfig| GptConfig {
        norm: Norm::Rms,
        position: Position::Rope,
        qk_norm: true,
        mlp: Mlp::Swiglu,
        ..config
    };
    // Heads that do not share out the channels, with an epsilon and frequencies of their own.
    let own_size = |head_size, config: GptConfig| GptConfig {
        head_size,
        norm_eps: 0.02,
        rope_scaling: RopeScaling::Linear,
        rope_factor: 4.0,
        ..qwen(config)
    };
    let relu2 = |config: GptConfig| GptConfig {
        mlp: Mlp::Relu2,
        mlp_hidden: 37,
        logit_cap: 9.0,
        tie_embeddings: false,
        ..config
    };
    let case = |name, config, prompt| Case { name, config, weights: DType::F32, policy: ContextPolicy::Slide, prompt };
    let narrow = |weights, case| Case { weights, ..case };
    vec![
        case("one position", shape(1, 1, 1, 1, 2), 1),
        case("GPT-2", gpt2(shape(2, 2, 32, 9, 65)), 4),
        case("no biases, odd", shape(3, 3, 11, 8, 61), 1),
        Case { policy: ContextPolicy::Half, ..case("three splits", gpt2(shape(2, 2, 8, 260, 70)), 254) },
        case("a whole split", shape(1, 1, 64, 200, 33), 126),
        case("Qwen3", qwen(shape(4, 2, 16, 12, 129)), 3),
        Case { policy: ContextPolicy::Half, ..case("Qwen3, odd", qwen(shape(6, 2, 10, 140, 43)), 125) },
        case("relu2, own head, cap", relu2(shape(2, 1, 128, 7, 29)), 2),
        case("wide heads", own_size(24, shape(3, 1, 10, 140, 43)), 130),
        case("narrow heads", own_size(6, shape(4, 2, 16, 12, 129)), 3),
        case("heads of 130", own_size(130, shape(2, 1, 8, 7, 29)), 2),
        narrow(DType::BF16, case("wide heads, bf16", own_size(18, shape(2, 2, 8, 9, 43)), 1)),
        narrow(DType::BF16, case("GPT-2, bf16", gpt2(shape(2, 2, 32, 9, 65)), 4)),
        narrow(DType::BF16, case("Qwen3, odd, bf16", qwen(shape(2, 1, 18, 9, 43)), 1)),
        // Inputs that a thread of a product takes in several turns, with a norm; and so many that there is another kernel for them.
        case("wide rows", gpt2(shape(8, 8, 97, 6, 43)), 2),
        case("deep", GptConfig { mlp_hidden: 1540, ..shape(2, 2, 8, 6, 43) }, 2),
        narrow(DType::BF16, case("deep, bf16", GptConfig { mlp_hidden: 1540, ..shape(2, 2, 8, 6, 43) }, 2)),
        narrow(DType::F16, case("deep, f16", GptConfig { mlp_hidden: 1540, ..shape(2, 2, 8, 6, 43) }, 2)),
        narrow(DType::F16, case("GPT-2, f16", gpt2(shape(2, 2, 32, 9, 65)), 4)),
        narrow(DType::F16, case("odd, f16", shape(3, 3, 11, 8, 61), 4)),
    ]
}

/// The rows of a batch: more than a kernel takes at a time, and no multiple of that.
const ROWS: usize = 6;

/// Makes the checks; none on a device without kernels.
pub fn checks(device: &Device) -> anyhow::Result<Vec<Check>> {
    if Kernels::of(device).is_none() {
        return Ok(Vec::new());
    }
    let mut checks = Vec::new();
    for case in cases() {
        let params = moved_params(&case.config);
        let batch = logits(&case, &params, 0..ROWS, device)?;
        let expected = without_kernels(|| logits(&case, &params, 0..ROWS, device))?;
        let tolerance = match case.weights {
            DType::F32 => OF_F32,
            DType::F16 => OF_F16,
            _ => OF_BF16,
        };
        let off = batch.iter().zip(&expected).enumerate();
        let off = off.map(|(step, (found, expected))| (format!("token {step}"), of_tensors(found, expected)));
        checks.push(Check::new("decoding by kernels", case.name, tolerance, off));

        // The last row alone, and two rows: in a batch they are in another place.
        let mut off = Vec::new();
        for rows in [ROWS - 1..ROWS, 3..5] {
            let alone = logits(&case, &params, rows.clone(), device)?;
            for (step, (alone, batch)) in alone.iter().zip(&batch).enumerate() {
                let v = case.config.vocab_size;
                let same = &batch[rows.start * v..rows.end * v];
                off.push((format!("rows {rows:?}, token {step}"), largest_difference(alone, same)));
            }
        }
        checks.push(Check::new("rows alone", case.name, 0.0, off));
    }
    Ok(checks)
}

/// The logits of `rows` of a batch behind a prompt, and behind each of the tokens after it, until the context has been full and two
/// tokens more.
fn logits(case: &Case, params: &[Vec<f32>], rows: Range<usize>, device: &Device) -> anyhow::Result<Vec<Vec<f32>>> {
    let Case { config, weights, policy, prompt, .. } = case;
    let mut decoder = TensorDecoder::new(config, params, *policy, *weights, device)?;
    let prompt = tokens(60, *prompt, config.vocab_size);
    let steps = config.block_size - prompt.len() + 2;
    let mut found = vec![decoder.start(&prompt, rows.len())?.to_host()?.into_owned()];
    for step in 0..steps as u32 {
        let all = tokens(61 + step, ROWS, config.vocab_size);
        found.push(decoder.step(&all[rows.clone()])?.to_host()?.into_owned());
    }
    Ok(found)
}
