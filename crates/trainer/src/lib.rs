//! Training for tinygpt: from text to tokens to batches to a loss to a checkpoint.
//!
//! Read it in this order: [`config`] (what a run is), [`corpus`], [`token_cache`] and [`data`] (text to batches), [`engine`]
//! (loss, gradients, AdamW, Muon), [`Fit`] (training in memory), [`schedule`], [`mod@train`] (the loop), [`evaluate`] and [`sliding`] (losses), [`score`]
//! and [`mod@compare`] (what else is measured), [`run`] (starting, resuming, and the folder a run leaves). [`stories`] is the
//! built-in corpus, whose entropy is known, [`scaling`] says what a size is expected to reach, [`ngram`] trains what a network is
//! compared with, [`sweep`] trains a grid of runs, [`lab`] compares sampling strategies, [`chart`] draws, and [`tensorboard`] follows
//! a run for TensorBoard.
//!
//! ```
//! use std::sync::atomic::AtomicBool;
//!
//! use tinygpt_trainer::{GptConfig, Run, RunConfig, config::{DataConfig, TrainConfig}, run::StartOptions};
//!
//! let config = RunConfig {
//!     data: DataConfig { stories_bytes: 20_000, ..DataConfig::default() },
//!     model: GptConfig { n_layer: 1, n_head: 1, n_embd: 8, ..GptConfig::default() },
//!     train: TrainConfig { max_steps: 4, ..TrainConfig::default() },
//!     ..RunConfig::default()
//! };
//! # let folder = tempfile::tempdir()?;
//! # let out = folder.path().join("run");
//! let run = Run::start(config, StartOptions { out: Some(out), ..StartOptions::default() })?;
//! let mut events = 0;
//! let outcome = run.train(&AtomicBool::new(false), &mut |_event| {
//!     events += 1;
//!     Ok(())
//! })?;
//! let report = outcome.report.expect("it was not interrupted");
//! assert!(report.floor.is_some_and(|floor| floor < report.loss));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod cache;
pub mod calibration;
pub mod chart;
pub mod compare;
pub mod config;
pub mod corpus;
pub mod data;
pub mod digest;
pub mod engine;
mod error;
pub mod evaluate;
pub mod fetch;
mod fit;
pub mod hub;
pub mod inspect;
pub mod json_lines;
pub mod lab;
pub mod memory;
pub mod metrics;
pub mod ngram;
pub mod preparation;
pub mod run;
pub mod samples;
pub mod scaling;
pub mod schedule;
pub mod score;
pub mod sliding;
pub mod statistics;
pub mod stories;
pub mod sweep;
pub mod tensorboard;
#[cfg(test)]
mod test_models;
pub mod token_cache;
pub mod token_files;
pub mod train;

pub use config::RunConfig;
pub use data::Dataset;
pub use error::{Result, TrainError};
pub use fit::Fit;
pub use run::{Run, RunDir};
/// The shape of a model: the section `[model]` of a configuration.
pub use tinygpt_model::GptConfig;
