//! `tinygpt sample`: the sampler on numbers.

mod draw;
mod input;
mod plot;
mod table;

use serde_json::json;
use tinygpt_sampler::SamplingParams;
use tinygpt_trainer::chart;

use crate::{
    args::{InputKind, SampleArgs},
    output::{Usage, print_json, print_stdout},
};
use draw::{Drawn, Path};

pub fn run(args: &SampleArgs) -> anyhow::Result<()> {
    let params = args.rules.params(args.temperature, args.top_k, args.top_p, args.seed);
    // Refused before the input is read.
    let mut path = Path::new(args, &params)?;
    if args.kind == InputKind::Weights {
        refuse_rules(args, &params)?;
    }
    let rows = input::read(args)?;
    let results: Vec<Result<Drawn, String>> = rows
        .iter()
        .enumerate()
        .map(|(row, numbers)| match (numbers, args.kind) {
            (Err(reason), _) => Err(reason.clone()),
            (Ok(weights), InputKind::Weights) => draw::from_weights(args, weights, row),
            (Ok(logits), InputKind::Logits) => path.draw(args, logits, row),
        })
        .collect();
    if let Some(path) = &args.plot {
        let good = rows
            .iter()
            .zip(&results)
            .enumerate()
            .find_map(|(row, (numbers, drawn))| Some((row, numbers.as_ref().ok()?, drawn.as_ref().ok()?)));
        // Without a good row there is nothing to draw, and the errors below say why.
        if let Some((row, numbers, drawn)) = good {
            chart::write(path, &plot::figure(args, row, numbers, drawn))?;
        }
    }
    if args.json {
        let rows: Vec<_> = results
            .iter()
            .map(|result| match result {
                Ok(drawn) => drawn.json(args.kind),
                Err(error) => json!({ "error": error }),
            })
            .collect();
        print_json(&json!({ "rows": rows }))?;
    } else {
        for (row, result) in results.iter().enumerate() {
            print_stdout(&match result {
                Ok(drawn) => table::of(row, drawn),
                Err(error) => format!("{error}\n\n"),
            })?;
        }
    }
    let bad = results.iter().filter(|result| result.is_err()).count();
    anyhow::ensure!(bad == 0, "{bad} of {} rows cannot be drawn from", results.len());
    Ok(())
}

/// Weights are drawn from as they are.
fn refuse_rules(args: &SampleArgs, params: &SamplingParams) -> anyhow::Result<()> {
    let off = SamplingParams { seed: params.seed, ..SamplingParams::default() };
    if *params == off && args.rules.adaptive.is_none() && args.history.is_empty() {
        return Ok(());
    }
    Err(Usage("--kind weights is multinomial, which knows no sampling rules; give logits instead".into()).into())
}
