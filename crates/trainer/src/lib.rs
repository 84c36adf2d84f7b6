//! Training for tinygpt: from text to tokens to batches to a loss to a checkpoint.
//!
//! Read it in this order: [`config`] (what a run is), [`corpus`], [`token_cache`] and [`data`] (text to batches),
//! [`engine`] (loss, gradients, AdamW), [`schedule`], [`mod@train`] (the loop), [`evaluate`], [`run`] (starting, resuming,
//! and the folder a run leaves). [`stories`] is the built-in corpus, whose entropy is known.

pub mod config;
pub mod corpus;
pub mod data;
pub mod digest;
pub mod engine;
mod error;
pub mod evaluate;
pub mod fetch;
pub mod memory;
pub mod metrics;
mod plot;
pub mod run;
pub mod schedule;
pub mod stories;
pub mod token_cache;
pub mod train;

pub use config::RunConfig;
pub use data::Dataset;
pub use error::{Result, TrainError};
pub use run::{Run, RunDir};
