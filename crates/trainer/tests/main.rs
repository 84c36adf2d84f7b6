//! The tests of the trainer's public interface, one module a file. They are one binary, since each would link candle;
//! `cargo test -p tinygpt-trainer --test main reference::` runs a file's.
#![allow(clippy::unwrap_used, reason = "test code")]

mod common;
#[path = "../../../tests/common/recorded.rs"]
mod recorded;

mod cpu_engine;
mod engine;
mod fit;
mod golden;
mod interrupted;
mod launches;
mod lora;
mod mixed_precision;
mod muon;
mod ngram;
mod objective;
mod optimizers;
mod reference;
mod run;
mod samples;
mod sliding;
mod unread;
