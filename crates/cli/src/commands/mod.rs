//! One file a command.

pub mod bench;
pub mod config;
pub mod data;
pub mod devices;
pub mod eval;
pub mod generate;
pub mod sample;
pub mod selftest;
pub mod train;

/// Where runs go, and where they are looked for.
pub const RUNS: &str = "runs";
