//! `tinygpt bench limits`: what this machine can do at most, measured in our own code with the instructions that this
//! program finds on it. The other benchmarks give their results as shares of these.

mod arithmetic;
mod bandwidth;
mod rate;

use serde::Serialize;
use serde_json::json;
use tinygpt_sampler::simd::SimdLevel;

pub use arithmetic::f32_peak;
pub use bandwidth::Memory;
pub use rate::Threads;

use super::note_debug_build;
use crate::{
    args::BenchLimitsArgs,
    output::{print_json, print_stdout},
};

/// A limit of the machine.
#[derive(Debug, Clone, Serialize)]
struct Limit {
    /// Its name for programs.
    limit: &'static str,
    /// What it limits.
    #[serde(skip)]
    what: &'static str,
    /// What it is counted in.
    unit: &'static str,
    /// On one thread.
    one_thread: f64,
    /// On all threads at the same time, together.
    all_threads: f64,
}

/// A limit that this machine does not have.
#[derive(Debug, Clone, Serialize)]
struct Absent {
    /// Its name for programs.
    limit: &'static str,
    /// Why.
    reason: &'static str,
}

pub fn run(args: &BenchLimitsArgs) -> anyhow::Result<()> {
    note_debug_build();
    let (limits, absent) = measure();
    let threads = Threads::All.count();
    if args.json {
        // Whoever reads it should know the instructions: the same processor has other limits with others.
        let level = format!("{:?}", SimdLevel::detect()).to_lowercase();
        return print_json(&json!({
            "work": "limits", "threads": threads, "level": level, "limits": limits, "absent": absent,
        }));
    }
    Ok(print_stdout(&table(&limits, &absent, threads))?)
}

fn measure() -> (Vec<Limit>, Vec<Absent>) {
    let (mut limits, mut absent) = (Vec::new(), Vec::new());
    let mut add = |limit, what, unit, rate: &dyn Fn(Threads) -> Result<f64, &'static str>| {
        // One in units of 10^9.
        let both = rate(Threads::One).and_then(|one| Ok([one / 1e9, rate(Threads::All)? / 1e9]));
        match both {
            Ok([one_thread, all_threads]) => limits.push(Limit { limit, what, unit, one_thread, all_threads }),
            Err(reason) => absent.push(Absent { limit, reason }),
        }
    };
    add("f32", "fused multiply-adds of f32", "GFLOP/s", &|threads| Ok(f32_peak(threads)));
    add("bf16", "bf16 pairs into f32 (vdpbf16ps)", "GFLOP/s", &arithmetic::bf16_peak);
    add("int8", "int8 quadruples into i32 (vpdpbusd)", "Gop/s", &arithmetic::int8_peak);
    let memory = Memory::new();
    add("read", "streaming read of memory", "GB/s", &|threads| Ok(memory.read_rate(threads)));
    (limits, absent)
}

fn table(limits: &[Limit], absent: &[Absent], threads: usize) -> String {
    let all = if threads == 1 { "all (1)".into() } else { format!("{threads} threads") };
    let mut text = format!("{:<35}  {:>10}  {all:>10}\n", "limit", "one thread");
    for Limit { what, unit, one_thread, all_threads, .. } in limits {
        text += &format!("{what:<35}  {one_thread:>10.1}  {all_threads:>10.1}  {unit}\n");
    }
    for Absent { limit, reason } in absent {
        text += &format!("absent: {limit}: {reason}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_names_what_is_there_and_what_is_not() {
        let (what, unit) = ("streaming read of memory", "GB/s");
        let limit = Limit { limit: "read", what, unit, one_thread: 25.84, all_threads: 31.6 };
        let absent = Absent { limit: "bf16", reason: "this processor has no AVX512-BF16" };
        assert_eq!(
            table(&[limit], &[absent], 2),
            "limit                                one thread   2 threads\n\
             streaming read of memory                   25.8        31.6  GB/s\n\
             absent: bf16: this processor has no AVX512-BF16\n"
        );
    }
}
