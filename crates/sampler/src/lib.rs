//! Drawing tokens from logits: one meaning on every path, and draws that depend on nothing but the logits, the rules
//! and (seed, sequence, position).
//!
//! A row of logits goes through, in this order: penalties and biases, temperature, top-k, top-p, min-p, one draw. The
//! rules are [`SamplingParams`], and their definition is [`oracle::sample`], slow and in f64. [`Sampler`] is the fast
//! path on the host, tested against it: no sort of the row, vector instructions chosen at run time, rows over threads,
//! no allocation after the first token. [`DeviceSampler`] draws where the logits are, from tensor operations alone.
//!
//! Beside it: [`multinomial()`] draws from weights, [`gumbel_max`], [`gumbel_top_k`] and the differentiable
//! [`gumbel_softmax`] draw by noise, [`Distribution`] shows what a draw is made from, and [`Schedule`] moves the
//! temperature over a generation. All random numbers of the workspace come from [`philox_at`] and [`uniform`].
//!
//! ```
//! use tinygpt_sampler::{Sampler, SamplingParams};
//!
//! let rules = SamplingParams { top_k: 2, seed: 42, ..SamplingParams::default() };
//! let mut sampler = Sampler::new(rules)?;
//! let token = sampler.sample_row(&[0.1, 2.0, 1.5, -3.0], &[], 0, 0)?;
//! assert!(token == 1 || token == 2);
//! # Ok::<(), tinygpt_sampler::SamplingError>(())
//! ```

mod alias;
mod cut;
mod cutoff;
pub mod device;
mod distribution;
mod error;
mod exact;
#[cfg(test)]
mod exactness;
mod exponent;
mod gumbel;
mod host;
mod kernels;
mod limit;
mod list;
mod multinomial;
pub mod oracle;
mod params;
mod penalties;
mod philox;
mod schedule;
mod selection;
pub mod simd;
mod weight_tree;

pub use device::{Cost, DeviceRow, DeviceSampler};
pub use distribution::{Distribution, entropy};
pub use error::{SamplingError, TensorSamplingError};
pub use gumbel::{NoiseSource, gumbel_max, gumbel_softmax, gumbel_top_k};
pub use host::{Row, Sampler};
pub use limit::one_read;
pub use multinomial::{MultinomialError, MultinomialOptions, multinomial, multinomial_row};
pub use params::SamplingParams;
pub use philox::{RngDomain, philox_at, philox4x32_10, philox4x32_10_of, uniform, unit_f64};
pub use schedule::Schedule;
