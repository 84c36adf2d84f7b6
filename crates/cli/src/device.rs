//! `--device`: where the tensors live.

use std::{num::NonZeroUsize, str::FromStr, thread};

use candle_core::Device;
pub use tinygpt_model::device::name;

use crate::output::Usage;

mod auto;
#[cfg(any(feature = "cuda", test))]
mod compiled_kernels;
#[cfg(feature = "cuda")]
mod cuda;

use auto::Place;
pub use auto::Work;

/// A choice of device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceChoice {
    /// CUDA where it works, else Metal, else the CPU; and the CPU for work that it is faster in.
    Auto,
    /// The CPU.
    Cpu,
    /// The CUDA device of this number.
    Cuda(usize),
    /// Metal.
    Metal,
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s.split_once(':') {
            None if s == "auto" => Ok(Self::Auto),
            None if s == "cpu" => Ok(Self::Cpu),
            None if s == "cuda" => Ok(Self::Cuda(0)),
            None if s == "metal" => Ok(Self::Metal),
            Some(("cuda", number)) => {
                number.parse().map(Self::Cuda).map_err(|_| format!("`{number}` is not the number of a CUDA device"))
            }
            _ => Err("must be auto, cpu, cuda, cuda:N or metal".into()),
        }
    }
}

impl DeviceChoice {
    /// The device. A device that was named and is absent is an error with its reason; `auto` falls back to the CPU.
    pub fn open(self) -> anyhow::Result<Device> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(number) => {
                cuda(number).map_err(|reason| Usage(format!("--device cuda:{number}: {reason}")).into())
            }
            Self::Metal => metal().map_err(|reason| Usage(format!("--device metal: {reason}")).into()),
            Self::Auto => {
                let (device, reason) = auto();
                tell(&device, &reason);
                Ok(device)
            }
        }
    }

    /// Refuses a GPU that was named for an n-gram model, which has nothing to compute there.
    pub fn expect_cpu_for_ngrams(self) -> anyhow::Result<()> {
        match self {
            Self::Auto | Self::Cpu => Ok(()),
            Self::Cuda(_) | Self::Metal => {
                Err(Usage("n-gram models are looked up on the CPU: leave --device out".into()).into())
            }
        }
    }

    /// The device for some work, which is asked for only where `auto` has a choice.
    pub fn open_for(self, work: impl FnOnce() -> anyhow::Result<Work>) -> anyhow::Result<Device> {
        if self != Self::Auto {
            return self.open();
        }
        let (gpu, reason) = auto();
        if gpu.is_cpu() {
            tell(&gpu, &reason);
            return Ok(gpu);
        }
        let (place, why) = work()?.place(thread::available_parallelism().map_or(1, NonZeroUsize::get));
        let device = if place == Place::Cpu { Device::Cpu } else { gpu.clone() };
        let other = if place == Place::Cpu { &gpu } else { &Device::Cpu };
        tell(&device, &format!("{why}; --device {} chooses the other", name(other)));
        Ok(device)
    }
}

/// Says what `auto` chose, but in the default build: without a GPU compiled in there was no choice to speak of.
fn tell(device: &Device, reason: &str) {
    if cfg!(any(feature = "cuda", feature = "metal")) {
        notice!("device: {} ({reason})", name(device));
    }
}

/// What `auto` takes where the work is none that the CPU is faster in, and why.
pub fn auto() -> (Device, String) {
    let no_cuda = match cuda(0) {
        Ok(device) => return (device, "the first CUDA device; CUDA goes before Metal and the CPU".into()),
        Err(reason) => reason,
    };
    match metal() {
        Ok(device) => (device, format!("Metal goes before the CPU; CUDA: {no_cuda}")),
        Err(no_metal) => (Device::Cpu, format!("CUDA: {no_cuda}; Metal: {no_metal}")),
    }
}

/// What candle says went wrong, without the trace of calls that RUST_BACKTRACE adds to it.
#[cfg(any(feature = "cuda", feature = "metal"))]
fn reason(error: candle_core::Error) -> String {
    match error {
        candle_core::Error::WithBacktrace { inner, .. } => reason(*inner),
        error => error.to_string(),
    }
}

/// A CUDA device, or why there is none.
#[cfg(feature = "cuda")]
pub fn cuda(number: usize) -> Result<Device, String> {
    // `cuda_is_available` only says what was compiled in, so ask for the device itself.
    cuda::open(number).map_err(reason)
}

/// A CUDA device, or why there is none.
#[cfg(not(feature = "cuda"))]
pub fn cuda(_: usize) -> Result<Device, String> {
    Err("this program was built without CUDA; build it with `cargo build --release --features cuda`".into())
}

/// The most MiB that tensors have held at a time on a GPU since it was opened; `None` where the device does not count them.
pub fn peak_memory_mib(device: &Device) -> anyhow::Result<Option<f64>> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => Ok(cuda::peak_bytes(device)?.map(|bytes| bytes as f64 / f64::from(1 << 20))),
        _ => Ok(None),
    }
}

/// The Metal device, or why there is none.
#[cfg(feature = "metal")]
pub fn metal() -> Result<Device, String> {
    // candle takes the first of this list, and panics where it is empty.
    if candle_metal_kernels::metal::Device::all().is_empty() {
        return Err("this machine has no Metal device".into());
    }
    Device::new_metal(0).map_err(reason)
}

/// The Metal device, or why there is none.
#[cfg(not(feature = "metal"))]
pub fn metal() -> Result<Device, String> {
    Err("this program was built without Metal; build it with `cargo build --release --features metal`".into())
}
