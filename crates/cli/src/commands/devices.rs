//! `tinygpt devices`: each backend, whether it was compiled in and is there, and what it needs otherwise.

use std::{fs, thread};

use candle_core::Device;
use serde::Serialize;
use tinygpt_sampler::simd::SimdLevel;
use tinygpt_trainer::memory;

use crate::{
    args::DevicesArgs,
    device,
    output::{print_json, print_stdout},
};

const CUDA_NEEDS: &str = "an NVIDIA driver of series 580 or newer, and libcublas.so.13 and libcurand.so.10 on LD_LIBRARY_PATH; see docs/gpu.md";
const METAL_NEEDS: &str = "macOS on Apple silicon";

/// A kind of device.
#[derive(Debug, Serialize)]
struct Backend {
    name: &'static str,
    /// Whether this program can use it at all.
    compiled: bool,
    /// Whether this machine has one that works.
    present: bool,
    devices: Vec<Found>,
    /// Why there is none.
    problem: Option<String>,
    /// What the machine needs for it.
    needs: Option<&'static str>,
}

/// A device that can be used.
#[derive(Debug, Serialize)]
struct Found {
    /// What `--device` takes.
    device: String,
    /// What its maker calls it.
    name: Option<String>,
    memory_bytes: Option<u64>,
    #[serde(flatten)]
    processor: Option<Processor>,
}

/// What matters of a CPU.
#[derive(Debug, Serialize)]
struct Processor {
    cores: usize,
    /// The vector instructions in use: avx512, avx2, neon or scalar.
    simd: String,
    /// Whether it multiplies pairs of bf16.
    bf16: bool,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report {
    /// What `--device auto` takes.
    auto: String,
    why: String,
    backends: [Backend; 3],
}

pub fn run(args: &DevicesArgs) -> anyhow::Result<()> {
    let (chosen, why) = device::auto();
    let report = Report { auto: device::name(&chosen), why, backends: [cpu(), cuda(), metal()] };
    if args.json { print_json(&report) } else { Ok(print_stdout(&describe(&report))?) }
}

fn cpu() -> Backend {
    let level = SimdLevel::detect();
    let processor = Processor {
        cores: thread::available_parallelism().map_or(1, usize::from),
        simd: level.name().to_owned(),
        bf16: level.has_bf16(),
    };
    let memory_bytes = memory::available().map(|bytes| bytes as u64);
    let found = Found { device: "cpu".into(), name: cpu_name(), memory_bytes, processor: Some(processor) };
    Backend { name: "cpu", compiled: true, present: true, devices: vec![found], problem: None, needs: None }
}

/// The name of the processor as Linux tells it, which it does not on every architecture.
fn cpu_name() -> Option<String> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").ok()?;
    let (_, name) = cpuinfo.lines().find(|line| line.starts_with("model name"))?.split_once(':')?;
    Some(name.trim().to_owned())
}

/// A backend of a GPU with the devices that opened, and what is wrong with the others.
fn gpu(name: &'static str, compiled: bool, opened: Vec<Result<Device, String>>, needs: &'static str) -> Backend {
    let (mut devices, mut problems) = (Vec::new(), Vec::new());
    for device in opened {
        match device.and_then(|device| found(&device)) {
            Ok(found) => devices.push(found),
            Err(problem) => problems.push(problem),
        }
    }
    problems.dedup();
    let problem = (!problems.is_empty()).then(|| problems.join("; "));
    let needs = problem.is_some().then_some(needs);
    Backend { name, compiled, present: !devices.is_empty(), devices, problem, needs }
}

fn cuda() -> Backend {
    // Without a driver there is no number of devices; asking for the first one says why.
    let opened = (0..cuda_devices().max(1)).map(device::cuda).collect();
    gpu("cuda", cfg!(feature = "cuda"), opened, CUDA_NEEDS)
}

fn metal() -> Backend {
    gpu("metal", cfg!(feature = "metal"), vec![device::metal()], METAL_NEEDS)
}

