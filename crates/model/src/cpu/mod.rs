//! The network on the CPU, forward and backward written by hand over slices: no autograd graph, and all buffers are reused
//! from one batch to the next.
//!
//! `training/` and `decode/` execute the network; the operations' own code is in `ops/`. This folder has what they are
//! written with: padded matrices, matrix products, a spin pool. Kernels are written once for all processors, over sixteen
//! lanes ([`tinygpt_sampler::simd`]), and give the same bits with any vector instructions.

pub(crate) mod bf16;
pub mod decode;
pub(crate) mod matmul;
pub(crate) mod operand;
mod orthogonal;
pub(crate) mod packed;
mod precision;
mod prefetch;
pub(crate) mod rows;
pub(crate) mod spin_pool;
pub mod training;
pub(crate) mod vectors;

pub use decode::{CpuBatchDecoder, CpuDecoder, DecodeFormats, KvCacheFormat, WeightFormat};
pub use orthogonal::{Orthogonalizer, POLAR_EXPRESS};
pub use precision::CpuPrecision;
pub use training::{BatchRef, CpuGpt, CpuReference, ParamLayout, RowDropout, TrainingFloats};
