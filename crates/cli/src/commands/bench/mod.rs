//! `tinygpt bench`: one module a thing to measure.

pub mod sampling;
