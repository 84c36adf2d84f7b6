//! `--device`: where the tensors live.

use std::str::FromStr;

use candle_core::Device;

use crate::output::Usage;

/// A choice of device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceChoice {
    /// CUDA where it works, else Metal, else the CPU.
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
            Self::Auto => match (cuda(0), metal()) {
                (Ok(device), _) => Ok(noted(device, "CUDA device 0")),
                (_, Ok(device)) => Ok(noted(device, "Metal")),
                (Err(cuda), Err(metal)) => {
                    // Silent in the default build: without a GPU compiled in there was no choice to speak of.
                    if cfg!(any(feature = "cuda", feature = "metal")) {
                        notice!("device: cpu (CUDA: {cuda}; Metal: {metal})");
                    }
                    Ok(Device::Cpu)
                }
            },
        }
    }
}

fn noted(device: Device, name: &str) -> Device {
    notice!("device: {name}");
    device
}

/// A CUDA device, or why there is none.
pub fn cuda(number: usize) -> Result<Device, String> {
    if cfg!(feature = "cuda") {
        // `cuda_is_available` only says what was compiled in, so ask for the device itself.
        Device::new_cuda(number).map_err(|e| e.to_string())
    } else {
        Err("this program was built without CUDA; build it with `cargo build --release --features cuda`".into())
    }
}

/// The Metal device, or why there is none.
pub fn metal() -> Result<Device, String> {
    if cfg!(feature = "metal") {
        Device::new_metal(0).map_err(|e| e.to_string())
    } else {
        Err("this program was built without Metal; build it with `cargo build --release --features metal`".into())
    }
}
