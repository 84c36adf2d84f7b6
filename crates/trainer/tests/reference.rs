//! The engines against PyTorch: logits, loss, gradients, gradient norms and ten updates of AdamW, and of Muon, with warm-up,
//! cosine, weight decay and clipping. `scripts/make_reference.py` writes the fixtures, in f64 and from code of its own.
#![allow(clippy::print_stdout, reason = "the table of errors, shown by --nocapture and when a test fails")]

use std::{collections::HashMap, sync::Arc};

use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;
use serde::Deserialize;
use tinygpt_model::{Gpt, GptConfig, Precision, config::Position, cpu::CpuPrecision, param_specs, params};
use tinygpt_trainer::{
    config::{OptimizerKind, TrainConfig},
    engine::{AdamW, Batch, CpuEngine, Engine, EngineState, Optimizer, RateFactors, TensorEngine},
    schedule::learning_rate,
};

/// Largest allowed `max|difference| / max|reference|` of a tensor, and difference of a loss.
const TOLERANCE: f64 = 1e-4;

/// The fixtures, and what is special about each.
const FIXTURES: [(&str, &str); 10] = [
    ("gelu, no biases", "reference_gelu_nobias"),
    ("gelu_new, biases", "reference_gelu_new_bias"),
    ("RMSNorm", "reference_rms_norm"),
    ("rotary positions, biases", "reference_rope"),
    ("a head of its own", "reference_untied"),
    ("squared ReLU, capped logits", "reference_relu2_cap"),
    ("the network of Qwen3", "reference_qwen3"),
    ("the network of Qwen3, Muon", "reference_muon"),
    ("heads of their own size, linear scaling, biases, epsilon", "reference_rope_linear"),
    ("heads of their own size, scaling of Llama 3, QK-norm, epsilon", "reference_rope_llama3"),
];

/// The optimizer's settings, as the fixtures' metadata has them.
#[derive(Deserialize)]
struct Training {
    lr: f64,
    min_lr: f64,
    warmup_steps: u64,
    decay_steps: u64,
    beta1: f64,
    beta2: f64,
    eps: f64,
    weight_decay: f64,
    clip: f64,
    #[serde(flatten)]
    muon: Option<MuonSettings>,
}

/// Those of Muon, in the fixture that it updates.
#[derive(Deserialize)]
struct MuonSettings {
    optimizer: OptimizerKind,
    lr_matrices: f64,
    muon_momentum: f64,
    muon_steps: usize,
}

struct Fixture {
    config: GptConfig,
    train: TrainConfig,
    tensors: HashMap<String, Vec<f32>>,
    batches: Vec<Batch>,
}

impl Fixture {
    fn read(name: &str) -> Self {
        let path = format!("{}/../../tests/fixtures/{name}.safetensors", env!("CARGO_MANIFEST_DIR"));
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let metadata = header.metadata().as_ref().unwrap();
        // The vocabulary is no key of `[model]`.
        let mut config: serde_json::Map<_, _> = serde_json::from_str(&metadata["config"]).unwrap();
        let vocab_size = config.remove("vocab_size").unwrap().as_u64().unwrap() as usize;
        let config = GptConfig { vocab_size, ..serde_json::from_value(config.into()).unwrap() };
        let t: Training = serde_json::from_str(&metadata["train"]).unwrap();
        let train = TrainConfig {
            lr: t.lr,
            min_lr: t.min_lr,
            warmup_steps: t.warmup_steps,
            decay_steps: t.decay_steps,
            beta1: t.beta1,
            beta2: t.beta2,
            eps: t.eps,
            weight_decay: t.weight_decay,
            clip: t.clip,
            ..TrainConfig::default()
        };
        let train = match t.muon {
            Some(MuonSettings { optimizer, lr_matrices, muon_momentum, muon_steps }) => {
                TrainConfig { optimizer, lr_matrices, muon_momentum, muon_steps, ..train }
            }
            None => train,
        };

        let file = SafeTensors::deserialize(&bytes).unwrap();
        let mut tensors = HashMap::new();
        let mut tokens = HashMap::new();
        for (name, view) in file.tensors() {
            let data = view.data();
            match view.dtype() {
                safetensors::Dtype::F32 => {
                    let values = data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
                    tensors.insert(name, values);
                }
                safetensors::Dtype::I64 => {
                    let ids = data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()));
                    let ids: Vec<u32> = ids.map(|id| u32::try_from(id).unwrap()).collect();
                    tokens.insert(name, (view.shape().to_vec(), ids));
                }
                other => panic!("{name} is {other:?}"),
            }
        }
        let (shape, ids) = &tokens["ids"];
        let &[_, rows, cols] = shape.as_slice() else { panic!("ids have the shape {shape:?}") };
        let batches = ids
            .chunks(rows * cols)
            .zip(tokens["targets"].1.chunks(rows * cols))
            .map(|(ids, targets)| Batch { ids: ids.to_vec(), targets: targets.to_vec(), rows, cols })
            .collect();
        Self { config, train, tensors, batches }
    }

    /// The tensors `<prefix>/<parameter>`, in parameter order.
    fn params(&self, prefix: &str) -> Vec<Vec<f32>> {
        param_specs(&self.config).iter().map(|spec| self.tensors[&format!("{prefix}/{}", spec.name)].clone()).collect()
    }

    fn start(&self) -> EngineState {
        EngineState::fresh(self.params("param"))
    }
}

