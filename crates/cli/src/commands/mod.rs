//! One file a command.

pub mod baseline;
pub mod bench;
pub mod cache;
pub mod chat;
pub mod compare;
pub mod config;
pub mod data;
pub mod devices;
pub mod eval;
pub mod export;
pub mod generate;
pub mod info;
pub mod lab;
pub mod log;
pub mod plan;
pub mod report;
pub mod runs;
pub mod sample;
pub mod score;
pub mod selftest;
#[cfg(feature = "serve")]
pub mod serve;
pub mod shell;
pub mod sweep;
pub mod train;
