//! The project's CUDA kernels against the tensor operations that they stand in for, both on the same device.

use std::sync::Arc;

use anyhow::Context;
use candle_core::{DType, Device, Tensor};
use tinygpt_model::{
    Dropout, Gpt, GptConfig, Mlp, Precision,
    config::{Norm, Position, RopeScaling},
    dropout::MaskSource,
    init_params,
    ops::{self, Activation, Tokens},
    params::to_tensors,
};
use tinygpt_sampler::{
    RngDomain,
    kernels::{Kernels, without_kernels},
    philox_at,
};

use tinygpt_trainer::engine::{AdamW, Batch, Engine, EngineState, Muon, Optimizer, RateFactors, TensorEngine};

use super::{
    check::{Check, of_tensors},
    gradients::{numbers, with_gradients},
};

/// The tolerance, relative to the largest element: both sum in f32, in another order.
const ROUNDING: f64 = 2e-5;

/// The tolerance of whole networks, of which each operation adds its own.
const OF_NETWORKS: f64 = 1e-4;

/// The tolerance where operands are rounded to bf16, whose last place is 0.008: kernels round in other places than compositions.
const OF_HALVES: f64 = 6e-2;

/// That where operands are rounded to f16, whose last place is an eighth of it.
const OF_F16: f64 = 1.5e-2;

/// The tolerances of single operations whose values are in bf16 and f16, beside those in f32.
const OF_VALUES: [(DType, f64); 3] = [(DType::F32, ROUNDING), (DType::BF16, 2e-2), (DType::F16, 2.5e-3)];

/// The networks that are compared in f16 too. Its attention is tensor operations, so that heads are of no account.
const NETWORKS_IN_F16: usize = 4;

/// Makes the checks of all kernels; none on a device that has none.
pub fn checks(device: &Device) -> anyhow::Result<Vec<Check>> {
    if Kernels::of(device).is_none() {
        return Ok(Vec::new());
    }
    let mut checks = Vec::new();
    for (rows, c) in [(1, 1), (3, 2), (7, 33), (130, 65), (300, 384), (19, 700), (9, 1000), (5, 1600)] {
        let of = format!("({rows}, {c})");
        let inputs = [values(1, &[rows, c], 2.0), values(2, &[c], 1.0), values(3, &[c], 1.0)];
        let mut add = |kernel, inputs: &[Values], op: &Op<'_>| -> anyhow::Result<()> {
            checks.push(compare(kernel, &of, ROUNDING, inputs, op, device)?);
            Ok(())
        };
        // A norm of one element, and a layer norm of two, are the same whatever these were: there is no gradient to compare.
        if c > 2 {
            add("layer norm", &inputs, &|x| Ok(ops::layer_norm(&x[0], &x[1], Some(&x[2]), 1e-5)?))?;
            add("layer norm, no bias", &inputs[..2], &|x| Ok(ops::layer_norm(&x[0], &x[1], None, 0.02)?))?;
        }
        if c > 1 {
            add("RMSNorm", &inputs[..2], &|x| Ok(ops::rms_norm(&x[0], &x[1], 0.02)?))?;
        }
        let weight = values(5, &[3, c], 1.0);
        let biased = [values(6, &[rows, 3], 1.0), weight, values(7, &[c], 1.0)];
        add("sums of rows", &biased, &|x| Ok(ops::linear(&x[0], &x[1], Some(&x[2]), Precision::F32)?))?;
        for (dtype, tolerance) in OF_VALUES {
            checks.extend(of_values((rows, c), dtype, tolerance, device)?);
        }
    }
    for (rows, v, at_once) in [(1, 1, 1), (7, 2, 7), (13, 65, 5), (9, 257, 9), (3, 5003, 2)] {
        let targets = tokens(8, rows, v);
        let inputs = [values(9, &[rows, 6], 2.0), values(10, &[v, 6], 1.0)];
        let op: &Op<'_> = &|x| {
            let targets = Tensor::from_slice(&targets, rows, device)?;
            Ok(ops::head_loss(&x[0], &x[1], &targets, Precision::F32, 4 * v * at_once)?)
        };
        checks.push(compare("cross-entropy", &format!("({rows}, {v})"), ROUNDING, &inputs, op, device)?);
    }
    // Vocabularies that fill rows of whole 16 bytes and that do not, in one chunk and in several.
    for ((dtype, tolerance), precision) in OF_VALUES.into_iter().zip([Precision::F32, Precision::Bf16, Precision::F16])
    {
        for (rows, v, at_once) in [(7, 13, 1), (9, 264, 9)] {
            let targets = tokens(8, rows, v);
            let inputs = [Values { dtype, ..values(9, &[rows, 6], 2.0) }, values(10, &[v, 6], 1.0)];
            let op: &Op<'_> = &|x| {
                let targets = Tensor::from_slice(&targets, rows, device)?;
                Ok(ops::head_loss(&x[0], &x[1], &targets, precision, 4 * v * at_once)?)
            };
            let of = format!("({rows}, {v}), {}", dtype.as_str());
            checks.push(compare("cross-entropy", &of, tolerance, &inputs, op, device)?);
        }
    }
    let rates = RateFactors { matrices: 1.5, embeddings: 0.5 };
    let adamw = AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-3, weight_decay: 0.1, rates };
    let narrow = GptConfig { block_size: 33, n_head: 1, bias: true, ..of_width(33) };
    checks.push(of_updates("AdamW, clipping", &narrow, || adamw.into(), device)?);
    // Matrices that fill a tile, or more by one; higher and wider ones; several side by side, in groups of heads.
    let muon = || Muon::new(adamw, 0.9, 3).into();
    for config in [narrow, GptConfig { n_layer: 2, n_head: 4, n_kv_head: 2, mlp: Mlp::Swiglu, ..of_width(64) }] {
        checks.push(of_updates("Muon, clipping", &config, muon, device)?);
    }
    for (i, shape) in networks().iter().enumerate() {
        let precisions = [(Precision::F32, OF_NETWORKS), (Precision::Bf16, OF_HALVES), (Precision::F16, OF_F16)];
        for (precision, tolerance) in precisions {
            if precision != Precision::F16 || i < NETWORKS_IN_F16 {
                checks.push(of_network(shape, precision, tolerance, device)?);
            }
        }
    }
    Ok(checks)
}

