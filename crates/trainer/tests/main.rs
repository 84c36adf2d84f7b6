//! The tests of the trainer's public interface, one module a file. They are one binary, since each would link candle;
//! `cargo test -p tinygpt-trainer --test main reference::` runs a file's.
#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

mod cpu_engine;
mod engine;
mod interrupted;
mod launches;
mod mixed_precision;
mod reference;
mod unread;
