//! Where `--device auto` computes on a machine with a GPU: there, unless an estimate says that the CPU is faster.
//!
//! A GPU waits for the host to launch one kernel after another, whatever their size, so a small model takes as long as a larger
//! one. `docs/gpu.md` has the launches, and where the rates are from.

use tinygpt_model::{
    GptConfig,
    config::Position,
    cpu::{DecodeFormats, KvCacheFormat, WeightFormat},
    network,
};
use tinygpt_trainer::{RunConfig, config::OptimizerKind};

/// What a command is going to compute over and over.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Work {
    /// A step of generation, which makes a token of each row.
    Step {
        n_layer: usize,
        rows: usize,
        /// Bytes of weights that it reads, whatever the rows.
        weight_bytes: f64,
        /// Floating-point operations for each row.
        flop: f64,
    },
    /// An update of training.
    Update {
        /// Launches and products of a batch and its update.
        launches: f64,
        /// Sequences of a batch.
        rows: usize,
        batches: usize,
        /// Floating-point operations of all its products.
        flop: f64,
    },
    /// Something that one of both cannot compute at all.
    Only(Place, &'static str),
}

/// A kind of device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Cpu,
    Gpu,
}

/// Seconds that the host takes for a launch.
const LAUNCH: f64 = 4e-6;
/// Launches of a step of generation with its draw: of a block, and beside the blocks. Metal has no kernels of this project.
const STEP_LAUNCHES: (f64, f64) = if cfg!(feature = "metal") { (40.0, 75.0) } else { (5.0, 12.0) };
/// Launches and products of a batch of training with its update: of a layer, and beside the layers.
const BATCH_LAUNCHES: (f64, f64) = if cfg!(feature = "metal") { (175.0, 300.0) } else { (32.0, 40.0) };
/// The same with Muon, rotary positions or QK-norm.
const MODERN_BATCH_LAUNCHES: (f64, f64) = if cfg!(feature = "metal") { (220.0, 300.0) } else { (32.0, 80.0) };
/// Bytes and floating-point operations a second of a GPU for consumers.
const GPU: (f64, f64) = (1e12, 2e13);
/// Floating-point operations a second of a core in products, half of its peak.
const CORE_FLOP: f64 = 1.25e11;
/// Bytes a second of memory that a core reads, and that all cores read at most.
const CORE_BYTES: (f64, f64) = (2e10, 1e11);
/// Seconds that the CPU takes for a block of one row, whatever its size.
const CPU_BLOCK: f64 = 6e-6;

impl Work {
    /// Generation of `rows` texts side by side.
    pub fn generation(config: &GptConfig, formats: impl Into<DecodeFormats>, rows: usize) -> Self {
        let DecodeFormats { weights: format, kv_cache } = formats.into();
        if matches!(format, WeightFormat::Int8 | WeightFormat::Int4) {
            return Self::Only(Place::Cpu, "weights in int8 and int4 are for the CPU");
        }
        if kv_cache != KvCacheFormat::F32 {
            return Self::Only(Place::Cpu, "key-value caches in bf16 are for the CPU");
        }
        Self::Step {
            n_layer: config.n_layer,
            rows,
            weight_bytes: format.bytes_of_a_step(config) as f64,
            // Two for each weight, which has four bytes in f32.
            flop: 0.5 * WeightFormat::F32.bytes_of_a_step(config) as f64,
        }
    }

    /// Training of a model of the shape `gpt`.
    pub fn training(config: &RunConfig, gpt: &GptConfig) -> Self {
        let train = &config.train;
        if tinygpt_trainer::engine::check_precision(train.precision, &candle_core::Device::Cpu).is_err() {
            return Self::Only(Place::Gpu, "this CPU does not train in the run's precision");
        }
        let modern = train.optimizer != OptimizerKind::Adamw || gpt.position == Position::Rope || gpt.qk_norm;
        let of_layers = if modern { MODERN_BATCH_LAUNCHES } else { BATCH_LAUNCHES };
        Self::Update {
            launches: of_layers.0 * gpt.n_layer as f64 + of_layers.1,
            rows: train.batch_size,
            batches: train.grad_accum,
            flop: train.grad_accum as f64 * network(gpt).flops_of_update(train.batch_size, gpt.block_size),
        }
    }