/// Kernels of values in a type: dropout, activations with a bias and without, and residual sums with their dropout and norm.
fn of_values((rows, c): (usize, usize), dtype: DType, tolerance: f64, device: &Device) -> anyhow::Result<Vec<Check>> {
    let of = format!("({rows}, {c}), {}", dtype.as_str());
    let mut checks = Vec::new();
    let mut add = |kernel, inputs: &[Values], op: &Op<'_>| -> anyhow::Result<()> {
        checks.push(compare(kernel, &of, tolerance, inputs, op, device)?);
        Ok(())
    };
    let in_type = |stream, columns, size| Values { dtype, ..values(stream, &[rows, columns], size) };
    let dropout = Dropout { p: 0.3, seed: 5, step: 6, source: MaskSource::Hash };
    let inputs = [in_type(1, c, 2.0), values(2, &[c], 1.0)];
    add("dropout", &inputs[..1], &|x| Ok(dropout.apply(7, &x[0])?))?;
    for (kernel, with_bias, activation) in [
        ("gelu", "gelu, bias", Activation::Gelu),
        ("gelu_new", "gelu_new, bias", Activation::GeluNew),
        ("relu2", "relu2, bias", Activation::Relu2),
    ] {
        add(kernel, &inputs[..1], &|x| Ok(ops::activate(&x[0], activation)?))?;
        add(with_bias, &inputs, &|x| Ok(ops::activate_biased(&x[0], Some(&x[1]), activation)?))?;
    }
    let pairs = [in_type(4, 2 * c, 2.0), values(8, &[2 * c], 1.0)];
    add("swiglu", &pairs[..1], &|x| Ok(ops::swiglu(&x[0])?))?;
    add("swiglu, bias", &pairs, &|x| Ok(ops::swiglu_biased(&x[0], Some(&x[1]))?))?;
    if c > 2 {
        let inputs = [values(1, &[rows, c], 2.0), in_type(2, c, 1.0), values(3, &[c], 1.0), values(4, &[c], 1.0)];
        // Both results are read, by another residual sum with its norm.
        let twice = |x: &[Tensor], norm, bias: Option<&Tensor>, dropout: Option<&Dropout>| {
            let params = ((norm, 0.02), (&x[2], bias));
            let dropout = dropout.map(|dropout| (dropout, 7));
            let [sum, normed] = ops::residual_norm(&x[0], &x[1], dropout, params, dtype)?;
            let [_, y] = ops::residual_norm(&sum, &normed, None, params, dtype)?;
            Ok(y)
        };
        add("sum, layer norm", &inputs, &|x| twice(x, Norm::Layer, Some(&x[3]), Some(&dropout)))?;
        add("sum, norm, no bias", &inputs[..3], &|x| twice(x, Norm::Layer, None, None))?;
        add("sum, RMSNorm", &inputs[..3], &|x| twice(x, Norm::Rms, None, Some(&dropout)))?;
    }
    Ok(checks)
}

