//! Which architecture of Hugging Face a network is, and what stands in the way where it is none.

use std::fmt;

use super::{GptConfig, Mlp, Norm, Position};

/// An architecture of `transformers` that a network here can be: a model of it opens there as it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// GPT-2 (Radford et al., 2019, "Language Models are Unsupervised Multitask Learners").
    Gpt2,
    /// Qwen3 (Yang et al., 2025, "Qwen3 Technical Report"): Llama's, with an RMSNorm of each head's queries and keys.
    Qwen3,
    /// Llama (Touvron et al., 2023, "LLaMA: Open and Efficient Foundation Language Models").
    Llama,
}

impl Architecture {
    /// The class of `transformers`, which `config.json` names.
    pub fn class(self) -> &'static str {
        match self {
            Self::Gpt2 => "GPT2LMHeadModel",
            Self::Qwen3 => "Qwen3ForCausalLM",
            Self::Llama => "LlamaForCausalLM",
        }
    }

    /// The `model_type` of `config.json`; it is the architecture's name in GGUF too.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Gpt2 => "gpt2",
            Self::Qwen3 => "qwen3",
            Self::Llama => "llama",
        }
    }
}

/// A key of `[model]` with a value that an architecture does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obstacle {
    /// The key, with its section: `model.norm`.
    pub key: &'static str,
    /// Its value, as a configuration writes it.
    pub value: String,
    /// What it would have to be.
    pub needs: &'static str,
}

/// Why a network is of no architecture of Hugging Face, and so opens here alone: the keys that keep it from the one that
/// it is closest to. It reads `Qwen3ForCausalLM needs model.norm = "rms", which is "layer"`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Blame {
    /// The architecture with the fewest obstacles.
    pub closest: Architecture,
    /// The keys that stand in the way, at least one.
    pub obstacles: Vec<Obstacle>,
}

impl fmt::Display for Blame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} needs ", self.closest.class())?;
        for (at, Obstacle { key, value, needs }) in self.obstacles.iter().enumerate() {
            let separator = if at > 0 { ", and " } else { "" };
            write!(f, "{separator}{key} = {needs}, which is {value}")?;
        }
        Ok(())
    }
}

impl GptConfig {
    /// The architecture of Hugging Face that this network is. Initial values do not matter, and dropout is of training alone.
    ///
    /// # Errors
    /// [`Blame`], where it is none.
    pub fn architecture(&self) -> Result<Architecture, Blame> {
        let gpt2 = blame(Architecture::Gpt2, self.obstacles_to_gpt2());
        match (gpt2, self.llama_or_qwen3()) {
            (Err(gpt2), Err(llama)) if gpt2.obstacles.len() < llama.obstacles.len() => Err(gpt2),
            (Err(_), llama) => llama,
            (gpt2, _) => gpt2,
        }
    }

    /// Which of Llama and Qwen3 this network is.
    ///
    /// # Errors
    /// [`Blame`], where it is neither.
    pub fn llama_or_qwen3(&self) -> Result<Architecture, Blame> {
        // They differ by this key alone, so that it stands in the way of neither.
        blame(if self.qk_norm { Architecture::Qwen3 } else { Architecture::Llama }, self.obstacles_to_llama())
    }

    /// Whether this is a GPT-2.
    pub fn is_gpt2(&self) -> bool {
        self.architecture() == Ok(Architecture::Gpt2)
    }

    fn obstacles_to_gpt2(&self) -> Vec<Obstacle> {
        obstacles([
            (self.norm == Norm::Layer, "model.norm", quoted(self.norm.name()), "\"layer\""),
            (self.position == Position::Learned, "model.position", quoted(self.position.name()), "\"learned\""),
            (
                matches!(self.mlp, Mlp::Gelu | Mlp::GeluNew),
                "model.mlp",
                quoted(self.mlp.name()),
                "\"gelu\" or \"gelu_new\"",
            ),
            (self.kv_heads() == self.n_head, "model.n_kv_head", self.n_kv_head.to_string(), "0 (n_head)"),
            (
                [0, self.n_embd].contains(&self.head_size.saturating_mul(self.n_head)),
                "model.head_size",
                self.head_size.to_string(),
                "0 (n_embd / n_head)",
            ),
            (!self.qk_norm, "model.qk_norm", self.qk_norm.to_string(), "false"),
            (self.logit_cap == 0.0, "model.logit_cap", self.logit_cap.to_string(), "0"),
        ])
    }

