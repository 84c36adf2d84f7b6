//! The model of tensor operations on a device against the model written by hand for the CPU.

use std::{ops::ControlFlow, sync::Arc};

use candle_core::{DType, Device};
use tinygpt_model::{
    ContextPolicy, Decoder, Generation, GptConfig, Mlp, Precision, TensorDecoder,
    config::{InitScheme, Norm, Position, RopeScaling},
    cpu::{CpuDecoder, CpuPrecision, WeightFormat},
    generate, init_params,
    ops::DIRECT_VOCAB,
    param_specs,
};
use tinygpt_sampler::{RngDomain, Sampler, SamplingParams, philox_at};
use tinygpt_trainer::engine::{
    AdamW, Batch, CpuEngine, Engine, EngineState, Evaluator, Muon, Optimizer, RateFactors, TensorEngine,
    check_precision,
};

use super::check::{Check, largest_difference, of_numbers, of_tensors};

pub const SEED: u64 = 1337;
/// The learning rate of the updates.
const LR: f64 = 1e-3;
/// The optimizer. With the usual epsilon its first step is nearly the sign of the gradient, and where that is 0 but for
/// rounding any step is right; this epsilon makes the step a smooth function of the gradient.
const ADAMW: AdamW = AdamW { beta1: 0.9, beta2: 0.99, eps: 1e-3, weight_decay: 0.1, rates: RateFactors::EQUAL };
/// Updates whose losses are compared, after the one that is compared in full.
const UPDATES: u64 = 10;
/// The tolerance of logits, losses, gradients and moments, relative: floats are summed in another order.
pub const ROUNDING: f64 = 1e-4;
/// The tolerance of parameters after an update, in learning rates.
const OF_A_STEP: f64 = 1e-2;

/// The tolerance of losses where the operands of products are rounded, relative.
const OF_ROUNDED: f64 = 1e-2;

/// A shape, and how many windows make a batch.
struct Shape {
    name: &'static str,
    config: GptConfig,
    rows: usize,
    /// Whether its matrices are trained by Muon.
    muon: bool,
    /// Whether it is trained in f16 and tf32 as well as in bf16, and resumed.
    all_precisions: bool,
}

impl Shape {
    fn new(name: &'static str, config: GptConfig, rows: usize) -> Self {
        Self { name, config, rows, muon: false, all_precisions: false }
    }

    fn optimizer(&self) -> Arc<dyn Optimizer> {
        if self.muon { Muon::new(ADAMW, 0.9, 3).into() } else { ADAMW.into() }
    }
}

/// A shape that divides nothing evenly, the shape of a recipe, one whose embeddings are summed by sorted tokens, and those of
/// networks that are no GPT-2. None has dropout: its masks are drawn for the shards of a batch, of which there is one on a GPU
/// and four on the CPU.
fn shapes() -> Vec<Shape> {
    let shape = |vocab_size, block_size, n_head, n_embd, bias, mlp| GptConfig {
        vocab_size,
        block_size,
        n_layer: 2,
        n_head,
        n_embd,
        dropout: 0.0,
        bias,
        mlp,
        ..GptConfig::default()
    };
    vec![
        Shape { all_precisions: true, ..Shape::new("an odd shape", shape(61, 23, 3, 33, true, Mlp::GeluNew), 5) },
        Shape::new("a recipe's shape", shape(65, 64, 4, 128, false, Mlp::Gelu), 12),
        Shape::new("sorted tokens", shape(301, 50, 2, 16, false, Mlp::Gelu), 8),
        Shape::new("RMSNorm", GptConfig { norm: Norm::Rms, ..shape(31, 20, 2, 18, false, Mlp::Gelu) }, 3),
        Shape::new(
            "rotary positions",
            GptConfig { position: Position::Rope, ..shape(37, 22, 3, 18, true, Mlp::GeluNew) },
            3,
        ),
        Shape::new(
            "a head of its own",
            GptConfig { tie_embeddings: false, ..shape(41, 19, 2, 16, false, Mlp::Gelu) },
            4,
        ),
        Shape::new(
            "relu2, capped logits",
            GptConfig { mlp_hidden: 37, logit_cap: 9.0, ..shape(29, 17, 2, 14, true, Mlp::Relu2) },
            3,
        ),
        Shape::new(
            "Llama 3, wide heads",
            GptConfig {
                norm: Norm::Rms,
                norm_eps: 1e-3,
                position: Position::Rope,
                rope_scaling: RopeScaling::Llama3,
                rope_factor: 8.0,
                rope_original_block_size: 40,
                head_size: 10,
                n_kv_head: 2,
                tie_embeddings: false,
                ..shape(47, 21, 4, 24, false, Mlp::Swiglu)
            },
            3,
        ),
        Shape {
            muon: true,
            ..Shape::new(
                "Qwen3, Muon",
                GptConfig {
                    norm: Norm::Rms,
                    position: Position::Rope,
                    qk_norm: true,
                    n_kv_head: 2,
                    init: InitScheme::FanIn,
                    ..shape(43, 21, 4, 24, false, Mlp::Swiglu)
                },
                3,
            )
        },
    ]
}

