//! Trains on a string and continues it, in memory: `cargo run --release -p tinygpt-trainer --example from_string`.
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use tinygpt_model::SamplingParams;
use tinygpt_trainer::{Dataset, Fit, GptConfig, RunConfig};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut config =
        RunConfig { model: GptConfig { n_layer: 2, n_embd: 64, ..GptConfig::default() }, ..RunConfig::default() };
    (config.train.max_steps, config.train.lr) = (100, 3e-3);
    let data = Dataset::from_text(&"The sun is up and the sky is blue. ".repeat(100), &config.data)?;
    let mut fit = Fit::new(config, &data)?;
    while fit.update()?.is_some() {}
    println!("validation loss {:.3} nats a token", fit.val_loss()?);
    println!("The sun{}", fit.checkpoint()?.complete("The sun", 60, SamplingParams { seed: 1, ..Default::default() })?);
    Ok(())
}