/// Numbers, their shape, and their type on the device.
struct Values {
    values: Vec<f32>,
    shape: Vec<usize>,
    dtype: DType,
}

type Op<'a> = dyn Fn(&[Tensor]) -> anyhow::Result<Tensor> + 'a;

/// Numbers between `-size` and `size`, another sequence for each `stream`.
fn values(stream: u32, shape: &[usize], size: f32) -> Values {
    let values = numbers(stream, shape.iter().product()).into_iter().map(|x| x * size).collect();
    Values { values, shape: shape.to_vec(), dtype: DType::F32 }
}

/// Tokens of a vocabulary of `v`, another sequence for each `stream`.
pub(super) fn tokens(stream: u32, n: usize, v: usize) -> Vec<u32> {
    (0..n).map(|i| philox_at(0, RngDomain::Noise, i as u64, stream)[0] % v as u32).collect()
}

/// Holds the value of an operation and the gradients of all its inputs to those without kernels, of the same numbers in f32.
fn compare(
    kernel: &'static str,
    of: &str,
    tolerance: f64,
    inputs: &[Values],
    op: &Op<'_>,
    device: &Device,
) -> anyhow::Result<Check> {
    let tensor = |x: &Values| Tensor::from_slice(&x.values, x.shape.as_slice(), device)?.to_dtype(x.dtype);
    let inputs = inputs.iter().map(tensor).collect::<candle_core::Result<Vec<_>>>()?;
    let wide = inputs.iter().map(|x| x.to_dtype(DType::F32)).collect::<candle_core::Result<Vec<_>>>()?;
    let run = |inputs: &[Tensor]| with_gradients(inputs, || op(inputs)).context(kernel);
    let (found, expected) = (run(&inputs)?, without_kernels(|| run(&wide))?);
    let name = |i: usize| if i == 0 { "the result".into() } else { format!("the gradient of input {}", i - 1) };
    let off = found.iter().zip(&expected).enumerate().map(|(i, (a, b))| (name(i), of_tensors(a, b)));
    Ok(Check::new(kernel, of, tolerance, off))
}

/// A small network of `n_embd` channels.
fn of_width(n_embd: usize) -> GptConfig {
    GptConfig { vocab_size: 31, block_size: 33, n_layer: 1, n_embd, ..GptConfig::default() }
}

/// Updates with and without kernels, of parameters whose elements fill a block, or one less, or one more; clipped and not, of
/// gradients that were added up.
fn of_updates(
    kernel: &'static str,
    config: &GptConfig,
    rule: impl Fn() -> Arc<dyn Optimizer>,
    device: &Device,
) -> anyhow::Result<Check> {
    let batch =
        |stream: u32| Batch { ids: tokens(stream, 66, 31), targets: tokens(stream + 1, 66, 31), rows: 2, cols: 33 };
    let run = || -> anyhow::Result<Vec<Vec<f32>>> {
        let state = EngineState::fresh(moved_params(config));
        let mut engine = TensorEngine::new(config, Precision::F32, rule(), 1, &state, device)?;
        for (step, clip) in (0..).zip([0.5, 0.0, 1.0]) {
            engine.forward_backward(&batch(60 + 4 * step), u64::from(2 * step))?;
            engine.forward_backward(&batch(62 + 4 * step), u64::from(2 * step + 1))?;
            engine.optimizer_step(1e-2, clip)?;
        }
        let EngineState { params, optimizer, .. } = engine.state_dict()?;
        Ok(params.into_iter().chain(optimizer.into_iter().flat_map(|slot| slot.values)).collect())
    };
    let (found, expected) = (run()?, without_kernels(run)?);
    let off = found.iter().zip(&expected).enumerate().map(|(i, (a, b))| (format!("tensor {i}"), of_tensors(a, b)));
    Ok(Check::new(kernel, &format!("{} channels", config.n_embd), OF_NETWORKS, off))
}

