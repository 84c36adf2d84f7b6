//! `tinygpt bench limits`: what this machine can do at most, measured in our own code with the instructions that this
//! program finds on it. The other benchmarks give their results as shares of these. A limit is looked at until two looks
//! agree, or it cannot be measured now, and then no share of it is given.

mod agreement;
mod arithmetic;
mod bandwidth;
mod rate;

use serde::Serialize;
use serde_json::json;
use tinygpt_sampler::simd::SimdLevel;

pub use agreement::{ARITHMETIC, Looks, READING, agree};
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
    /// On one thread; `None` where it cannot be measured now.
    one_thread: Option<f64>,
    /// On all threads at the same time, together; `None` where it cannot be measured now.
    all_threads: Option<f64>,
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
        let level = SimdLevel::detect().name();
        return print_json(&json!({
            "work": "limits", "threads": threads, "level": level, "limits": limits, "absent": absent,
        }));
    }
    Ok(print_stdout(&table(&limits, &absent, threads))?)
}

/// What can be measured: a rate in a second, or why it is none.
type Rate<'a> = &'a dyn Fn(Threads) -> Result<f64, &'static str>;

fn measure() -> (Vec<Limit>, Vec<Absent>) {
    let memory = Memory::new();
    let measured: [(_, _, _, f64, Rate<'_>); 4] = [
        ("f32", "fused multiply-adds of f32", "GFLOP/s", ARITHMETIC, &|threads| Ok(f32_peak(threads))),
        ("bf16", "bf16 pairs into f32 (vdpbf16ps)", "GFLOP/s", ARITHMETIC, &arithmetic::bf16_peak),
        ("int8", "int8 quadruples into i32 (vpdpbusd)", "Gop/s", ARITHMETIC, &arithmetic::int8_peak),
        ("read", "streaming read of memory", "GB/s", READING, &|threads| Ok(memory.read_rate(threads))),
    ];
    let mut looks = measured.each_ref().map(|(.., tolerance, _)| Ok([Looks::new(*tolerance), Looks::new(*tolerance)]));
    // In turn, so that between two looks at the same limit some time passes.
    while looks.iter().flatten().flatten().any(Looks::wanted) {
        for ((.., rate), looks) in measured.iter().zip(&mut looks) {
            if let Err(reason) = look(*rate, looks) {
                *looks = Err(reason);
            }
        }
    }
    let (mut limits, mut absent) = (Vec::new(), Vec::new());
    for ((limit, what, unit, ..), looks) in measured.into_iter().zip(looks) {
        match looks {
            Ok(looks) => {
                // One in units of 10^9.
                let [one_thread, all_threads] = looks.map(|looks| Some(looks.limit()? / 1e9));
                limits.push(Limit { limit, what, unit, one_thread, all_threads });
            }
            Err(reason) => absent.push(Absent { limit, reason }),
        }
    }
    (limits, absent)
}

/// One more look with one thread and one with all, where it is wanted.
fn look(rate: Rate<'_>, looks: &mut Result<[Looks; 2], &'static str>) -> Result<(), &'static str> {
    let Ok(looks) = looks else { return Ok(()) };
    for (threads, looks) in [Threads::One, Threads::All].into_iter().zip(looks) {
        if looks.wanted() {
            looks.add(rate(threads)?);
        }
    }
    Ok(())
}

fn table(limits: &[Limit], absent: &[Absent], threads: usize) -> String {
    let all = if threads == 1 { "all (1)".into() } else { format!("{threads} threads") };
    let mut text = format!("{:<35}  {:>10}  {all:>10}\n", "limit", "one thread");
    let shown = |rate: &Option<f64>| rate.map_or("not now".into(), |rate| format!("{rate:.1}"));
    for Limit { what, unit, one_thread, all_threads, .. } in limits {
        text += &format!("{what:<35}  {:>10}  {:>10}  {unit}\n", shown(one_thread), shown(all_threads));
    }
    if limits.iter().any(|limit| limit.one_thread.is_none() || limit.all_threads.is_none()) {
        text += "not now: no two measurements agreed, as something else runs on this machine\n";
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
    fn the_table_names_what_is_there_what_is_not_and_what_cannot_be_measured_now() {
        let (what, unit) = ("streaming read of memory", "GB/s");
        let read = Limit { limit: "read", what, unit, one_thread: Some(25.84), all_threads: Some(31.6) };
        let absent = Absent { limit: "bf16", reason: "this processor has no AVX512-BF16" };
        assert_eq!(
            table(std::slice::from_ref(&read), &[absent], 2),
            "limit                                one thread   2 threads\n\
             streaming read of memory                   25.8        31.6  GB/s\n\
             absent: bf16: this processor has no AVX512-BF16\n"
        );
        assert_eq!(
            table(&[Limit { all_threads: None, ..read }], &[], 2),
            "limit                                one thread   2 threads\n\
             streaming read of memory                   25.8     not now  GB/s\n\
             not now: no two measurements agreed, as something else runs on this machine\n"
        );
    }
}
