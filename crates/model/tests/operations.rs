//! Every operation in all its forms, in networks of that operation alone: the gradients of the tensor composition against
//! finite differences in f64, CPU training against the tensor composition in f32 and bf16, CPU decoding against it position
//! by position; on shapes that include 1, odd sizes and no multiples of a vector.

use crate::common::Random;
use candle_core::{DType, Device, Tensor};
use tinygpt_model::{
    ContextPolicy, Decoder, Dropout, Gpt, GptConfig, Mlp, ModelError, Network, TensorDecoder,
    config::{Heads, RopeScaling},
    cpu::{BatchRef, CpuDecoder, CpuGpt, CpuPrecision, RowDropout, WeightFormat},
    dropout::{DropoutSite, MaskSource},
    ops::{Activation, OPERATION_NAMES, Tape, Tokens, cross_entropy},
    params::to_tensors,
    plan::{Init, NetworkBuilder, ParamSpec, Value},
};

const CPU: Device = Device::Cpu;

/// What is between embedding and head.
type Body = fn(&mut NetworkBuilder, Value, &GptConfig) -> Value;

/// Attention over queries, keys and values, rotated where heads have pairs of channels and `rotated` says so. Where heads have more
/// channels than the residual stream, a linear layer brings them back.
fn attend(net: &mut NetworkBuilder, qkv: Value, heads: Heads, rotated: bool, config: &GptConfig) -> Value {
    let pairs = heads.head_size.is_multiple_of(2);
    let h = if rotated && pairs { net.rope(qkv, heads, config.rope_frequencies()) } else { qkv };
    let y = net.attention(h, heads, DropoutSite::Attention(0));
    if heads.qkv()[0] == config.n_embd { y } else { net.linear(y, "back", config.n_embd, 0.4) }
}