/// Makes all checks of the model on a device.
pub fn checks(device: &Device) -> anyhow::Result<Vec<Check>> {
    let mut checks = Vec::new();
    for shape in &shapes() {
        let state = EngineState::fresh(parameters(&shape.config));
        checks.push(of_logits(shape, &state.params, device)?);
        checks.push(of_text(shape, &state.params, device)?);
        checks.extend(of_training(shape, &state, device)?);
    }
    Ok(checks)
}

/// The initial weights, but so large that attention and logits have preferences, and norms and biases of no special value.
fn parameters(config: &GptConfig) -> Vec<Vec<f32>> {
    let mut params = init_params(config, SEED);
    for (spec, values) in param_specs(config).iter().zip(&mut params) {
        for (i, x) in values.iter_mut().enumerate() {
            *x = if spec.decays() { 6.0 * *x } else { *x + 0.1 * ((i * 7 % 13) as f32 / 13.0 - 0.4) };
        }
    }
    params
}

/// `n` tokens of the vocabulary, the same for the same place. In a vocabulary whose gradient is summed by sorted tokens every
/// second one is the same: more than a tile of rows, whose sums are added by a further level.
fn tokens(config: &GptConfig, place: u32, n: usize) -> Vec<u32> {
    let token = |i| match philox_at(SEED, RngDomain::Noise, i as u64, place) {
        [_, odd, ..] if config.vocab_size > DIRECT_VOCAB && odd % 2 == 1 => 7,
        [word, ..] => word % config.vocab_size as u32,
    };
    (0..n).map(token).collect()
}

fn decoders<'a>(
    config: &GptConfig,
    params: &'a [Vec<f32>],
    device: &Device,
) -> anyhow::Result<(TensorDecoder, CpuDecoder<'a>)> {
    let slices: Vec<&[f32]> = params.iter().map(Vec::as_slice).collect();
    let tensors = TensorDecoder::new(config, params, ContextPolicy::Slide, DType::F32, device)?;
    Ok((tensors, CpuDecoder::new(config, &slices, ContextPolicy::Slide, WeightFormat::F32)?))
}

/// Compares the logits `(rows, V)` behind a prompt, and behind single tokens after it until the window slides.
fn of_logits(shape: &Shape, params: &[Vec<f32>], device: &Device) -> anyhow::Result<Check> {
    let Shape { name, config, rows, .. } = shape;
    let (mut tensors, mut cpu) = decoders(config, params, device)?;
    let prompt = tokens(config, 0, config.block_size - 3);
    let mut differences = vec![("the prompt".into(), {
        let expected = cpu.start(&prompt, *rows)?.to_host()?;
        of_tensors(&tensors.start(&prompt, *rows)?.to_host()?, &expected)
    })];
    for step in 1..=5 {
        let tokens = tokens(config, step, *rows);
        let expected = cpu.step(&tokens)?.to_host()?;
        let found = tensors.step(&tokens)?;
        differences.push((format!("token {step} after the prompt"), of_tensors(&found.to_host()?, &expected)));
    }
    Ok(Check::new("logits", name, ROUNDING, differences))
}

