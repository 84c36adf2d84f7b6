//! The tests of the model's public interface, one module a file. They are one binary, since each would link candle;
//! `cargo test -p tinygpt-model --test main cache::` runs a file's.
#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

mod attention_maps;
mod batch_decode;
mod cache;
mod checkpoint;
mod damaged_folders;
mod elsewhere;
mod formats;
mod generation;
mod gguf;
mod gradients;
mod inspection;
mod operations;
mod processors;
mod rounded_files;
mod rows;
mod training_launches;
mod training_ops;