/// Every operation: a network of it, between what gives it inputs and gradients that are far from zero.
const OPERATIONS: &[(&str, Body)] = &[
    ("embedding and head alone", |_, x, _| x),
    ("positions", |net, x, _| net.positions(x, "positions", 0.5)),
    ("layer norm", |net, x, _| net.layer_norm(x, "norm")),
    ("RMSNorm", |net, x, _| net.rms_norm(x, "norm")),
    ("RMSNorm before a linear layer into the residual stream", |net, x, config| {
        let h = net.rms_norm(x, "norm");
        let h = net.linear(h, "linear", config.n_embd, 0.4);
        net.add(x, h)
    }),
    ("linear", |net, x, config| net.linear(x, "linear", config.n_embd, 0.4)),
    ("linear to another width, and back", |net, x, config| {
        let h = net.linear(x, "up", 2 * config.n_embd + 1, 0.4);
        net.linear(h, "down", config.n_embd, 0.4)
    }),
    ("activation", |net, x, config| {
        let h = net.linear(x, "linear", config.n_embd, 0.8);
        net.activation(h, config.mlp.activation().unwrap_or(Activation::Gelu))
    }),
    ("attention", |net, x, config| {
        let h = net.linears(x, "qkv", &config.heads().qkv(), 0.6);
        attend(net, h, config.heads(), false, config)
    }),
    ("rotary positions before attention", |net, x, config| {
        let h = net.linears(x, "qkv", &config.heads().qkv(), 0.6);
        attend(net, h, config.heads(), true, config)
    }),
    ("rotary positions and attention with shared keys and values", |net, x, config| {
        let heads = Heads { n_kv_head: if config.n_head % 2 == 0 { config.n_head / 2 } else { 1 }, ..config.heads() };
        let h = net.linears(x, "qkv", &heads.qkv(), 0.6);
        attend(net, h, heads, true, config)
    }),
    ("QK-norm before rotary positions and attention with shared keys and values", |net, x, config| {
        let heads = Heads { n_kv_head: 1, ..config.heads() };
        let h = net.linears(x, "qkv", &heads.qkv(), 0.6);
        let h = net.qk_norm(h, heads, "attn");
        attend(net, h, heads, true, config)
    }),
    ("QK-norm before attention", |net, x, config| {
        let h = net.linears(x, "qkv", &config.heads().qkv(), 0.6);
        let h = net.qk_norm(h, config.heads(), "attn");
        attend(net, h, config.heads(), false, config)
    }),
    ("squared ReLU", |net, x, config| {
        let h = net.linear(x, "linear", config.n_embd, 0.8);
        net.activation(h, Activation::Relu2)
    }),
    ("SwiGLU", |net, x, config| {
        let h = net.linears(x, "gate_up", &[config.n_embd; 2], 0.8);
        net.swiglu(h)
    }),
    ("SwiGLU of another width into the residual stream", |net, x, config| {
        let h = net.rms_norm(x, "norm");
        let h = net.linears(h, "gate_up", &[config.n_embd + 3; 2], 0.6);
        let h = net.swiglu(h);
        let h = net.linear(h, "down", config.n_embd, 0.4);
        net.add(x, h)
    }),
    ("dropout", |net, x, _| net.dropout(x, DropoutSite::Embedding)),
    ("linear into the residual stream", |net, x, config| {
        let h = net.layer_norm(x, "norm");
        let h = net.linear(h, "linear", config.n_embd, 0.4);
        net.add(x, h)
    }),
    ("dropped linear into the residual stream, twice", |net, mut x, config| {
        for layer in 0..2 {
            let h = net.layer_norm(x, &format!("norm_{layer}"));
            let h = net.linear(h, &format!("linear_{layer}"), config.n_embd, 0.4);
            let h = net.dropout(h, DropoutSite::MlpResidual(layer));
            x = net.add(x, h);
        }
        x
    }),
    ("norms around a linear layer, added to the residual stream", |net, x, config| {
        let h = net.layer_norm(x, "before");
        let h = net.linear(h, "linear", config.n_embd, 0.4);
        let h = net.rms_norm(h, "behind");
        net.add(x, h)
    }),
    ("a norm added to the residual stream", |net, x, _| {
        let h = net.layer_norm(x, "norm");
        net.add(x, h)
    }),
];

fn network(config: &GptConfig, body: Body, tied: bool) -> Network {
    let mut net = NetworkBuilder::new(config);
    let (x, table) = net.embedding("table", config.vocab_size, config.n_embd, 0.7);
    let x = body(&mut net, x, config);
    let head = if tied { table } else { net.head_matrix("head", config.vocab_size, config.n_embd, 0.7) };
    net.head(x, head)
}

/// Values around the initial ones, norms and biases included.
fn values(net: &Network, random: &mut Random) -> Vec<Vec<f32>> {
    let of = |spec: &ParamSpec| -> Vec<f32> {
        let (mean, width) = match spec.init {
            Init::Normal(std) => (0.0, 1.7 * std),
            Init::Ones => (1.0, 0.4),
            Init::Zeros => (0.0, 0.4),
        };
        random.values(spec.len()).into_iter().map(|x| (mean + width * x) as f32).collect()
    };
    net.params().iter().map(of).collect()
}

