//! Checks whether a run can fit the memory of the machine. A failed allocation would abort the program, so a run that is
//! clearly too large is refused before.

use std::{fs, path::Path};

use serde::Serialize;
use tinygpt_model::{
    GptConfig,
    cpu::{CpuPrecision, TrainingFloats},
};

use crate::{
    Result, TrainError,
    config::{OptimizerKind, RunConfig, TokenizerKind},
    data::BUILTIN_CORPUS,
    engine::Muon,
};

const F32: f64 = 4.0;

/// A lower bound of one part of the memory that training on the CPU needs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct MemoryPart {
    /// What it is for.
    pub what: &'static str,
    /// Its size.
    pub bytes: f64,
    /// The configuration keys to lower.
    #[serde(skip)]
    keys: &'static str,
}

/// Refuses a run on the CPU that needs more memory than there is, with a model to stay near of the shape `reference`. The need
/// is a lower bound, so a run that passes may still be too large. Where the size of the memory is unknown, every run passes.
///
/// # Errors
/// [`TrainError::TooLarge`].
pub fn check(config: &RunConfig, vocab_size: usize, reference: Option<&GptConfig>) -> Result<()> {
    match available() {
        Some(available) => check_against(config, vocab_size, reference, available),
        None => Ok(()),
    }
}

fn check_against(config: &RunConfig, vocab_size: usize, reference: Option<&GptConfig>, available: f64) -> Result<()> {
    let parts = parts(config, vocab_size, reference);
    let needed: f64 = parts.iter().map(|part| part.bytes).sum();
    match parts.into_iter().max_by(|a, b| a.bytes.total_cmp(&b.bytes)) {
        Some(MemoryPart { what, bytes, keys }) if needed > available => {
            Err(TrainError::TooLarge { needed, available, what, bytes, keys })
        }
        _ => Ok(()),
    }
}

/// Lower bounds of what training on the CPU needs, with a model to stay near of the shape `reference`.
pub fn parts(config: &RunConfig, vocab_size: usize, reference: Option<&GptConfig>) -> [MemoryPart; 4] {
    // f16, which the CPU has not, takes as much memory as bf16.
    let precision = CpuPrecision::of(config.train.precision).unwrap_or(CpuPrecision::Bf16);
    let gpt = config.gpt(vocab_size);
    let floats = TrainingFloats::new(&gpt, precision);
    // AdamW keeps two moments of each parameter, and Muon as many slots, and works in copies of a matrix.
    let muon = config.train.optimizer == OptimizerKind::Muon;
    let moments = match config.lora.shape(&gpt) {
        // The adapter with its gradients and moments, and the weights that it changes as they were.
        Ok(Some(adapter)) => {
            let changed: usize = adapter.layers.iter().map(|layer| layer.n_in * layer.n_out).sum();
            (4 * adapter.n_params() + changed) as f64
        }
        _ => 2.0 * floats.parameters,
    };
    let parameters = floats.weights
        + moments
        + if muon { Muon::scratch_floats(&config.gpt(vocab_size), rayon::current_num_threads()) } else { 0.0 };
    // The activations of one sequence in flight, and what each window of the batch needs in addition.
    let activations = floats.sequence + config.train.batch_size as f64 * floats.window;
    // Of a model that is not trained: its parameters with what is packed of them, and one sequence in flight.
    let reference = reference.map_or(0.0, |gpt| {
        let floats = TrainingFloats::new(gpt, precision);
        floats.weights - floats.parameters + floats.sequence
    });
    let stories = if config.data.corpus == BUILTIN_CORPUS { config.data.stories_bytes as f64 } else { 0.0 };
    let per_byte = if config.data.tokenizer == TokenizerKind::Char { 1.0 + F32 } else { 1.0 };
    [
        MemoryPart {
            what: "the parameters, their gradients and moments",
            bytes: F32 * parameters,
            keys: "model.n_embd, model.n_layer, model.block_size or the vocabulary",
        },
        MemoryPart {
            what: "the activations of a batch",
            bytes: F32 * activations,
            keys: "train.batch_size (train.grad_accum makes up for it) or model.block_size",
        },
        MemoryPart { what: "the model to stay near", bytes: F32 * reference, keys: "the size of train.reference" },
        MemoryPart { what: "the built-in corpus", bytes: per_byte * stories, keys: "data.stories_bytes" },
    ]
}

