//! `tinygpt eval`.

use std::sync::atomic::AtomicBool;

use serde_json::json;
use tinygpt_model::{GptConfig, ModelFolder, Tokenizer};
use tinygpt_trainer::{
    Dataset, RunDir,
    config::RunConfig,
    corpus::Corpus,
    data::Split,
    engine,
    evaluate::{Report, whole_split},
    token_cache::{TokenStore, default_cache_dir},
};

use crate::{
    args::EvalArgs,
    output::{print_json, print_stdout},
};

pub fn run(args: &EvalArgs) -> anyhow::Result<()> {
    let model = ModelFolder::new(&args.run);
    let (config, params) = model.read()?;
    let tokenizer = model.read_tokenizer()?;
    let split = match &args.data {
        Some(path) => whole_text(path, &tokenizer)?,
        None => {
            let run = RunDir::open(&args.run)?;
            let RunConfig { data, seed, .. } = run.read_config(&[])?;
            let source_hash = run.last().read_state()?.source_hash;
            Dataset::load_same(&data, seed, Some(tokenizer.clone()), &default_cache_dir(), Some(&source_hash))?.val
        }
    };
    split.check("evaluated", 2)?;
    let report = evaluate(&config, params, &split, &tokenizer, args)?;
    if args.json {
        return print_json(&json!({ "run": args.run.display().to_string(), "data": args.data, "report": report }));
    }
    Ok(print_stdout(&describe(&report, args.data.is_none()))?)
}

/// All tokens of a text, for its loss.
fn whole_text(path: &str, tokenizer: &Tokenizer) -> anyhow::Result<Split> {
    let corpus = Corpus::open(path)?;
    let store = TokenStore::open_or_build(&default_cache_dir(), corpus.sha256()?, tokenizer, &corpus)?;
    Ok(Split::whole(store, None))
}

fn evaluate(
    config: &GptConfig,
    params: Vec<Vec<f32>>,
    split: &Split,
    tokenizer: &Tokenizer,
    args: &EvalArgs,
) -> anyhow::Result<Report> {
    /// The windows of a batch; the loss depends on their number in its last bits only.
    const ROWS: usize = 16;
    let mut evaluator = engine::open_evaluator(config, &params, &args.device.open()?)?;
    Ok(Report::new(whole_split(evaluator.as_mut(), split, ROWS, &AtomicBool::new(false))?, split, tokenizer)?)
}

/// The lines of a report for people: of the whole validation split, or of another text.
pub fn describe(report: &Report, is_validation: bool) -> String {
    let (what, split) = if is_validation { ("validation loss", ", whole split") } else { ("loss of the text", "") };
    let Report { loss, perplexity, bits_per_byte, tokens, floor, gap, gap_bits_per_byte } = report;
    let mut text = format!(
        "{what} {loss:.4} nats/token  (perplexity {perplexity:.3}, {bits_per_byte:.4} bits/byte, {tokens} tokens{split})\n"
    );
    if let (Some(floor), Some(gap), Some(bits)) = (floor, gap, gap_bits_per_byte) {
        let share = 100.0 * gap / floor;
        text += &format!("floor           {floor:.4} nats/token  (the entropy of the text: no model can do better)\n");
        text += &format!("gap             {gap:.4} nats/token  ({share:.1}% of the floor, {bits:.4} bits/byte)\n");
    }
    text
}