fn shapes() -> Vec<(GptConfig, usize)> {
    let shape = |vocab_size, block_size, n_head, head_size, bias, mlp| GptConfig {
        vocab_size,
        block_size,
        n_layer: 1,
        n_head,
        n_embd: n_head * head_size,
        dropout: 0.25,
        bias,
        mlp,
        rope_theta: 50.0,
        // Of the shapes whose logits are of a few units, so that quantized weights show no more than elsewhere.
        logit_cap: if matches!(vocab_size, 2 | 11) { 6.0 } else { 0.0 },
        ..GptConfig::default()
    };
    vec![
        (shape(7, 5, 1, 2, true, Mlp::Gelu), 5),
        (shape(2, 1, 1, 3, false, Mlp::GeluNew), 1),
        (shape(11, 9, 3, 5, true, Mlp::GeluNew), 7),
        (shape(9, 8, 2, 6, true, Mlp::Gelu), 6),
        (shape(33, 37, 2, 16, false, Mlp::Gelu), 37),
        (shape(65, 70, 2, 17, true, Mlp::Gelu), 69),
        // Heads of a size of their own, an epsilon that shows, and frequencies of which one stays, one is between and one is divided.
        (
            GptConfig {
                head_size: 6,
                norm_eps: 0.1,
                rope_scaling: RopeScaling::Llama3,
                rope_factor: 4.0,
                rope_original_block_size: 40,
                ..shape(13, 8, 2, 5, true, Mlp::GeluNew)
            },
            7,
        ),
        (
            GptConfig {
                head_size: 18,
                norm_eps: 1e-3,
                rope_scaling: RopeScaling::Linear,
                rope_factor: 3.0,
                ..shape(33, 40, 3, 7, false, Mlp::Gelu)
            },
            39,
        ),
    ]
}

struct Case {
    label: String,
    config: GptConfig,
    net: Network,
    values: Vec<Vec<f32>>,
    rows: usize,
    t: usize,
    ids: Vec<u32>,
    targets: Vec<u32>,
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, body) in OPERATIONS {
        for (at, (config, t)) in shapes().into_iter().enumerate() {
            let mut random = Random::new(100 * at as u64 + name.len() as u64);
            let net = network(&config, *body, at % 2 == 0);
            let rows = 1 + at % 3;
            let mut tokens = || random.tokens(rows * t, config.vocab_size);
            let (ids, targets) = (tokens(), tokens());
            let values = values(&net, &mut random);
            cases.push(Case { label: format!("{name}, {config:?}"), config, net, values, rows, t, ids, targets });
        }
    }
    cases
}

impl Case {
    fn dropout(&self) -> Dropout {
        Dropout { p: self.config.dropout, seed: 3, step: 4, source: MaskSource::Philox }
    }

    fn tensors(&self, dtype: DType) -> Vec<Tensor> {
        let tensor = |(spec, values): (&ParamSpec, &Vec<f32>)| {
            Tensor::from_slice(values, spec.shape.as_slice(), &CPU).unwrap().to_dtype(dtype).unwrap()
        };
        self.net.params().iter().zip(&self.values).map(tensor).collect()
    }

    /// The mean loss, with dropout.
    fn loss(&self, params: &[Tensor]) -> Tensor {
        self.losses(params).mean_all().unwrap()
    }

    /// The losses `(B * T)`, with dropout.
    fn losses(&self, params: &[Tensor]) -> Tensor {
        let gpt = Gpt::over(self.net.clone(), params).unwrap();
        let tokens = Tokens::new(&self.ids, self.rows, self.t, self.config.vocab_size, &CPU).unwrap();
        let targets = Tensor::from_slice(&self.targets, self.rows * self.t, &CPU).unwrap();
        gpt.losses(&tokens, &targets, Some(&self.dropout())).unwrap()
    }

    /// The mean loss and every gradient, by the tensor composition.
    fn by_tensors(&self, dtype: DType) -> (f64, Vec<Vec<f64>>) {
        let params = self.tensors(dtype);
        let (losses, tape) = Tape::record(&params, || self.losses(&params));
        let n = losses.elem_count();
        let dy = losses.ones_like().unwrap().affine(1.0 / n as f64, 0.0).unwrap();
        let mut grads = tape.backward(&losses, dy).unwrap();
        let flat = |x: &Tensor| x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let of = |(param, spec): (&Tensor, &ParamSpec)| {
            flat(&grads.take(param).unwrap_or_else(|| panic!("{} has no gradient: {}", spec.name, self.label)))
        };
        let loss = losses.mean_all().unwrap().to_dtype(DType::F64).unwrap().to_scalar().unwrap();
        (loss, params.iter().zip(self.net.params()).map(of).collect())
    }
}

