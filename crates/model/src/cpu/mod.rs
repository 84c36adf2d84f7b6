//! The model on the CPU, forward and backward written by hand over slices: no graph, and no buffer that is
//! not kept from one batch to the next.
//!
//! `sequence.rs` takes one sequence through the network and back, `gpt.rs` a batch.
//! Under them one file for each operation, forward and backward side by side. Every operation is written once for all
//! processors, over sixteen lanes ([`tinygpt_sampler::simd`]), and gives the same bits whatever vector instructions it uses.

mod attention;
mod bf16;
pub mod decode;
mod dropout;
mod embedding;
mod gelu;
mod gpt;
mod head;
mod layer_norm;
mod layout;
mod matmul;
mod operand;
mod packed;
mod rows;
mod sequence;
mod spin_pool;
mod vectors;
mod weights;

pub use decode::{CpuDecoder, WeightFormat};
pub use gpt::{BatchRef, CpuGpt};
pub use layout::Layout;
pub use sequence::RowDropout;