/// Compares texts that are drawn with the same seed: the difference is the number of tokens from the first wrong one on.
fn of_text(shape: &Shape, params: &[Vec<f32>], device: &Device) -> anyhow::Result<Check> {
    let Shape { name, config, .. } = shape;
    const ROWS: usize = 3;
    let (mut tensors, mut cpu) = decoders(config, params, device)?;
    let prompt = tokens(config, 0, 2);
    let max_new_tokens = config.block_size + 5;
    let rules = SamplingParams { temperature: 0.8, top_k: 50, top_p: 0.9, seed: SEED, ..SamplingParams::default() };
    let written = |decoder: &mut dyn Decoder| -> anyhow::Result<Vec<Vec<u32>>> {
        let mut texts = vec![Vec::new(); ROWS];
        let request = Generation { prompt: &prompt, first_sequence: 0, rows: ROWS, max_new_tokens };
        generate(decoder, &mut Sampler::new(rules.clone())?, request, |row, token| {
            texts[row].push(token);
            ControlFlow::Continue(())
        })?;
        Ok(texts)
    };
    let (found, expected) = (written(&mut tensors)?, written(&mut cpu)?);
    let differences = found.iter().zip(&expected).enumerate().map(|(row, (found, expected))| {
        let first = found.iter().zip(expected).position(|(a, b)| a != b);
        (
            format!("text {row} from token {}", first.unwrap_or(found.len())),
            first.map_or(0.0, |n| (expected.len() - n) as f64),
        )
    });
    Ok(Check::new("sampled text", name, 0.0, differences))
}

/// The precisions besides f32 in which a shape is trained on a device. All have bf16 and f16 but Metal, where older systems lack
/// bf16; TF32 is CUDA's.
fn precisions(shape: &Shape, device: &Device) -> Vec<Precision> {
    let mut precisions = vec![Precision::Bf16];
    if device.is_metal() && check_precision(Precision::Bf16, device).is_err() {
        notice!("note: bf16 is not checked, for this Metal device has none");
        precisions.clear();
    }
    if shape.all_precisions {
        precisions.push(Precision::F16);
        precisions.extend(device.is_cuda().then_some(Precision::Tf32));
    }
    precisions
}

/// The losses of updates in a precision beside those of f32 on the CPU.
struct Rounded {
    check: &'static str,
    engine: TensorEngine,
    losses: Vec<(String, f64)>,
}

impl Rounded {
    fn new(precision: Precision, shape: &Shape, state: &EngineState, device: &Device) -> anyhow::Result<Self> {
        // The tensor operations of the CPU have them all.
        if !device.is_cpu() {
            check_precision(precision, device)?;
        }
        let check = match precision {
            Precision::F32 => "losses in f32",
            Precision::Tf32 => "losses in tf32",
            Precision::Bf16 => "losses in bf16",
            Precision::F16 => "losses in f16",
        };
        let engine = TensorEngine::new(&shape.config, precision, shape.optimizer(), SEED, state, device)?;
        Ok(Self { check, engine, losses: Vec::new() })
    }
}

/// Compares an engine that trains in f16 with one that is resumed from its state, after an update of both: the parameters have
/// the same bits.
fn of_resuming(shape: &Shape, mut engine: TensorEngine, batch: &Batch, device: &Device) -> anyhow::Result<Check> {
    let Shape { name, config, .. } = shape;
    let state = engine.state_dict()?;
    let mut resumed = TensorEngine::new(config, Precision::F16, shape.optimizer(), SEED, &state, device)?;
    for engine in [&mut engine, &mut resumed] {
        engine.forward_backward(batch, 99)?;
        engine.optimizer_step(LR, 1.0)?;
    }
    let (found, expected) = (resumed.state_dict()?, engine.state_dict()?);
    let pairs = param_specs(config).into_iter().zip(found.params.iter().zip(&expected.params));
    let differences = pairs.map(|(spec, (found, expected))| (spec.name, largest_difference(found, expected)));
    Ok(Check::new("resumed, one update", name, 0.0, differences))
}