/// Errors tensor by tensor, and what is allowed.
#[derive(Default)]
struct Report {
    rows: Vec<(String, f64)>,
}

impl Report {
    fn add(&mut self, name: impl Into<String>, got: &[f32], reference: &[f32]) {
        let name = name.into();
        assert_eq!(got.len(), reference.len(), "{name}");
        let largest = reference.iter().fold(0.0f64, |a, &r| a.max(f64::from(r).abs()));
        let difference = got.iter().zip(reference).fold(0.0f64, |a, (&g, &r)| {
            // A NaN must not get lost in a maximum.
            assert!(g.is_finite() && r.is_finite(), "{name}: {g}, reference {r}");
            a.max((f64::from(g) - f64::from(r)).abs())
        });
        assert!(largest > 0.0, "{name}: the reference is all zero");
        self.rows.push((name, difference / largest));
    }

    /// [`Report::add`] for every parameter.
    fn add_params(&mut self, fixture: &Fixture, prefix: &str, got: &[Vec<f32>]) {
        let c = fixture.config.n_embd;
        for ((spec, got), reference) in param_specs(&fixture.config).iter().zip(got).zip(fixture.params(prefix)) {
            let name = format!("{prefix}/{}", spec.name);
            // Rotated keys are another matter: their bias turns with the position.
            let ignored_by_softmax = fixture.config.position == Position::Learned;
            if spec.name.ends_with("attn.c_attn.bias") && ignored_by_softmax {
                // A bias of the keys shifts all scores of a query alike, which softmax ignores: the gradient of that
                // third is zero in exact arithmetic. In f32 it is rounding noise, and AdamW, which divides a gradient by
                // its own size, makes steps of it whose direction means nothing. So the gradient must be as good as
                // zero, and where it has led to is not compared.
                if prefix == "grad" {
                    let keys = got[c..2 * c].iter().fold(0.0f32, |a, x| a.max(x.abs()));
                    assert!(keys < 1e-6, "{name}: the key third is {keys:e}, but should be zero");
                }
                self.add(format!("{name} (queries)"), &got[..c], &reference[..c]);
                self.add(format!("{name} (values)"), &got[2 * c..], &reference[2 * c..]);
            } else {
                self.add(name, got, &reference);
            }
        }
    }

    /// Losses count by their difference alone.
    fn add_loss(&mut self, name: impl Into<String>, got: f64, reference: f32) {
        assert!(got.is_finite());
        self.rows.push((name.into(), (got - f64::from(reference)).abs()));
    }

    fn verdict(mut self, label: &str) {
        println!("{label}: error of each tensor, largest first; at most {TOLERANCE:e} is allowed");
        self.rows.sort_by(|a, b| b.1.total_cmp(&a.1));
        for (name, error) in &self.rows {
            println!("  {error:8.1e}  {name}");
        }
        let (name, error) = &self.rows[0];
        assert!(*error <= TOLERANCE, "{label}: {name} is off by {error:.1e}, more than {TOLERANCE:e}");
    }
}

/// Makes an engine that starts from a state.
type Build<'a> = &'a dyn Fn(&GptConfig, Arc<dyn Optimizer>, &EngineState) -> Box<dyn Engine>;

