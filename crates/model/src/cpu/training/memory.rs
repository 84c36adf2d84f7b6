//! The memory that training needs, computed before anything is allocated.

use super::{buffers::BufferSpec, lowering::Lowered};
use crate::{
    GptConfig, Network, ParamSpec,
    cpu::{CpuPrecision, operand::Operand},
    network,
};

/// A lower bound of the memory that training on the CPU needs, in floats.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TrainingFloats {
    /// All parameters, once.
    pub parameters: f64,
    /// Parameters, their gradients, and two packed copies of the matrices.
    pub weights: f64,
    /// The activations and gradients of one sequence.
    pub sequence: f64,
    /// What each window of a batch needs in addition: the gradient of its embeddings, `(T, C)`.
    pub window: f64,
}

impl TrainingFloats {
    /// Computes it for a model. Every sum is linear in the number of layers, so it is extrapolated from networks of one and
    /// two layers.
    pub fn new(config: &GptConfig, precision: CpuPrecision) -> Self {
        let of = |n_layer| Self::of(&network(&GptConfig { n_layer, ..config.clone() }), precision);
        let (one, two, more) = (of(1), of(2), config.n_layer as f64 - 1.0);
        let at_depth = |get: fn(&Self) -> f64| get(&one) + more * (get(&two) - get(&one));
        Self {
            parameters: at_depth(|of| of.parameters),
            weights: at_depth(|of| of.weights),
            sequence: at_depth(|of| of.sequence),
            window: at_depth(|of| of.window),
        }
    }

    /// Computes it for a network.
    pub(crate) fn of(net: &Network, precision: CpuPrecision) -> Self {
        let (t, lowered) = (net.config().block_size, Lowered::new(net));
        let parameters: usize = net.params().iter().map(ParamSpec::len).sum();
        let matrices: usize = net.matmul_params().map(|param| net.params()[param.0].len()).sum();
        let packed = if precision == CpuPrecision::Bf16 { matrices } else { 2 * matrices };
        let buffer = |spec: &BufferSpec| Operand::floats(precision, t, spec.cols, spec.storage);
        let buffers: usize = lowered.values.iter().chain(&lowered.grads).map(buffer).sum();
        let kept: usize = net.ops.iter().map(|op| op.get().kept_floats(net, t)).sum();
        Self {
            parameters: parameters as f64,
            weights: (2 * parameters + packed) as f64,
            sequence: (buffers + kept) as f64,
            window: (t * net.cols(lowered.embedded)) as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deep_network_needs_what_two_shallow_ones_say() {
        for precision in [CpuPrecision::F32, CpuPrecision::Bf16] {
            for (n_layer, bias, dropout) in [(1, false, 0.0), (3, true, 0.1), (5, false, 0.2)] {
                let config = GptConfig {
                    vocab_size: 65,
                    block_size: 17,
                    n_layer,
                    n_head: 2,
                    n_embd: 20,
                    dropout,
                    bias,
                    mlp: crate::Mlp::Gelu,
                    ..GptConfig::default()
                };
                assert_eq!(
                    TrainingFloats::new(&config, precision),
                    TrainingFloats::of(&network(&config), precision),
                    "{n_layer} layers"
                );
            }
        }
    }
}