/// Compares losses, the gradient of every parameter, an update, and the losses of some more updates.
fn of_training(shape: &Shape, state: &EngineState, device: &Device) -> anyhow::Result<Vec<Check>> {
    let Shape { name, config, rows, .. } = shape;
    let optimizer = || shape.optimizer();
    let mut tensors = TensorEngine::new(config, Precision::F32, optimizer(), SEED, state, device)?;
    let mut cpu = CpuEngine::new(config, CpuPrecision::F32, optimizer(), SEED, state)?;
    let batch = |n: u32, rows: usize| {
        let cols = config.block_size;
        Batch {
            ids: tokens(config, 10 + 2 * n, rows * cols),
            targets: tokens(config, 11 + 2 * n, rows * cols),
            rows,
            cols,
        }
    };
    let evaluated = of_numbers(tensors.eval(&batch(0, *rows))?, cpu.eval(&batch(0, *rows))?);
    let mut losses = vec![("an evaluation".into(), evaluated)];
    // Two batches of one update, the second smaller.
    for (n, batch) in [batch(0, *rows), batch(1, rows.div_ceil(2))].iter().enumerate() {
        let difference = of_numbers(
            tensors.forward_backward(batch, n as u64)?.read()?,
            cpu.forward_backward(batch, n as u64)?.read()?,
        );
        losses.push((format!("batch {n}"), difference));
    }
    let specs = param_specs(config);
    let each = |found: &[Vec<f32>], expected: &[Vec<f32>], difference: &dyn Fn(&[f32], &[f32]) -> f64| -> Vec<_> {
        let pairs = specs.iter().zip(found.iter().zip(expected));
        pairs.map(|(spec, (found, expected))| (spec.name.clone(), difference(found, expected))).collect()
    };
    let gradients = each(&tensors.gradients()?, &cpu.gradients(), &of_tensors);
    let norm = of_numbers(tensors.optimizer_step(LR, 1.0)?.read()?, cpu.optimizer_step(LR, 1.0)?.read()?);
    let (found, expected) = (tensors.state_dict()?, cpu.state_dict()?);
    let parameters = each(&found.params, &expected.params, &|a, b| largest_difference(a, b) / LR);
    let moments =
        |name| each(found.slot(name).unwrap_or_default(), expected.slot(name).unwrap_or_default(), &of_tensors);
    let (m, v) = (moments(if shape.muon { "momentum" } else { "m" }), moments("v"));
    let rounded = precisions(shape, device).into_iter().map(|precision| Rounded::new(precision, shape, &found, device));
    let mut rounded = rounded.collect::<anyhow::Result<Vec<_>>>()?;
    let mut further = Vec::new();
    for n in 2..2 + UPDATES {
        let batch = batch(n as u32 % 3, *rows);
        let expected = cpu.forward_backward(&batch, n)?.read()?;
        further.push((format!("update {n}"), of_numbers(tensors.forward_backward(&batch, n)?.read()?, expected)));
        for engine in [&mut tensors as &mut dyn Engine, &mut cpu] {
            engine.optimizer_step(LR, 1.0)?.read()?;
        }
        for Rounded { engine, losses, .. } in &mut rounded {
            let loss = engine.forward_backward(&batch, n)?.read()?;
            losses.push((format!("update {n}"), of_numbers(loss, expected)));
            engine.optimizer_step(LR, 1.0)?.read()?;
        }
    }
    let mut checks = vec![
        Check::new("losses", name, ROUNDING, losses),
        Check::new("gradients", name, ROUNDING, gradients),
        Check::new("norm of the gradients", name, ROUNDING, [("the norm".into(), norm)]),
        Check::new("parameters updated", name, OF_A_STEP, parameters),
        Check::new("first moments", name, ROUNDING, m),
        // Squares have twice the relative error.
        Check::new("second moments", name, 2.0 * ROUNDING, v),
        Check::new("losses of more updates", name, ROUNDING, further),
    ];
    for Rounded { check, engine, losses } in rounded {
        checks.push(Check::new(check, name, OF_ROUNDED, losses));
        if check == "losses in f16" {
            // Resuming in f16 has the scale of the loss to restore too.
            checks.push(of_resuming(shape, engine, &batch(3, *rows), device)?);
        }
    }
    Ok(checks)
}