#[test]
fn every_operation_is_in_some_network_here() {
    let cases = cases();
    for name in OPERATION_NAMES {
        assert!(cases.iter().any(|case| case.net.operation_names().contains(name)), "{name}: add a network of it");
    }
}

#[test]
fn gradients_of_tensor_compositions_are_those_of_finite_differences() {
    const H: f64 = 1e-5;
    for case in cases().iter().filter(|case| case.t < 10) {
        let (_, grads) = case.by_tensors(DType::F64);
        let params = case.tensors(DType::F64);
        for (i, spec) in case.net.params().iter().enumerate() {
            let largest = grads[i].iter().fold(1e-6f64, |max, x| max.max(x.abs()));
            let values = params[i].flatten_all().unwrap().to_vec1::<f64>().unwrap();
            // Each parameter at its largest gradient, and in a few places.
            let places = (0..spec.len()).step_by(spec.len().div_ceil(4));
            for place in places.chain(grads[i].iter().position(|x| x.abs() == largest)) {
                let at = |moved: f64| {
                    let mut values = values.clone();
                    values[place] += moved;
                    let mut params = params.clone();
                    params[i] = Tensor::from_vec(values, spec.shape.as_slice(), &CPU).unwrap();
                    case.loss(&params).to_scalar::<f64>().unwrap()
                };
                let difference = (at(H) - at(-H)) / (2.0 * H);
                let error = (grads[i][place] - difference).abs() / largest;
                assert!(error < 1e-5, "{}[{place}]: {} {difference}: {}", spec.name, grads[i][place], case.label);
            }
        }
    }
}

#[test]
fn cpu_training_has_the_loss_and_the_gradients_of_the_tensor_compositions() {
    for case in cases() {
        let (loss, grads) = case.by_tensors(DType::F64);
        for (precision, of_loss, of_grads) in [
            (CpuPrecision::F32, 2e-6, 5e-5),
            (CpuPrecision::Bf16, 2e-2, if case.config.n_embd < 16 { 0.5 } else { 0.1 }),
        ] {
            // Behind a norm over a few channels, what bf16 rounds shows manyfold.
            let mut cpu = CpuGpt::over(case.net.clone(), precision, &case.values).unwrap();
            let dropout = |row| Some(RowDropout { dropout: case.dropout(), row });
            let batch = BatchRef { ids: &case.ids, targets: &case.targets, cols: case.t };
            let found = cpu.forward_backward(batch, &dropout).unwrap();
            assert!((found - loss).abs() < of_loss * loss.max(1.0), "{precision:?}: {found} {loss}: {}", case.label);
            for ((spec, expected), found) in case.net.params().iter().zip(&grads).zip(cpu.layout().split(cpu.grads())) {
                let largest = expected.iter().fold(1e-3f64, |max, x| max.max(x.abs()));
                let worst = expected.iter().zip(&found).fold(0f64, |max, (a, b)| max.max((a - f64::from(*b)).abs()));
                assert!(
                    worst < of_grads * largest,
                    "{precision:?} {}: {worst} of {largest}: {}",
                    spec.name,
                    case.label
                );
            }
        }
    }
}