/// Holds an engine to a fixture; it is asked for nothing but what [`Engine`] promises.
fn check_engine(label: &str, name: &str, build: Build<'_>) {
    let fixture = Fixture::read(name);
    let Fixture { config, train, tensors, batches } = &fixture;
    let mut report = Report::default();

    // The gradients: with beta1 = 0 the first moment after an update is the gradient itself, in parameter order.
    let plain = AdamW { beta1: 0.0, beta2: 0.0, eps: 1e-8, weight_decay: 0.0, rates: RateFactors::EQUAL };
    let engine: &mut dyn Engine = &mut *build(config, Arc::new(plain), &fixture.start());
    let loss = engine.forward_backward(&batches[0], 0).unwrap().read().unwrap();
    report.add_loss("loss", loss, tensors["loss"][0]);
    let tokens = (batches[0].rows * batches[0].cols) as f64;
    report.add_loss("eval", engine.eval(&batches[0]).unwrap() / tokens, tensors["loss"][0]);
    engine.optimizer_step(0.0, 0.0).unwrap().read().unwrap();
    report.add_params(&fixture, "grad", engine.state_dict().unwrap().slot("m").unwrap());

    // Ten updates.
    let engine: &mut dyn Engine = &mut *build(config, train.into(), &fixture.start());
    let mut norms = Vec::new();
    for (step, batch) in batches.iter().enumerate() {
        let loss = engine.forward_backward(batch, step as u64).unwrap().read().unwrap();
        report.add_loss(format!("losses[{step}]"), loss, tensors["losses"][step]);
        norms
            .push(engine.optimizer_step(learning_rate(train, step as u64), train.clip).unwrap().read().unwrap() as f32);
    }
    assert!(norms.iter().any(|&n| f64::from(n) > train.clip) && norms.iter().any(|&n| f64::from(n) < train.clip));
    report.add("grad_norms", &norms, &tensors["grad_norms"]);
    let end = engine.state_dict().unwrap();
    assert_eq!(end.updates, batches.len() as u64);
    report.add_params(&fixture, "final", &end.params);
    report.verdict(label);
}

fn tensors(config: &GptConfig, optimizer: Arc<dyn Optimizer>, state: &EngineState) -> Box<dyn Engine> {
    Box::new(TensorEngine::new(config, Precision::F32, optimizer, 0, state, &Device::Cpu).unwrap())
}

#[test]
fn the_engine_of_tensors_agrees_with_pytorch() {
    for (label, name) in FIXTURES {
        check_engine(&format!("tensors, {label}"), name, &tensors);
    }
}

fn cpu(config: &GptConfig, optimizer: Arc<dyn Optimizer>, state: &EngineState) -> Box<dyn Engine> {
    Box::new(CpuEngine::new(config, CpuPrecision::F32, optimizer, 0, state).unwrap())
}

#[test]
fn the_cpu_engine_agrees_with_pytorch() {
    for (label, name) in FIXTURES {
        check_engine(&format!("cpu, {label}"), name, &cpu);
    }
}

#[test]
fn the_models_logits_agree_with_pytorch() {
    for (label, name) in FIXTURES {
        let fixture = Fixture::read(name);
        let values = params::to_tensors(&fixture.config, &fixture.params("param"), DType::F32, &Device::Cpu).unwrap();
        let gpt = Gpt::new(&fixture.config, &values).unwrap();
        let Batch { ids, rows, cols, .. } = fixture.batches[0].clone();
        let ids = Tensor::from_vec(ids, (rows, cols), &Device::Cpu).unwrap();
        let mut report = Report::default();
        let logits = |t: Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        report.add("forward", &logits(gpt.forward(&ids, None).unwrap()), &fixture.tensors["logits"]);
        let mut cache = gpt.new_cache(rows).unwrap();
        let cached = gpt.forward_cached(&ids, &mut cache).unwrap();
        report.add("forward_cached", &logits(cached), &fixture.tensors["logits"]);
        report.verdict(label);
    }
}

/// The comparison itself: an error of two tolerances in one element of one tensor must be found.
#[test]
fn a_wrong_number_is_noticed() {
    let fixture = Fixture::read("reference_gelu_new_bias");
    for prefix in ["grad", "final"] {
        let good = fixture.params(prefix);
        let compare = |params: &[Vec<f32>]| {
            let mut report = Report::default();
            report.add_params(&fixture, prefix, params);
            report.rows.iter().fold(0.0f64, |a, row| a.max(row.1))
        };
        assert_eq!(compare(&good), 0.0);
        for (i, spec) in param_specs(&fixture.config).iter().enumerate() {
            let mut bad = good.clone();
            let largest = good[i].iter().fold(0.0f32, |a, x| a.max(x.abs()));
            *bad[i].last_mut().unwrap() += 2.0 * TOLERANCE as f32 * largest;
            assert!(compare(&bad) > TOLERANCE, "{prefix}/{}", spec.name);
        }
    }
}