/// Networks whose attention has heads of many sizes, more positions than a tile, and groups of heads.
fn networks() -> Vec<(GptConfig, usize)> {
    let shape = |n_head, n_kv_head, head_size: usize, block_size, dropout| GptConfig {
        vocab_size: 11,
        block_size,
        n_layer: 1,
        n_head,
        n_kv_head,
        n_embd: n_head * head_size,
        dropout,
        ..GptConfig::default()
    };
    let qwen = |config: GptConfig| GptConfig {
        norm: Norm::Rms,
        position: Position::Rope,
        qk_norm: true,
        mlp: Mlp::Swiglu,
        ..config
    };
    let of_own_size = |config: GptConfig| GptConfig {
        head_size: 24,
        norm_eps: 0.02,
        position: Position::Rope,
        rope_scaling: RopeScaling::Llama3,
        rope_factor: 8.0,
        rope_original_block_size: 64,
        ..config
    };
    vec![
        (shape(1, 1, 3, 1, 0.0), 2),
        (shape(2, 2, 5, 70, 0.2), 2),
        (GptConfig { bias: true, mlp: Mlp::GeluNew, ..shape(3, 3, 32, 64, 0.0) }, 1),
        (GptConfig { bias: true, ..qwen(shape(4, 2, 34, 65, 0.1)) }, 1),
        (shape(3, 1, 64, 131, 0.2), 1),
        (qwen(shape(2, 1, 100, 33, 0.0)), 2),
        // QK-norm and rotary positions alone, of heads that are odd, least, and wider than those of attention's kernels.
        (GptConfig { qk_norm: true, ..shape(6, 2, 37, 19, 0.0) }, 2),
        (GptConfig { position: Position::Rope, ..shape(5, 5, 2, 1, 0.0) }, 1),
        (GptConfig { position: Position::Rope, ..shape(2, 1, 130, 9, 0.0) }, 3),
        (qwen(shape(1, 1, 260, 5, 0.0)), 1),
        (GptConfig { logit_cap: 8.0, ..shape(1, 1, 128, 40, 0.5) }, 2),
        // Heads that do not share out the channels, with an epsilon and frequencies of their own.
        (of_own_size(qwen(shape(3, 1, 10, 70, 0.2))), 2),
        (of_own_size(GptConfig { bias: true, qk_norm: true, ..shape(2, 2, 10, 9, 0.0) }), 1),
        // Masks that begin in the middle of a block of the hash.
        (shape(2, 2, 8, 257, 0.3), 1),
    ]
}

/// The initial parameters, each moved, so that none is of no account.
pub(super) fn moved_params(config: &GptConfig) -> Vec<Vec<f32>> {
    let moved = |(param, stream): (Vec<f32>, u32)| {
        let noise = values(stream, &[param.len()], 0.3);
        param.iter().zip(noise.values).map(|(x, noise)| x + noise).collect()
    };
    init_params(config, 1).into_iter().zip(12..).map(moved).collect()
}

/// The losses and the gradients of all parameters of a network of `rows` windows.
fn of_network(
    (config, rows): &(GptConfig, usize),
    precision: Precision,
    tolerance: f64,
    device: &Device,
) -> anyhow::Result<Check> {
    // Windows shorter than the context leave the last positions without a gradient.
    let shorter = usize::from(precision == Precision::F16 && config.block_size > 1);
    let (rows, t) = (*rows, config.block_size - shorter);
    let params = moved_params(config);
    let gpt = Gpt::new(config, &to_tensors(config, &params, DType::F32, device)?)?.with_precision(precision);
    let ids = tokens(50, rows * t, config.vocab_size);
    let targets = Tensor::from_slice(&tokens(51, rows * t, config.vocab_size), rows * t, device)?;
    let dropout = Dropout { p: config.dropout, seed: 1, step: 2, source: MaskSource::Hash };
    let run = || {
        with_gradients(gpt.params(), || {
            let tokens = Tokens::new(&ids, rows, t, config.vocab_size, device)?;
            Ok(gpt.losses(&tokens, &targets, Some(&dropout))?)
        })
    };
    let (found, expected) = (run()?, without_kernels(run)?);
    let specs = tinygpt_model::param_specs(config);
    let name = |i: usize| if i == 0 { "the losses".into() } else { specs[i - 1].name.clone() };
    let off = found.iter().zip(&expected).enumerate().map(|(i, (a, b))| (name(i), of_tensors(a, b)));
    let of = format!("{} heads of {}, {}", config.n_head, config.head_size(), precision.name());
    Ok(Check::new("a network's kernels", &of, tolerance, off))
}