/// The number of devices that the driver knows.
#[cfg(feature = "cuda")]
fn cuda_devices() -> usize {
    use candle_core::cuda_backend::cudarc::driver::CudaContext;
    CudaContext::device_count().map_or(0, |count| usize::try_from(count).unwrap_or(0))
}

#[cfg(not(feature = "cuda"))]
fn cuda_devices() -> usize {
    0
}

/// What the driver says of an opened device.
fn found(device: &Device) -> Result<Found, String> {
    let (name, memory) = match device {
        Device::Cpu => (None, None),
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => {
            let stream = cuda.cuda_stream();
            let context = stream.context();
            let said = context.name().and_then(|name| Ok((name, context.total_mem()?)));
            let (name, bytes) = said.map_err(|e| e.to_string())?;
            (Some(name), Some(bytes))
        }
        #[cfg(feature = "metal")]
        Device::Metal(metal) => (Some(metal.architecture_name()), Some(metal.recommended_max_working_set_size())),
        #[allow(unreachable_patterns, reason = "reachable where a backend is not compiled in")]
        _ => (None, None),
    };
    Ok(Found {
        device: device::name(device),
        name,
        memory_bytes: memory.map(|bytes: usize| bytes as u64),
        processor: None,
    })
}

fn describe(report: &Report) -> String {
    let mut text = format!("{:<8}  {:<8}  {:<7}  {:>11}  name\n", "device", "compiled", "present", "memory");
    for Backend { name, compiled, devices, problem, needs, .. } in &report.backends {
        let yes = |is: bool| if is { "yes" } else { "no" };
        let mut line = |device: &str, present, memory: &str, name: &str| {
            let line = format!("{device:<8}  {:<8}  {:<7}  {memory:>11}  {name}", yes(*compiled), yes(present));
            text += line.trim_end();
            text.push('\n');
        };
        for Found { device, name, memory_bytes, processor } in devices {
            let memory = memory_bytes.map_or("unknown".into(), |b| format!("{:.1} GiB", b as f64 / f64::from(1 << 30)));
            let mut name = name.clone().unwrap_or_else(|| "unknown".into());
            if let Some(Processor { cores, simd, bf16 }) = processor {
                let bf16 = if *bf16 { " with bf16" } else { ", no bf16" };
                name += &format!(", {cores} cores, {simd}{bf16}");
            }
            line(device, true, &memory, &name);
        }
        if devices.is_empty() {
            line(name, false, "", "");
        }
        if let (Some(problem), Some(needs)) = (problem, needs) {
            text += &format!("          {problem}\n          needs {needs}\n");
        }
    }
    text + &format!("--device auto takes {}\n", report.auto)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_names_what_is_there_and_what_the_others_need() {
        let processor = Processor { cores: 2, simd: "avx512".into(), bf16: true };
        let found = |device: &str, name: &str, gib: u64, processor| Found {
            device: device.into(),
            name: Some(name.into()),
            memory_bytes: Some(gib << 30),
            processor,
        };
        let mut cuda = gpu("cuda", true, vec![Err("no such device".into()), Err("no such device".into())], "a driver");
        assert_eq!((cuda.present, cuda.problem.as_deref()), (false, Some("no such device")));
        let cpu = Backend { devices: vec![found("cpu", "Some CPU", 24, Some(processor))], ..cpu() };
        let metal = gpu("metal", false, vec![Err("not compiled in".into())], "a Mac");
        let report = |cuda| Report { auto: "cpu".into(), why: "nothing else".into(), backends: [cpu, cuda, metal] };
        cuda.devices = vec![found("cuda:1", "Some GPU", 141, None)];
        assert_eq!(
            describe(&report(cuda)),
            "device    compiled  present       memory  name\n\
             cpu       yes       yes         24.0 GiB  Some CPU, 2 cores, avx512 with bf16\n\
             cuda:1    yes       yes        141.0 GiB  Some GPU\n          \
             no such device\n          needs a driver\n\
             metal     no        no\n          \
             not compiled in\n          needs a Mac\n\
             --device auto takes cpu\n"
        );
    }
}