/// The memory that this process may use, swap included, in bytes; `None` where it is unknown.
pub fn available() -> Option<f64> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    let kib = |key: &str| -> Option<f64> {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(key))?;
        line.trim().strip_suffix("kB")?.trim().parse().ok()
    };
    let memory = 1024.0 * kib("MemTotal:")?;
    Some(control_groups().fold(memory, f64::min) + 1024.0 * kib("SwapTotal:").unwrap_or(0.0))
}

/// The memory limits of this process's control groups (version 2), in bytes.
fn control_groups() -> impl Iterator<Item = f64> {
    let root = Path::new("/sys/fs/cgroup");
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let folders: Vec<_> = root.join(own).ancestors().take_while(|f| f.starts_with(root)).map(Path::to_owned).collect();
    // A group without a limit says "max".
    folders.into_iter().filter_map(|folder| fs::read_to_string(folder.join("memory.max")).ok()?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load;

    const GIB: f64 = (1u64 << 30) as f64;

    fn refused(set: &[&str], available: f64) -> Option<String> {
        let set: Vec<_> = set.iter().map(|item| item.to_string()).collect();
        let config = load("", &set, false).unwrap();
        check_against(&config, 65, None, available).err().map(|e| e.to_string())
    }

    #[test]
    fn the_recipes_fit_a_small_machine() {
        for (name, text) in crate::config::RECIPES {
            assert!(check_against(&load(text, &[], false).unwrap(), 65, None, 2.0 * GIB).is_ok(), "{name}");
        }
    }

    #[test]
    fn what_is_too_large_is_named_with_the_keys_to_lower() {
        let message = refused(&["model.n_embd=8192", "model.n_layer=8"], 16.0 * GIB).unwrap();
        assert_eq!(
            message,
            "training needs at least 144.5 GiB of memory, and 16.0 GiB is there: 144.0 GiB for the parameters, their \
             gradients and moments; lower model.n_embd, model.n_layer, model.block_size or the vocabulary"
        );
        let less = refused(&["model.n_embd=8192", "model.n_layer=8", "train.precision=bf16"], 16.0 * GIB).unwrap();
        assert!(less.contains("120.0 GiB for the parameters"), "{less}");
        let message = refused(&["train.batch_size=1000000", "model.block_size=256"], 16.0 * GIB).unwrap();
        assert!(message.contains("activations of a batch; lower train.batch_size"), "{message}");
        let message = refused(&["data.stories_bytes=4294967296"], 16.0 * GIB).unwrap();
        assert!(message.ends_with("20.0 GiB for the built-in corpus; lower data.stories_bytes"), "{message}");
        assert_eq!(refused(&["data.stories_bytes=4294967296"], 21.0 * GIB), None);
    }

    #[test]
    fn a_model_to_stay_near_is_counted() {
        let config = load("", &[], false).unwrap();
        let large = GptConfig { n_embd: 8192, n_layer: 8, ..GptConfig::default() };
        assert!(check_against(&config, 65, None, 2.0 * GIB).is_ok());
        // 24 GiB of parameters, and twice that in packed matrices.
        let message = check_against(&config, 65, Some(&large), 70.0 * GIB).unwrap_err().to_string();
        assert!(message.contains(" GiB for the model to stay near; lower the size of train.reference"), "{message}");
        assert!(check_against(&config, 65, Some(&large), 80.0 * GIB).is_ok());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_memory_of_this_machine_is_known() {
        let bytes = available().unwrap();
        assert!((0.1 * GIB..1e6 * GIB).contains(&bytes), "{bytes}");
    }
}
