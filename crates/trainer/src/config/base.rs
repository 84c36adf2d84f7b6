//! What a configuration may say of a run that starts from a model.

use tinygpt_model::config::Position;
use toml::Value;

use super::{
    RunConfig, TokenizerKind,
    schema::{ConfigError, fields, lookup, to_table},
};

/// Keys of `[model]` that a run may choose, whatever model it starts from.
const FREE: &[&str] = &["model.block_size", "model.dropout"];

impl RunConfig {
    /// Refuses what contradicts the model that a run starts from, whose defaults are `base`: another network, another tokenizer,
    /// or more learned positions than it has.
    ///
    /// # Errors
    /// [`ConfigError::Range`], naming the key.
    pub fn check_base(&self, base: &Self) -> Result<(), ConfigError> {
        let refused = |key: &str, value: &dyn ToString, reason: String| {
            Err(ConfigError::Range { key: key.into(), value: value.to_string(), reason })
        };
        let (own, theirs) = (to_table(&explicit(self))?, to_table(&explicit(base))?);
        // A vocabulary of characters has no size that a configuration could say.
        let has_size = base.data.tokenizer == TokenizerKind::Bpe;
        let settled = |key: &str| match key {
            "data.tokenizer" | "data.tokenizer_path" => true,
            "data.vocab_size" => has_size,
            _ => key.starts_with("model.") && !FREE.contains(&key),
        };
        for key in fields().map(|field| field.key).filter(|key| settled(key)) {
            let (own, theirs) = (lookup(&own, key), lookup(&theirs, key));
            if let (Some(own), Some(theirs)) = (own, theirs)
                && own != theirs
            {
                let reason = match key {
                    "data.tokenizer_path" => {
                        "the model that the run starts from brings its tokenizer; leave the key out".into()
                    }
                    _ => format!("the model that the run starts from has {theirs}; leave the key out"),
                };
                return refused(key, &Value::to_string(own), reason);
            }
        }
        let (block_size, most) = (self.model.block_size, base.model.block_size);
        if self.model.position == Position::Learned && block_size > most {
            let reason =
                format!("the model that the run starts from has learned {most} positions, and no more can be had");
            return refused("model.block_size", &block_size, reason);
        }
        Ok(())
    }
}

/// The configuration with the numbers that zeros of its model stand for.
fn explicit(config: &RunConfig) -> RunConfig {
    RunConfig { model: config.model.explicit(), ..config.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load_over;

    fn base() -> RunConfig {
        let mut base = RunConfig::default();
        base.data.tokenizer = TokenizerKind::Bpe;
        base.model.n_layer = 3;
        base.model.dropout = 0.1;
        base.data.vocab_size = 300;
        base
    }

    fn refusal(text: &str) -> Option<String> {
        let config = load_over(&base(), text, &[]).unwrap();
        config.check_base(&base()).err().map(|error| error.to_string())
    }

    #[test]
    fn what_a_configuration_leaves_out_is_the_models() {
        let config = load_over(&base(), "[model]\nblock_size = 32\n[train]\nlr = 1e-4", &[]).unwrap();
        assert_eq!((config.model.n_layer, config.model.block_size, config.train.lr), (3, 32, 1e-4));
        assert_eq!((config.model.dropout, config.data.vocab_size), (0.1, 300));
        config.check_base(&base()).unwrap();
    }

    #[test]
    fn a_key_that_contradicts_the_model_is_refused_by_name() {
        let left = "; leave the key out";
        for (text, message) in [
            ("[model]\nn_layer = 4", format!("`model.n_layer` = 4: the model that the run starts from has 3{left}")),
            ("[data]\nvocab_size = 512", format!("`data.vocab_size` = 512: the model that the run starts from has 300{left}")),
            ("[model]\nblock_size = 65", "`model.block_size` = 65: the model that the run starts from has learned 64 positions, and no more can be had".into()),
        ] {
            assert_eq!(refusal(text), Some(message));
        }
        for text in ["[model]\ninit = \"he\"", "[data]\ntokenizer = \"char\"", "[model]\nmlp_hidden = 8"] {
            assert!(refusal(text).is_some(), "{text}");
        }
    }

    #[test]
    fn what_agrees_with_the_model_is_no_contradiction_and_dropout_and_fewer_positions_are_free() {
        for text in [
            "[model]\nn_layer = 3",
            "[model]\nmlp_hidden = 512\nn_kv_head = 4",
            "[model]\nblock_size = 1\ndropout = 0.0",
        ] {
            assert_eq!(refusal(text), None, "{text}");
        }
    }

    #[test]
    fn rotated_positions_may_be_more_than_the_model_had() {
        let mut base = base();
        base.model.position = Position::Rope;
        let config = load_over(&base, "[model]\nblock_size = 999", &[]).unwrap();
        config.check_base(&base).unwrap();
    }
}
