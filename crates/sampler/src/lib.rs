//! From logits to a token: one definition of every sampling rule, fast paths that equal it, and the two tools that all
//! crates of the workspace share: a counter-based random generator and SIMD vectors.
//!
//! A row of logits goes through the rules in an order that [`SamplingParams`] defines: penalties, biases and bans, the
//! temperature, then the cuts, from top-k to XTC, or mirostat, and one draw. The draw depends on the logits, the rules and
//! `(seed, sequence, position)` alone: not on the batch, the threads, the processor or the draws before. (Mirostat follows
//! the draws of its own text: [`TextState`].)
//!
//! ```
//! use tinygpt_sampler::{Sampler, SamplingParams};
//!
//! // Nucleus sampling of one row: four logits, the draw of the 8th token (position 7) of text 0.
//! let params = SamplingParams { temperature: 0.8, top_k: 3, top_p: 0.95, seed: 42, ..SamplingParams::default() };
//! let mut sampler = Sampler::new(params)?;
//! let (logits, history) = ([0.1, 2.0, 1.5, -3.0], []);
//! let (sequence, position) = (0, 7);
//! let token = sampler.sample_row(&logits, &history, sequence, position)?;
//! assert!([0, 1, 2].contains(&token)); // top-k drops token 3
//!
//! // The same place draws the same token, in any sampler and in any batch.
//! assert_eq!(sampler.sample_row(&logits, &history, sequence, position)?, token);
//! # Ok::<(), tinygpt_sampler::SamplingError>(())
//! ```
//!
//! # Where to start reading
//!
//! | what | where |
//! | --- | --- |
//! | the rules, as parameters | `params.rs` ([`SamplingParams`]), `penalties.rs`, `repetition.rs`, `temperature_schedule.rs` ([`Schedule`]) |
//! | the definition: f64, a full sort, an inverse CDF | `oracle.rs` ([`oracle::sample`]), `oracle/kept.rs`; rule by rule, `oracle/explain.rs` |
//! | the uniform number of a draw | `rng.rs` ([`rng`]) |
//! | the fast path on the CPU | `host/mod.rs` ([`Sampler`]), then `host/selection.rs`: one SIMD pass, no sort of the row |
//! | the fast path on a GPU | `device/mod.rs` ([`DeviceSampler`]), then `device/program.rs`: tensor operations alone |
//! | the same by CUDA kernels | `device/fused.rs`, then `kernels/sample.cu` |
//! | what a draw is made from | `distribution.rs` ([`Distribution`]) |
//! | entropy, cross-entropy, divergences | `information.rs` ([`entropy()`], [`kl_divergence`]) |
//! | draws from weights, as `torch.multinomial` | `multinomial/` ([`multinomial()`]) |
//! | draws by noise, and Gumbel-softmax | `gumbel.rs` ([`gumbel_max`], [`gumbel_top_k`], [`gumbel_softmax`]) |
//! | what can go wrong | `error.rs` ([`SamplingError`], [`TensorSamplingError`]), [`MultinomialError`] |
//! | vectors of sixteen f32 | `simd/mod.rs` ([`simd`]) |
//!
//! Both fast paths are tested against the definition: they keep the same tokens, and draw the same token for the same
//! uniform number.
//!
//! # Why the generator and the vectors live here
//!
//! This is the lowest crate of the workspace, so what every crate needs has its one definition here:
//!
//! - [`rng`] makes every random number of the workspace (draws, initial weights, dropout, training windows, stories).
//!   Its [`RngDomain`]s keep those uses apart, which only one list of all of them can do.
//! - [`simd`] is what the host sampler, the model's CPU engine and the optimizer are written in. Its `unsafe` (vector
//!   intrinsics) is argued once, and every user gets the same bits from every processor.
//!
//! Neither knows anything of sampling.

pub mod device;
mod distribution;
mod error;
mod gumbel;
mod host;
mod information;
#[doc(hidden)]
pub mod kernels;
mod multinomial;
pub mod oracle;
mod params;
mod penalties;
mod repetition;
pub mod rng;
mod rules;
pub mod simd;
mod temperature_schedule;
#[doc(hidden)]
pub mod test_rows;

#[doc(hidden)]
pub use device::DeviceCost;
pub use device::{DeviceRow, DeviceSampler};
pub use distribution::Distribution;
pub use error::{SamplingError, TensorSamplingError};
pub use gumbel::{NoiseSource, gumbel_max, gumbel_softmax, gumbel_top_k};
#[doc(hidden)]
pub use host::one_read;
pub use host::{InspectedDraw, Row, Sampler, TextState};
pub use information::{cross_entropy, entropy, jensen_shannon, kl_divergence};
pub use multinomial::{MultinomialError, MultinomialOptions, multinomial, multinomial_row};
pub use params::{Dry, SamplingParams};
pub use rng::{RngDomain, box_muller, philox_at, philox4x32_10, philox4x32_10_batch, uniform, unit_f64, xtc_coin};
pub use temperature_schedule::Schedule;
