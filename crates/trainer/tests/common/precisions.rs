//! The precisions in which the CPU engine can be tested on this machine.

use std::io::Write as _;

use tinygpt_model::Precision;

/// Returns the precisions that the CPU engine computes in. It refuses bf16 where the processor has no instructions for it:
/// then a test of the engine covers f32 alone, and says so. (The kernels' own tests, in `crates/model/src/cpu/bf16.rs` and
/// `crates/sampler/src/simd/`, cover bf16 on every processor.)
pub fn cpu_precisions() -> Vec<Precision> {
    let mut precisions = vec![Precision::F32];
    match Precision::Bf16.check() {
        Ok(()) => precisions.push(Precision::Bf16),
        Err(error) => skipped(&format!("the CPU engine in bf16: {error}")),
    }
    precisions
}

/// Says that a part of the calling test was skipped, and why. It writes past the harness, which shows what a test that
/// passes prints only if asked.
fn skipped(what: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    std::io::stderr().write_all(format!("{test}: skipped {what}\n").as_bytes()).unwrap();
}
