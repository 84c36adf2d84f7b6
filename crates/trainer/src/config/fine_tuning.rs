//! A configuration for a model that learns from another text: `configs/finetune-gpt2.toml`, scaled to the size of the model.

use super::{RunConfig, TextSize, TokenizerKind, load_over, recipe};
use crate::Result;

/// The recipe that is scaled, and the channels of the model that it was made for.
const RECIPE: &str = "finetune-gpt2";
const RECIPE_CHANNELS: f64 = 768.0;
/// Rates rise as models get narrower, up to this one: a trained model forgets at rates that random weights take.
const LARGEST_RATE: f64 = 1e-3;
/// The tokens of a batch, of which an update may have several: they decide how much memory it takes.
const BATCH_TOKENS: usize = 1024;
/// The least updates, however short the text: fewer would hardly change a model.
const LEAST_UPDATES: u64 = 20;

/// What a run of a model of some size is.
struct Extent {
    /// Batches of an update.
    grad_accum: usize,
    /// Passes over the text.
    passes: f64,
    /// Updates at most, however long the text.
    most_updates: u64,
    /// Evaluations behind the one before the first update.
    evaluations: u64,
}

impl Extent {
    /// The larger a model, the sooner it has learned a text by heart, the longer an update takes, and the more its gradient is worth.
    fn of(parameters: usize) -> Self {
        match parameters {
            0..5_000_000 => Self { grad_accum: 1, passes: 3.0, most_updates: 2000, evaluations: 8 },
            5_000_000..50_000_000 => Self { grad_accum: 2, passes: 1.5, most_updates: 500, evaluations: 5 },
            _ => Self { grad_accum: 4, passes: 0.75, most_updates: 60, evaluations: 3 },
        }
    }
}

impl TextSize {
    /// A configuration for a run on a text of this size that starts from a model. `base` are the defaults of such a run, as
    /// [`InitialModel::defaults`](crate::run::InitialModel::defaults) gives them. The warm-up and the evaluations are those of
    /// `max_steps` updates, where that is given, and else of as many as suit the text.
    ///
    /// # Errors
    /// When the configuration that comes of it is invalid: with a valid model, where `max_steps` is 0.
    pub fn fine_tuning_recipe(self, base: &RunConfig, max_steps: Option<u64>) -> Result<RunConfig> {
        let mut config = load_over(base, recipe(RECIPE).unwrap_or_default(), &[])?;
        let Extent { grad_accum, passes, most_updates, evaluations } = Extent::of(base.model.n_params());
        let val_fraction = self.held_out_fraction();
        let tokens = (1.0 - val_fraction) * self.tokens_for(config.data.tokenizer == TokenizerKind::Bpe);
        config.data.val_fraction = val_fraction;
        config.model.block_size = config.model.block_size.min(base.model.block_size);
        let train = &mut config.train;
        train.batch_size = (BATCH_TOKENS / config.model.block_size).max(1);
        train.grad_accum = grad_accum;
        let rates = (RECIPE_CHANNELS / base.model.n_embd as f64).min(LARGEST_RATE / train.lr);
        train.lr *= rates;
        train.min_lr *= rates;
        let per_update = train.batch_size * grad_accum * config.model.block_size;
        let suitable = ((passes * tokens / per_update as f64) as u64).clamp(LEAST_UPDATES, most_updates);
        train.max_steps = max_steps.unwrap_or(suitable);
        train.warmup_steps = train.max_steps / 12;
        train.eval_every = train.max_steps.div_ceil(evaluations);
        Ok(config.resolved()?)
    }
}

#[cfg(test)]
mod tests {
    use tinygpt_model::GptConfig;

    use super::*;
    use crate::config::load;

    fn base(n_layer: usize, n_embd: usize, block_size: usize) -> RunConfig {
        let model = GptConfig { n_layer, n_head: 4, n_embd, block_size, vocab_size: 50_257, ..GptConfig::default() };
        let mut base = RunConfig { model, ..RunConfig::default() };
        (base.data.tokenizer, base.data.vocab_size) = (TokenizerKind::Bpe, 50_257);
        base
    }

    fn text(bytes: u64) -> TextSize {
        TextSize { bytes, characters: None, tokens: None }
    }

    #[test]
    fn gpt_2_and_the_text_of_the_recipe_give_the_recipe() {
        let config = text(1_115_394).fine_tuning_recipe(&base(12, 768, 1024), None).unwrap();
        let recipe = load(recipe(RECIPE).unwrap(), &[], false).unwrap();
        assert_eq!(config.train, recipe.train);
        assert_eq!((config.model.block_size, config.model.dropout), (256, recipe.model.dropout));
        assert_eq!(config.lora, recipe.lora);
    }

    #[test]
    fn wider_models_learn_at_lower_rates_and_larger_ones_for_fewer_passes() {
        let (mut last, mut passes_before) = (1.0, f64::INFINITY);
        for (n_layer, n_embd) in [(2, 32), (4, 64), (6, 256), (12, 768), (24, 2048)] {
            let config = text(1_000_000).fine_tuning_recipe(&base(n_layer, n_embd, 256), None).unwrap();
            let passes = (config.train.max_steps as usize * config.tokens_per_step()) as f64 / 3e5;
            assert!(config.train.lr <= last && passes <= passes_before, "{n_embd}: {passes}");
            assert!(config.train.min_lr < config.train.lr && config.train.lr <= LARGEST_RATE);
            (last, passes_before) = (config.train.lr, passes);
        }
    }

    #[test]
    fn a_short_context_has_more_rows_and_a_short_text_the_least_updates() {
        let config = text(3000).fine_tuning_recipe(&base(1, 16, 16), None).unwrap();
        assert_eq!((config.model.block_size, config.train.batch_size), (16, 64));
        assert_eq!((config.train.max_steps, config.train.warmup_steps), (LEAST_UPDATES, 1));
    }

    #[test]
    fn tokens_are_counted_as_they_are_whatever_the_tokenizer_of_the_model() {
        let mut base = base(1, 16, 16);
        let tokens = TextSize { bytes: 3 * 100_000, characters: None, tokens: Some(100_000) };
        let by_pieces = tokens.fine_tuning_recipe(&base, None).unwrap();
        (base.data.tokenizer, base.data.vocab_size) = (TokenizerKind::Char, 0);
        let by_characters = tokens.fine_tuning_recipe(&base, None).unwrap();
        assert_eq!(by_characters.train, by_pieces.train);
        // Three passes over nine tenths.
        assert_eq!(by_characters.train.max_steps, 3 * 90_000 / 1024);
    }

    #[test]
    fn warm_up_and_evaluations_are_those_of_the_updates_that_are_asked_for() {
        let config = text(10_000_000).fine_tuning_recipe(&base(1, 16, 16), Some(100)).unwrap();
        let train = &config.train;
        assert_eq!((train.max_steps, train.warmup_steps, train.eval_every), (100, 8, 13));
    }
}