#[test]
fn cpu_decoding_has_the_logits_of_the_tensor_compositions_at_every_position() {
    for case in cases() {
        let config = GptConfig { dropout: 0.0, ..case.config.clone() };
        let gpt = Gpt::over(case.net.clone(), &case.tensors(DType::F64)).unwrap();
        let ids = Tensor::from_slice(&case.ids[..case.t], (1, case.t), &CPU).unwrap();
        let expected: Vec<Vec<f64>> = gpt.forward(&ids, None).unwrap().squeeze(0).unwrap().to_vec2().unwrap();
        let slices: Vec<&[f32]> = case.values.iter().map(Vec::as_slice).collect();
        // In int8 activations are rounded too, and these networks, of lively weights and a few channels, magnify that.
        // `cpu/decode/quantized/tests.rs` holds its products to plain ones bit by bit.
        for (format, tolerance) in [(WeightFormat::F32, 2e-5), (WeightFormat::Bf16, 6e-2), (WeightFormat::Int8, 0.2)] {
            for prompt in [1, case.t.div_ceil(2)] {
                let mut decoder = CpuDecoder::over(case.net.clone(), &slices, ContextPolicy::Slide, format).unwrap();
                let check = |logits: &[f32], position: usize| {
                    for row in logits.chunks(config.vocab_size) {
                        let expected = &expected[position];
                        let largest = expected.iter().fold(1.0f64, |max, x| max.max(x.abs()));
                        let off = row.iter().zip(expected).fold(0f64, |max, (a, b)| max.max((f64::from(*a) - b).abs()));
                        assert!(
                            off < tolerance * largest,
                            "{format:?} at {position}: {off} of {largest}: {}",
                            case.label
                        );
                    }
                };
                check(&decoder.start(&case.ids[..prompt], 2).unwrap().to_host().unwrap(), prompt - 1);
                for position in prompt..case.t {
                    check(&decoder.step(&[case.ids[position]; 2]).unwrap().to_host().unwrap(), position);
                }
            }
        }
        // The losses are those of the logits.
        let targets = Tensor::from_slice(&case.targets[..case.t], case.t, &CPU).unwrap();
        let logits = gpt.forward(&ids, None).unwrap().squeeze(0).unwrap();
        let expected: f64 = cross_entropy(&logits, &targets).unwrap().sum_all().unwrap().to_scalar().unwrap();
        let mut cpu = CpuGpt::over(case.net.clone(), CpuPrecision::F32, &case.values).unwrap();
        let batch = BatchRef { ids: &case.ids[..case.t], targets: &case.targets[..case.t], cols: case.t };
        let found = cpu.losses(batch).unwrap();
        assert!((found - expected).abs() < 1e-5 * expected.max(1.0), "{found} {expected}: {}", case.label);
    }
}

#[test]
#[should_panic(expected = "embeddings and positions come first")]
fn a_table_whose_gradient_would_be_wrong_is_noticed() {
    let config = shapes().remove(3).0;
    let body: Body = |net, x, _| {
        let h = net.rms_norm(x, "norm");
        net.positions(h, "positions", 0.5)
    };
    let net = network(&config, body, true);
    let values = values(&net, &mut Random::new(1));
    let _ = CpuGpt::over(net, CpuPrecision::F32, &values);
}

#[test]
fn an_impossible_shape_is_refused_by_every_constructor() {
    let good = GptConfig { vocab_size: 7, block_size: 4, n_layer: 1, n_head: 2, n_embd: 8, ..GptConfig::default() };
    let values = tinygpt_model::init_params(&good, 1);
    let slices: Vec<&[f32]> = values.iter().map(Vec::as_slice).collect();
    let tensors = to_tensors(&good, &values, DType::F32, &CPU).unwrap();
    for bad in [GptConfig { n_head: 0, ..good.clone() }, GptConfig { n_head: 3, ..good.clone() }] {
        let errors = [
            Gpt::new(&bad, &tensors).err(),
            CpuGpt::new(&bad, CpuPrecision::F32, &values).err(),
            CpuDecoder::new(&bad, &slices, ContextPolicy::Slide, WeightFormat::F32).err(),
            TensorDecoder::new(&bad, &values, ContextPolicy::Slide, DType::F32, &CPU).err(),
            to_tensors(&bad, &values, DType::F32, &CPU).err(),
        ];
        for error in errors {
            assert!(matches!(error, Some(ModelError::Config { .. })), "{error:?}");
        }
    }
}
