//! Drawing tokens from logits: one meaning on every path, and draws that depend on nothing but the logits, the rules
//! and (seed, sequence, position).
//!
//! A row of logits goes through, in this order: penalties and biases, temperature, top-k, top-p, min-p, one draw. The
//! definition is [`oracle::sample`], slow and in f64; [`Sampler`] is the fast path on the host, tested against it.

mod cutoff;
mod distribution;
mod error;
mod exact;
#[cfg(test)]
mod exactness;
mod exponent;
mod host;
mod kernels;
mod limit;
pub mod oracle;
mod params;
mod penalties;
mod philox;
mod schedule;
mod selection;
mod simd;

pub use distribution::Distribution;
pub use error::SamplingError;
pub use host::{Row, Sampler};
pub use limit::one_read;
pub use params::SamplingParams;
pub use philox::{Stream, philox_at, philox4x32_10, uniform, unit_f64};
pub use schedule::Schedule;
