//! The network on the CPU, forward and backward written by hand over slices: no graph, and no buffer that is not kept
//! from one batch to the next.
//!
//! `training/` and `decode/` execute the network; the operations' own code is in `ops/`. Here is what both are written in:
//! rows of floats, matrix products, threads. All of it is written once for all processors, over sixteen lanes
//! ([`tinygpt_sampler::simd`]), and gives the same bits whatever vector instructions it uses.

mod bf16;
pub mod decode;
pub(crate) mod matmul;
pub(crate) mod operand;
pub(crate) mod packed;
mod precision;
pub(crate) mod rows;
pub(crate) mod spin_pool;
pub mod training;
pub(crate) mod vectors;

pub use decode::{CpuDecoder, WeightFormat};
pub use precision::CpuPrecision;
pub use training::{BatchRef, CpuGpt, ParamLayout, RowDropout, TrainingFloats};
