//! The head: the logits `x w^T` of the next token at each position, and in training their cross-entropy. Logits may be capped,
//! as `cap * tanh(logits / cap)` (Bello et al., 2016, "Neural Combinatorial Optimization with Reinforcement Learning"; here as
//! in Gemma 2).
//!
//! `tensors.rs` computes it on candle tensors, `training.rs` in CPU training, both in chunks of a batch's logits; `divergence.rs`
//! is the distance from another model's distributions, which `training.rs` has as a part of its gradient. In decoding
//! it is a product with `w (V, C)` (`logits.rs` on candle tensors, `cpu/decode/`).

mod cap;
mod divergence;
mod logits;
mod tensors;
pub(crate) mod training;

use crate::plan::{Init, Network, NetworkBuilder, ParamId, Role, Value};

pub(crate) use cap::LogitCap;
pub(crate) use divergence::{HeadInput, head_divergence};
pub(crate) use logits::logits_by_row;
pub(crate) use tensors::capped_head_loss;
pub use tensors::{LOGIT_BYTES, cross_entropy, head_loss};

/// The head of a network.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    /// The hidden states, `(T, C)`.
    pub(crate) x: Value,
    /// `(V, C)`.
    pub(crate) weight: ParamId,
    /// What logits are capped at.
    pub(crate) cap: Option<LogitCap>,
}

impl NetworkBuilder {
    /// Adds the matrix `(vocab_size, n_embd)` of a head that is not tied to the token embedding.
    pub fn head_matrix(&mut self, module: &str, vocab_size: usize, n_embd: usize, std: f64) -> ParamId {
        self.param(format!("{module}.weight"), &[vocab_size, n_embd], Role::Head, Init::Normal(std))
    }

    /// Ends the network with logits `x w^T`, `(T, V)`, for a matrix `(V, C)`.
    pub fn head(self, x: Value, weight: ParamId) -> Network {
        let Self { config, params, ops, param_ends, cols } = self;
        let cap = (config.logit_cap > 0.0).then_some(LogitCap(config.logit_cap));
        Network { config, params, ops, param_ends, head: Head { x, weight, cap }, cols }
    }
}

impl Head {
    /// The multiply-adds of the logits of `t` positions.
    pub(crate) fn multiply_adds(&self, net: &Network, t: usize) -> f64 {
        net.params[self.weight.0].len() as f64 * t as f64
    }
}
