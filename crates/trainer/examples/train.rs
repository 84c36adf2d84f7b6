//! Trains a very small model on the built-in stories: `cargo run --release -p tinygpt-trainer --example train [FOLDER]`.
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::{env, error::Error, sync::atomic::AtomicBool};

use tinygpt_trainer::{
    GptConfig, Run, RunConfig,
    run::{IfExists, StartOptions},
    train::Event,
};

fn main() -> Result<(), Box<dyn Error>> {
    let (out, if_exists) = match env::args_os().nth(1) {
        Some(folder) => (folder.into(), IfExists::Refuse),
        None => (env::temp_dir().join("tinygpt-example"), IfExists::Overwrite),
    };
    let mut config = RunConfig::default();
    config.data.stories_bytes = 200_000;
    config.model = GptConfig { n_layer: 2, n_head: 2, n_embd: 64, ..GptConfig::default() };
    (config.train.max_steps, config.train.eval_every, config.train.eval_batches) = (200, 50, 4);
    (config.train.lr, config.train.warmup_steps) = (3e-3, 20);
    let run = Run::start(config, StartOptions { out: Some(out.clone()), if_exists, ..StartOptions::default() })?;
    println!("{} parameters, {} training tokens", run.gpt().n_params(), run.data().train.len());
    let outcome = run.train(&AtomicBool::new(false), &mut |event| {
        if let Event::Eval { metrics, .. } = event {
            println!("step {}: validation loss {:.3}", metrics.step, metrics.val_loss.unwrap_or(f64::NAN));
        }
        Ok(()) // an error would save the run and end it
    })?;
    if let Some(report) = outcome.report {
        println!(
            "whole split: {:.3} nats a token, of which {:.3} are the text's own",
            report.loss,
            report.floor.unwrap_or(0.0)
        );
    }
    println!("{}", out.display());
    Ok(())
}
