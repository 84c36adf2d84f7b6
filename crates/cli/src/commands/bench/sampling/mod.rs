//! `tinygpt bench sampling`: microseconds a row, against one read of the logits and, with the feature `bench-candle`, against
//! candle's `LogitsProcessor`.

mod contenders;
pub mod logits;
mod measure;
mod plot;
mod report;

use candle_core::{Device, Tensor};
use clap::ValueEnum;
use serde_json::json;
use tinygpt_trainer::chart;

use super::note_debug_build;
use crate::{
    args::{BenchSamplingArgs, Rule},
    device,
    output::{print_json, print_stdout},
};
use measure::{Effort, measure};
use report::{Absent, Cell, Missing};

pub fn run(args: &BenchSamplingArgs) -> anyhow::Result<()> {
    let rows = chosen(&args.rows, if args.quick { &[1, 16] } else { &[1, 4, 16, 64, 256] });
    let vocabs = chosen(&args.vocab, if args.quick { &[50_257] } else { &[50_257, 128_256] });
    let rules = chosen(&args.rule, Rule::value_variants());
    let most_rows = rows.iter().copied().max().unwrap_or(1) as usize;
    let effort = Effort::new(args.quick, rows.len() * vocabs.len() * rules.len());
    note_debug_build();
    let (present, mut absent) = devices();
    if cfg!(not(feature = "bench-candle")) {
        let reason = "this program was built without candle-transformers; build it with `cargo build --release --features bench-candle`";
        absent.push(Absent { what: Missing::Contender("candle"), reason: reason.into() });
    }
    if !args.json {
        print_stdout(&report::header(&absent))?;
    }
    let mut cells: Vec<Cell> = Vec::new();
    for &vocab in &vocabs {
        let values = logits::normal(most_rows, vocab as usize);
        let tensor = Tensor::from_vec(values, (most_rows, vocab as usize), &Device::Cpu)?;
        let copies = present.iter().map(|(name, device)| Ok((*name, tensor.to_device(device)?)));
        let copies = copies.collect::<anyhow::Result<Vec<_>>>()?;
        for &rows in &rows {
            for &rule in &rules {
                let times = measure(&copies, rows as usize, rule, effort)?;
                let new = report::cells(rows, vocab, rule, &times);
                if !args.json {
                    print_stdout(&report::lines(&new))?;
                }
                cells.extend(new);
            }
        }
    }
    if let Some(path) = &args.plot {
        chart::write(path, &plot::figure(&cells))?;
    }
    if args.json { print_json(&json!({ "cells": cells, "absent": absent })) } else { Ok(()) }
}

/// What was asked for, each once, or the default.
fn chosen<T: Copy + PartialEq>(asked: &[T], default: &[T]) -> Vec<T> {
    let mut chosen = Vec::new();
    for &value in if asked.is_empty() { default } else { asked } {
        if !chosen.contains(&value) {
            chosen.push(value);
        }
    }
    chosen
}

/// The devices that are here, the CPU first, and those that are not.
fn devices() -> (Vec<(&'static str, Device)>, Vec<Absent>) {
    let (mut present, mut absent) = (vec![("cpu", Device::Cpu)], Vec::new());
    for (name, found) in [("cuda:0", device::cuda(0)), ("metal", device::metal())] {
        match found {
            Ok(device) => present.push((name, device)),
            Err(reason) => absent.push(Absent { what: Missing::Device(name), reason }),
        }
    }
    (present, absent)
}
