//! `TINYGPT_SIMD`: the vector instructions that the program computes with, for tests and measurements.

use anyhow::Context;
use tinygpt_sampler::simd::SimdLevel;

/// What it is called in the environment.
const VARIABLE: &str = "TINYGPT_SIMD";

/// Takes the instructions that the environment names. Without a name they are the best of the processor.
///
/// It comes before anything is computed.
pub fn set_up() -> anyhow::Result<()> {
    let Some(name) = std::env::var_os(VARIABLE).filter(|name| !name.is_empty()) else {
        return Ok(());
    };
    let level: SimdLevel = name.to_string_lossy().parse().context(VARIABLE)?;
    level.choose().context(VARIABLE)
}
