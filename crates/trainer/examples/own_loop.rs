//! A training loop of one's own over the engine: `cargo run --release -p tinygpt-trainer --example own_loop`.
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::{env, error::Error};

use tinygpt_model::{Device, GptConfig, Precision, init_params};
use tinygpt_trainer::{
    Dataset, RunConfig,
    config::DataConfig,
    engine::{self, AdamW, EngineState},
    evaluate::estimate,
};

const SEED: u64 = 1;
const STEPS: u64 = 200;
const ROWS: usize = 16;

fn main() -> Result<(), Box<dyn Error>> {
    let config = RunConfig::default();
    let corpus = DataConfig { stories_bytes: 200_000, ..config.data };
    let data = Dataset::load(&corpus, SEED, None, &env::temp_dir())?;
    let vocab_size = data.tokenizer.vocab_size();
    let gpt = GptConfig { vocab_size, n_layer: 2, n_head: 2, n_embd: 64, ..GptConfig::default() };
    let weights = EngineState::fresh(init_params(&gpt, SEED));
    let adamw = AdamW::from(&config.train);
    let mut engine = engine::open(&gpt, Precision::F32, adamw, SEED, &weights, &Device::Cpu)?;
    for step in 0..STEPS {
        let batch = data.train.random_batch(ROWS, gpt.block_size, SEED, step)?;
        let loss = engine.forward_backward(&batch, step)?;
        let lr = 2e-3 * (1.0 - step as f64 / STEPS as f64); // down to zero in a straight line
        let norm = engine.optimizer_step(lr, 1.0)?;
        if (step + 1) % 50 == 0 {
            let val = estimate(engine.as_mut(), &data.val, ROWS, 8 * ROWS, &mut |_, _| Ok(()))?.loss;
            println!("step {}: loss {:.3}, norm {:.3}, validation {val:.3}", step + 1, loss.read()?, norm.read()?);
        }
    }
    Ok(())
}
