//! One file a command.

pub mod config;
pub mod data;
pub mod eval;
pub mod generate;
pub mod train;
