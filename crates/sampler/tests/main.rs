//! The tests of the sampler's public interface, one module a file. They are one binary, since each would link candle;
//! `cargo test -p tinygpt-sampler --test main law::` runs a file's.

mod gumbel;
mod inspection;
mod invariance;
mod judges;
mod law;
mod multinomial;
mod poison;
