//! How good a model gets with parameters and tokens ([`ScalingLaw`]), and which size is best for a time ([`candidates`]).

mod law;
mod plan;

pub use law::{Measured, ScalingLaw};
pub use plan::{Budget, Candidate, LEAST_UPDATES, SIZES, Size, Speed, Timing, best, candidates};