    /// The place that is estimated to be the faster one, and why; `cores` are those of the CPU.
    pub fn place(self, cores: usize) -> (Place, String) {
        let (what, cpu, gpu) = match self {
            Self::Only(place, why) => return (place, why.into()),
            Self::Step { n_layer, rows, weight_bytes, flop } => {
                let (cores, layers, rows) = (cores as f64, n_layer as f64, rows as f64);
                let read = weight_bytes / (CORE_BYTES.0 * cores).min(CORE_BYTES.1);
                let cpu = CPU_BLOCK * layers + read.max(rows * flop / (CORE_FLOP * cores));
                let launches = STEP_LAUNCHES.0 * layers + STEP_LAUNCHES.1;
                let gpu = LAUNCH * launches + (weight_bytes / GPU.0).max(rows * flop / GPU.1);
                let texts = if rows == 1.0 { "one text".into() } else { format!("{rows} texts") };
                (format!("a step of {texts}"), cpu, gpu)
            }
            Self::Update { launches, rows, batches, flop } => {
                // A sequence is one thread's.
                let cpu = flop / (CORE_FLOP * cores.min(rows.max(1)) as f64);
                ("an update".into(), cpu, LAUNCH * batches as f64 * launches + flop / GPU.1)
            }
        };
        let place = if cpu < gpu { Place::Cpu } else { Place::Gpu };
        (
            place,
            format!("{what} is estimated to take {:.2} ms on the CPU and {:.2} ms on the GPU", 1e3 * cpu, 1e3 * gpu),
        )
    }
}

#[cfg(test)]
mod tests {
    use tinygpt_trainer::config::{self, recipe};

    use super::*;

    fn shape(vocab_size: usize, n_layer: usize, n_embd: usize) -> GptConfig {
        GptConfig { vocab_size, n_layer, n_head: 4, n_embd, ..GptConfig::default() }
    }

    #[test]
    fn few_rows_of_a_small_model_are_generated_on_the_cpu_and_all_else_on_the_gpu() {
        let (small, baby, gpt2) = (shape(65, 4, 128), shape(65, 6, 384), shape(50257, 12, 768));
        let place = |config, format, rows, cores| Work::generation(config, format, rows).place(cores).0;
        for (config, rows, cores, expected) in [
            (&small, 1, 2, Place::Cpu),
            (&small, 64, 2, Place::Gpu),
            (&baby, 1, 2, Place::Gpu),
            (&baby, 1, 64, Place::Gpu),
            (&baby, 16, 16, Place::Gpu),
            (&gpt2, 1, 2, Place::Gpu),
            (&gpt2, 1, 64, Place::Gpu),
            (&gpt2, 16, 64, Place::Gpu),
        ] {
            assert_eq!(
                place(config, WeightFormat::F32, rows, cores),
                expected,
                "{rows} rows, {cores} cores, {config:?}"
            );
        }
        for format in [WeightFormat::Int8, WeightFormat::Int4] {
            assert_eq!(place(&gpt2, format, 16, 2), Place::Cpu, "the GPU has no {format:?}");
        }
        let formats = DecodeFormats { kv_cache: KvCacheFormat::Bf16, ..DecodeFormats::default() };
        assert_eq!(Work::generation(&gpt2, formats, 16).place(2).0, Place::Cpu, "the GPU's caches are in f32");
    }

    #[test]
    fn only_updates_shorter_than_their_launches_are_made_on_the_cpu() {
        for (name, sets, cores, expected) in [
            ("shakespeare-baby", &[][..], 64, Place::Gpu),
            ("shakespeare-small", &[], 2, Place::Gpu),
            ("shakespeare-small", &["train.batch_size=1"], 2, Place::Gpu),
            ("shakespeare-small", &["train.batch_size=1", "model.n_embd=32", "model.block_size=32"], 2, Place::Cpu),
            ("shakespeare-small", &["train.batch_size=1", "train.precision=f16"], 2, Place::Gpu),
            ("tiny", &["train.batch_size=1", "model.block_size=8"], 2, Place::Cpu),
            ("tiny", &[], 2, Place::Gpu),
        ] {
            let set: Vec<String> = sets.iter().map(|&set| set.into()).collect();
            let config = config::load(recipe(name).unwrap(), &set, false).unwrap();
            let (place, why) = Work::training(&config, &config.gpt(65)).place(cores);
            assert_eq!(place, expected, "{name} {sets:?}, {cores} cores: {why}");
        }
    }

    #[test]
    fn the_reason_has_both_estimates() {
        let work = Work::Step { n_layer: 4, rows: 1, weight_bytes: 4e6, flop: 2e6 };
        let why = "a step of one text is estimated to take 0.12 ms on the CPU and 0.13 ms on the GPU";
        assert_eq!(work.place(2), (Place::Cpu, why.into()));
    }
}