    /// What keeps the network from being a Qwen3 or, without `qk_norm`, a Llama.
    fn obstacles_to_llama(&self) -> Vec<Obstacle> {
        obstacles([
            (self.norm == Norm::Rms, "model.norm", quoted(self.norm.name()), "\"rms\""),
            (self.position == Position::Rope, "model.position", quoted(self.position.name()), "\"rope\""),
            (self.mlp == Mlp::Swiglu, "model.mlp", quoted(self.mlp.name()), "\"swiglu\""),
            (!self.bias, "model.bias", self.bias.to_string(), "false"),
            (self.logit_cap == 0.0, "model.logit_cap", self.logit_cap.to_string(), "0"),
        ])
    }
}

/// Of keys, each with whether it is as it has to be, its value and what is needed: those that are not.
fn obstacles<const N: usize>(keys: [(bool, &'static str, String, &'static str); N]) -> Vec<Obstacle> {
    let wrong = keys.into_iter().filter(|(good, ..)| !good);
    wrong.map(|(_, key, value, needs)| Obstacle { key, value, needs }).collect()
}

fn blame(closest: Architecture, obstacles: Vec<Obstacle>) -> Result<Architecture, Blame> {
    if obstacles.is_empty() { Ok(closest) } else { Err(Blame { closest, obstacles }) }
}

fn quoted(name: &str) -> String {
    format!("\"{name}\"")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{InitScheme, RopeScaling};

    fn llama() -> GptConfig {
        GptConfig { norm: Norm::Rms, position: Position::Rope, mlp: Mlp::Swiglu, ..GptConfig::default() }
    }

    #[test]
    fn what_does_not_change_the_network_of_an_architecture_leaves_it_one() {
        let gpt2 = GptConfig::default();
        for config in [
            GptConfig { bias: true, norm_eps: 1e-6, head_size: 32, ..gpt2.clone() },
            GptConfig { mlp: Mlp::GeluNew, dropout: 0.2, rope_theta: 5.0, ..gpt2.clone() },
            GptConfig { mlp_hidden: 7, tie_embeddings: false, ..gpt2.clone() },
            GptConfig { mlp_hidden: 4 * gpt2.n_embd, n_kv_head: gpt2.n_head, init: InitScheme::FanIn, ..gpt2 },
        ] {
            assert_eq!(config.architecture(), Ok(Architecture::Gpt2), "{config:?}");
        }
        for (qk_norm, expected) in [(true, Architecture::Qwen3), (false, Architecture::Llama)] {
            let config = GptConfig { qk_norm, ..llama() };
            for config in [
                GptConfig { tie_embeddings: false, dropout: 0.1, ..config.clone() },
                GptConfig { head_size: 6, norm_eps: 1e-5, ..config.clone() },
                GptConfig { rope_scaling: RopeScaling::Linear, rope_factor: 2.0, ..config.clone() },
                GptConfig { n_kv_head: 1, mlp_hidden: 5, rope_theta: 1e6, init: InitScheme::FanIn, ..config },
            ] {
                assert_eq!(config.architecture(), Ok(expected), "{config:?}");
            }
        }
    }

    #[test]
    fn the_keys_that_stand_in_the_way_of_the_closest_architecture_are_named() {
        let message = |config: GptConfig| config.architecture().unwrap_err().to_string();
        assert_eq!(
            message(GptConfig { norm: Norm::Rms, ..GptConfig::default() }),
            "GPT2LMHeadModel needs model.norm = \"layer\", which is \"rms\""
        );
        assert_eq!(
            message(GptConfig { norm: Norm::Layer, qk_norm: true, ..llama() }),
            "Qwen3ForCausalLM needs model.norm = \"rms\", which is \"layer\""
        );
        assert_eq!(
            message(GptConfig { bias: true, logit_cap: 15.0, ..llama() }),
            "LlamaForCausalLM needs model.bias = false, which is true, and model.logit_cap = 0, which is 15"
        );
        for (config, key) in [
            (GptConfig { mlp: Mlp::Relu2, ..GptConfig::default() }, "model.mlp"),
            (GptConfig { n_kv_head: 2, ..GptConfig::default() }, "model.n_kv_head"),
            (GptConfig { head_size: 8, ..GptConfig::default() }, "model.head_size"),
            (GptConfig { qk_norm: true, ..GptConfig::default() }, "model.qk_norm"),
            (GptConfig { position: Position::Rope, ..GptConfig::default() }, "model.position"),
            (GptConfig { position: Position::Learned, ..llama() }, "model.position"),
            (GptConfig { mlp: Mlp::Gelu, ..llama() }, "model.mlp"),
        ] {
            let keys: Vec<_> = config.architecture().unwrap_err().obstacles.iter().map(|o| o.key).collect();
            assert_eq!(keys, [key]);
        }
    }
}
