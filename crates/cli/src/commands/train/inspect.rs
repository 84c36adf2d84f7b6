//! `tinygpt train --inspect`: how numbers are spread in a network before it is trained.

use candle_core::Device;
use serde_json::json;
use tinygpt_model::{Inspection, Spread};
use tinygpt_trainer::{RunConfig, inspect::inspect, token_cache::default_cache_dir};

use crate::{
    args::TrainArgs,
    output::{print_json, print_stdout},
};

pub fn run(args: &TrainArgs, config: RunConfig, device: &Device) -> anyhow::Result<()> {
    let (gpt, inspection) = inspect(config, &default_cache_dir(), device)?;
    if args.json {
        let Inspection { loss, values, params } = &inspection;
        let (parameters, uniform) = (gpt.n_params(), (gpt.vocab_size as f64).ln());
        return print_json(&json!({
            "init": gpt.init,
            "parameters": parameters,
            "loss": loss,
            "uniform_loss": uniform,
            "values": values,
            "params": params,
        }));
    }
    Ok(print_stdout(&tables(&inspection, gpt.vocab_size))?)
}

/// A line for the loss, a table of the outputs of operations, and one of the parameters.
fn tables(inspection: &Inspection, vocab_size: usize) -> String {
    let Inspection { loss, values, params } = inspection;
    let uniform = (vocab_size as f64).ln();
    let mut text = format!(
        "first batch: loss {loss:.4} nats/token; of the uniform distribution over {vocab_size} tokens {uniform:.4}\n\n"
    );
    text += &format!("{:<20} {:<12}  {:^30}  {:^20}\n", "", "", "activations", "gradients");
    text += &format!(
        "{:<20} {:<12}  {:>9} {:>9} {:>10}  {:>9} {:>10}\n",
        "module", "operation", "mean", "std", "zeros", "std", "zeros"
    );
    for value in values {
        let Spread { mean, std, zeros, .. } = value.activations;
        let of_gradient = value.gradients;
        text += &format!(
            "{:<20} {:<12}  {mean:>9.1e} {std:>9.1e} {:>10}  {:>9.1e} {:>10}\n",
            value.module,
            value.operation,
            percent(zeros),
            of_gradient.std,
            percent(of_gradient.zeros)
        );
    }
    text += &format!("\n{:<33}  {:>9} {:>9} {:>10}  {:>9}\n", "parameter", "mean", "std", "largest", "gradient");
    for param in params {
        let Spread { mean, std, largest, .. } = param.weights;
        let name = param.name.strip_prefix("transformer.").unwrap_or(&param.name);
        text += &format!("{name:<33}  {mean:>9.1e} {std:>9.1e} {largest:>10.1e}  {:>9.1e}\n", param.gradients.std);
    }
    text.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// A share; nothing where it would read as none.
fn percent(share: f64) -> String {
    if share < 5e-4 { String::new() } else { format!("{:.1}%", 100.0 * share) }
}
