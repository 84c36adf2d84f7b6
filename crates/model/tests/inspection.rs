//! `Gpt::inspect`: the spreads that it tells are those of the pass that training makes.

use crate::common::{Random, lively_params, shape};
use candle_core::{DType, Device, Tensor};
use tinygpt_model::{
    Gpt, GptConfig, Inspection, Mlp, Spread,
    config::{InitScheme, Norm, Position},
    init_params,
    ops::{Tape, Tokens, softmax},
    param_specs,
    params::to_tensors,
};

const CPU: Device = Device::Cpu;
const ROWS: usize = 3;

/// A batch of random tokens: inputs `(ROWS, block_size)` and targets.
fn batch(config: &GptConfig) -> (Tensor, Tensor) {
    let mut random = Random::new(4);
    let (t, v) = (config.block_size, config.vocab_size);
    let ids = random.tokens(ROWS * t, v);
    let targets = Tensor::from_vec(random.tokens(ROWS * t, v), ROWS * t, &CPU).unwrap();
    (Tensor::from_vec(ids, (ROWS, t), &CPU).unwrap(), targets)
}

fn model(config: &GptConfig, params: &[Vec<f32>]) -> Gpt {
    Gpt::new(config, &to_tensors(config, params, DType::F32, &CPU).unwrap()).unwrap()
}

fn inspect(config: &GptConfig, params: &[Vec<f32>]) -> Inspection {
    let (ids, targets) = batch(config);
    model(config, params).inspect(&Tokens::on_device(&ids), &targets).unwrap()
}

fn assert_near(got: f64, expected: f64, what: &str) {
    assert!((got - expected).abs() <= 1e-4 * expected.abs() + 1e-9, "{what}: {got}, not {expected}");
}

fn configs() -> [GptConfig; 2] {
    let gpt2 = GptConfig { bias: true, dropout: 0.2, ..shape(11, 6, 2, 2, 4) };
    let qwen3 = GptConfig {
        norm: Norm::Rms,
        position: Position::Rope,
        qk_norm: true,
        mlp: Mlp::Swiglu,
        logit_cap: 4.0,
        tie_embeddings: false,
        ..shape(11, 6, 2, 2, 4)
    };
    [gpt2, qwen3]
}

#[test]
fn a_spread_is_that_of_the_numbers() {
    let x = Tensor::new(&[[0f32, 4.0], [-6.0, 0.0]], &CPU).unwrap();
    let Spread { mean, std, largest, zeros } = Spread::of(&x).unwrap();
    assert_eq!((mean, largest, zeros), (-0.5, 6.0, 0.5));
    assert_near(std, (51.0f64 / 4.0).sqrt(), "std");
}

#[test]
fn every_operation_is_told_by_its_block_and_its_module() {
    let [gpt2, qwen3] = configs().map(|config| {
        let values = inspect(&config, &init_params(&config, 1)).values;
        values.iter().map(|value| format!("{}:{}", value.module, value.operation)).collect::<Vec<_>>()
    });
    let block = |n: usize, parts: &[&str]| parts.iter().map(|part| format!("h.{n}{part}")).collect::<Vec<_>>();
    let parts = [
        ".ln_1:LayerNorm",
        ".attn.c_attn:Linear",
        ":Attention",
        ".attn.c_proj:Linear",
        ":Add",
        ".ln_2:LayerNorm",
        ".mlp.c_fc:Linear",
        ":Activate",
        ".mlp.c_proj:Linear",
        ":Add",
    ];
    let ends = ["ln_f:LayerNorm".to_owned(), ":Head".to_owned()];
    let starts = ["wte:Embed".to_owned(), "wpe:AddPositions".to_owned()];
    assert_eq!(gpt2, [&starts[..], &block(0, &parts), &block(1, &parts), &ends].concat());
    for operation in ["h.1.attn.q_norm:QkNorm", "h.1:Rope", "h.0:Swiglu", "ln_f:RmsNorm"] {
        assert!(qwen3.iter().any(|value| value == operation), "{operation} is not in {qwen3:?}");
    }
}

