//! One file a command.

pub mod bench;
pub mod compare;
pub mod config;
pub mod data;
pub mod devices;
pub mod eval;
pub mod export;
pub mod generate;
pub mod info;
pub mod plan;
pub mod sample;
pub mod score;
pub mod selftest;
pub mod train;
