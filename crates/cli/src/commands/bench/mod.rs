//! `tinygpt bench`: one module a thing to measure.

mod decode;
mod limits;
pub mod sampling;
pub mod train;

use std::fs;

use clap::ValueEnum;
use tinygpt_model::GptConfig;
use tinygpt_trainer::{
    RunConfig,
    config::{self, TokenizerKind, recipe},
};

use crate::args::BenchCommand;

/// The vocabulary where it is that of the characters of a text: the 65 of Shakespeare.
const CHARACTERS: usize = 65;

pub fn run(command: &BenchCommand) -> anyhow::Result<()> {
    match command {
        BenchCommand::Decode(args) => decode::run(args),
        BenchCommand::Limits(args) => limits::run(args),
        BenchCommand::Sampling(args) => sampling::run(args),
        BenchCommand::Train(args) => train::run(args),
    }
}

/// The recipe of a short name, whatever files lie about: it is to be the same work for everybody.
fn named_recipe(name: &str) -> Option<anyhow::Result<RunConfig>> {
    let text = match name {
        "small" => recipe("shakespeare-small")?,
        "baby" => recipe("shakespeare-baby")?,
        "gpt2" => include_str!("gpt2.toml"),
        _ => return None,
    };
    Some(config::load(text, &[], false).map_err(Into::into))
}

/// The shape of a configuration's model before any text is read.
pub fn without_a_text(config: &RunConfig) -> GptConfig {
    config.gpt(match config.data.tokenizer {
        TokenizerKind::Char => CHARACTERS,
        TokenizerKind::Bpe => config.data.vocab_size,
    })
}

/// The name of a flag's value, as the flag takes it.
fn flag_name(value: impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

/// Said once by every benchmark.
pub fn note_debug_build() {
    if cfg!(debug_assertions) {
        notice!("note: this is a debug build; only a release build's times say something");
    }
}

/// The middle of them; of an even number the mean of both.
pub fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    let middle = times.len() / 2;
    match times.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => times[middle],
        _ => (times[middle - 1] + times[middle]) / 2.0,
    }
}

/// The most memory that this process has held at a time, in MiB; `None` where the system does not tell.
fn peak_memory_mib() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024.0)
}

/// Lets [`peak_memory_mib`] count from now on, where the system can do that.
fn forget_peak_memory() {
    // Linux alone has the file; elsewhere the peak is not known at all.
    let _unless_elsewhere = fs::write("/proc/self/clear_refs", "5");
}

/// The lines of a report about memory: of the process, and of the tensors on a GPU.
fn peak_memory(process_mib: Option<f64>, device_mib: Option<f64>) -> String {
    let line = |name, mib: Option<f64>| mib.map_or(String::new(), |mib| format!("{name}{mib:.0} MiB\n"));
    line("peak memory  ", process_mib) + &line("on device    ", device_mib)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn memory_that_was_held_is_counted_after_it_is_gone() {
        let before = peak_memory_mib().unwrap();
        let held = std::hint::black_box(vec![1u8; 64 << 20]);
        drop(held);
        assert!(peak_memory_mib().unwrap() >= before.max(64.0));
    }
}