#[test]
fn loss_and_gradients_of_parameters_are_those_of_training() {
    for config in configs() {
        let params = lively_params(&config, 2);
        let inspection = inspect(&config, &params);
        let gpt = model(&config, &params);
        let (ids, targets) = batch(&config);
        let tokens = Tokens::on_device(&ids);
        let (losses, tape) = Tape::record(gpt.params(), || gpt.losses(&tokens, &targets, None).unwrap());
        let n = losses.elem_count();
        assert_near(inspection.loss, f64::from(losses.mean_all().unwrap().to_scalar::<f32>().unwrap()), "loss");
        let mut grads = tape.backward(&losses, Tensor::full(1.0 / n as f32, n, &CPU).unwrap()).unwrap();
        for ((spec, tensor), found) in param_specs(&config).iter().zip(gpt.params()).zip(&inspection.params) {
            assert_eq!(spec.name, found.name);
            let expected = Spread::of(&grads.take(tensor).unwrap()).unwrap();
            assert_near(found.gradients.std, expected.std, &spec.name);
            assert_near(found.gradients.largest, expected.largest, &spec.name);
            assert_eq!(found.weights, Spread::of(tensor).unwrap());
        }
    }
}

#[test]
fn gradients_of_values_are_those_that_reach_biases_and_logits() {
    let [config, _] = configs();
    let params = lively_params(&config, 2);
    let inspection = inspect(&config, &params);
    let n = (ROWS * config.block_size) as f64;
    // A bias is added at each position: its gradient is the sum over positions of the gradient of what it is added to.
    for value in &inspection.values {
        let bias = format!("transformer.{}.bias", value.module);
        if let Some(bias) = inspection.params.iter().find(|param| param.name == bias) {
            assert_near(n * value.gradients.mean, bias.gradients.mean, &value.module);
        }
    }
    // The logits' is the probabilities less 1 at the target, over the number of positions.
    let gpt = model(&config, &params);
    let (ids, targets) = batch(&config);
    let logits = gpt.forward(&ids, None).unwrap().flatten_to(1).unwrap();
    let vocabulary = Tensor::arange(0u32, config.vocab_size as u32, &CPU).unwrap().unsqueeze(0).unwrap();
    let targets = targets.unsqueeze(1).unwrap().broadcast_eq(&vocabulary).unwrap().to_dtype(DType::F32).unwrap();
    let gradient = Spread::of(&((softmax(&logits).unwrap() - targets).unwrap() / n).unwrap()).unwrap();
    let head = inspection.values.last().unwrap();
    assert_eq!(head.activations, Spread::of(&logits).unwrap());
    assert_near(head.gradients.std, gradient.std, "logits");
    assert_near(head.gradients.largest, gradient.largest, "logits");
}

#[test]
fn schemes_can_be_told_apart_by_what_they_do_to_activations() {
    let spread_of = |init: InitScheme, module: &str, operation: &str| {
        let config = GptConfig { init, mlp: Mlp::Relu2, n_embd: 64, n_head: 2, n_layer: 1, ..shape(11, 6, 1, 2, 32) };
        let values = inspect(&config, &init_params(&config, 3)).values;
        values.into_iter().find(|value| value.module == module && value.operation == operation).unwrap().activations
    };
    let std = |init| spread_of(init, "h.0.mlp.c_fc", "Linear").std;
    // Of rows of variance 1: sqrt(64) times the standard deviation of the weights.
    for (init, expected) in [
        (InitScheme::Gpt2, 8.0 * 0.02),
        (InitScheme::FanIn, 1.0),
        (InitScheme::Xavier, (2.0f64 * 64.0 / 320.0).sqrt()),
        (InitScheme::He, 2f64.sqrt()),
    ] {
        assert!((std(init) / expected - 1.0).abs() < 0.1, "{init:?}: {}, not {expected}", std(init));
    }
    let zeros = spread_of(InitScheme::He, "h.0", "Activate").zeros;
    assert!((0.4..0.6).contains(&zeros), "half of what goes through a ReLU: {zeros}");
}
