//! The parts of a network that people count its parameters by, and the memory that generating takes.

use serde::Serialize;

use crate::{
    GptConfig, ParamSpec,
    cpu::WeightFormat,
    network,
    plan::{ParamId, Role},
};

/// The part of the network that a parameter belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Component {
    /// The token embedding, which is the matrix of a tied head too.
    Embedding,
    /// The learned positions.
    Positions,
    /// The linear layers of attention.
    Attention,
    /// The linear layers of the MLPs.
    Mlp,
    /// All norms, those of queries and keys included.
    Norms,
    /// The matrix of an untied head.
    Head,
}

impl Component {
    /// All of them, in the order of the network.
    pub const ALL: [Self; 6] = [Self::Embedding, Self::Positions, Self::Attention, Self::Mlp, Self::Norms, Self::Head];

    /// The part that a parameter belongs to.
    pub fn of(param: &ParamSpec) -> Self {
        // The module's name, without `.weight` or `.bias`.
        let module = param.name.rsplit_once('.').map_or("", |(module, _)| module);
        match param.role {
            Role::Embedding => Self::Embedding,
            Role::Position => Self::Positions,
            Role::Head => Self::Head,
            Role::Norm => Self::Norms,
            Role::Matrix | Role::Bias if module.contains(".attn.") => Self::Attention,
            Role::Matrix | Role::Bias if module.contains(".mlp.") => Self::Mlp,
            Role::Matrix | Role::Bias => Self::Norms,
        }
    }

    /// The number of parameters of each part of a network, in the order of [`Component::ALL`].
    pub fn parameters(config: &GptConfig) -> [(Self, usize); 6] {
        let params = crate::param_specs(config);
        let of = |part: Self| params.iter().filter(|param| Self::of(param) == part).map(ParamSpec::len).sum();
        Self::ALL.map(|part| (part, of(part)))
    }
}

/// The memory that generating on the CPU takes, in bytes; not counted are buffers that depend on the prompt alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct GenerationMemory {
    /// The weights: in f32 they are mapped from the file; in other formats the matrices are copied, and the rest is mapped.
    pub weights: usize,
    /// The key-value caches of one sequence of `block_size` tokens, in f32; half of it in bf16.
    pub cache_per_sequence: usize,
}

impl GenerationMemory {
    /// The memory of a model in a format.
    pub fn new(config: &GptConfig, format: WeightFormat) -> Self {
        const F32: usize = size_of::<f32>();
        let net = network(config);
        let all: usize = net.params().iter().map(ParamSpec::len).sum();
        let weights = match format {
            WeightFormat::F32 => F32 * all,
            WeightFormat::Bf16 | WeightFormat::Int8 | WeightFormat::Int4 => {
                // A tied head's matrix is copied as well, since the embedding is still read in f32, by its rows.
                let copied: usize = net.matmul_params().map(|ParamId(at)| net.params()[at].len()).sum();
                let linear: usize =
                    net.params().iter().filter(|param| param.role == Role::Matrix).map(ParamSpec::len).sum();
                let head: usize =
                    net.params().iter().filter(|param| param.role == Role::Head).map(ParamSpec::len).sum();
                F32 * (all - linear - head) + format.bytes_of(copied)
            }
        };
        let [_, kv, _] = config.heads().qkv();
        Self { weights, cache_per_sequence: 2 * F32 * config.n_layer * config.block_size * kv }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Mlp, Norm, Position};

    #[test]
    fn every_parameter_belongs_to_one_part_and_the_parts_are_those_of_the_shape() {
        let gpt2 =
            GptConfig { vocab_size: 100, block_size: 16, n_layer: 2, n_head: 2, n_embd: 8, ..GptConfig::default() };
        let numbers = |config: &GptConfig| Component::parameters(config).map(|(_, n)| n);
        // Attention has matrices (8, 24) and (8, 8), an MLP (8, 32) and (32, 8); five norms of 8.
        assert_eq!(numbers(&gpt2), [800, 128, 2 * (192 + 64), 2 * 512, 5 * 8, 0]);
        let biased = GptConfig { bias: true, ..gpt2.clone() };
        assert_eq!(numbers(&biased), [800, 128, 2 * (192 + 64 + 32), 2 * (512 + 40), 2 * 5 * 8, 0]);
        let qwen3 = GptConfig {
            norm: Norm::Rms,
            position: Position::Rope,
            mlp: Mlp::Swiglu,
            mlp_hidden: 24,
            n_kv_head: 1,
            qk_norm: true,
            tie_embeddings: false,
            ..gpt2
        };
        // Queries 8, keys 4 and values 4 wide; in each of two layers norms of queries and of keys, of 4.
        assert_eq!(numbers(&qwen3), [800, 0, 2 * (8 * 16 + 64), 2 * 3 * 8 * 24, 5 * 8 + 2 * 2 * 4, 800]);
        assert_eq!(numbers(&qwen3).iter().sum::<usize>(), qwen3.n_params());
    }

    #[test]
    fn smaller_formats_take_less_and_the_cache_is_of_heads_of_keys_and_values() {
        let config = GptConfig { vocab_size: 100, n_kv_head: 2, ..GptConfig::default() };
        let [f32, bf16, int8, int4] = [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Int8, WeightFormat::Int4]
            .map(|format| GenerationMemory::new(&config, format));
        assert_eq!(f32.weights, 4 * config.n_params());
        assert!(f32.weights > bf16.weights && bf16.weights > int8.weights && int8.weights > int4.weights);
        // Keys and values of 2 heads of 32, in 4 layers, 64 positions and 4 bytes.
        assert_eq!(f32.cache_per_sequence, 2 * 4 * 4 * 64 * 64);
    }
}
