//! `tinygpt eval`.

use serde::Serialize;
use tinygpt_trainer::{
    evaluate::Report,
    sliding::{Sliding, SlidingLoss, sliding_loss},
};

use crate::{
    args::EvalArgs,
    measured::Measured,
    output::{Usage, print_json, print_stdout},
    progress_bar::WorkProgress,
    units,
};

/// What `--json` prints.
#[derive(Serialize)]
struct EvalReport<'a> {
    run: String,
    data: Option<&'a str>,
    #[serde(flatten)]
    report: Report,
    /// The standard error of the loss, from its spread over windows.
    stderr: Option<f64>,
    stride: usize,
    context: usize,
}

pub fn run(args: &EvalArgs) -> anyhow::Result<()> {
    let mut measured = Measured::open_adapted(args.run.as_deref(), args.adapter.as_deref(), args.device)?;
    let context = args.context.unwrap_or(measured.model.block_size());
    let sliding = Sliding::of(measured.model.as_ref(), context);
    let sliding = Sliding { stride: args.stride.unwrap_or(sliding.stride), ..sliding };
    sliding.check(measured.model.block_size()).map_err(|error| Usage(error.to_string()))?;
    let split = match &args.data {
        Some(path) => measured.text(path, args.text_key.as_deref())?,
        None => measured.dataset()?.val,
    };
    let mut progress = WorkProgress::new("evaluating");
    let SlidingLoss { evaluation, stderr } =
        sliding_loss(measured.model.as_mut(), &split, sliding, &mut progress.callback())?;
    let report = Report::new(evaluation, &split, &measured.tokenizer)?;
    let (run, Sliding { context, stride }) = (measured.path.display().to_string(), sliding);
    if args.json {
        return print_json(&EvalReport { run, data: args.data.as_deref(), report, stderr, stride, context });
    }
    let of_validation = args.data.is_none().then_some(report.tokens);
    let mut text = describe(&report, of_validation);
    let stderr = stderr.map_or(String::new(), |stderr| format!("standard error {stderr:.4} over windows; "));
    text += &format!("{stderr}a context of {context} tokens every {stride}\n");
    text += "perplexities of different tokenizers cannot be compared, bits a byte can\n";
    Ok(print_stdout(&text)?)
}

/// The lines of a report for people: of the validation split, which has `of_validation` tokens to predict, or of another text.
pub fn describe(report: &Report, of_validation: Option<u64>) -> String {
    let (what, split) = match of_validation {
        Some(all) if all == report.tokens => ("validation loss", ", whole split".into()),
        Some(all) => ("validation loss", format!(" of {all}")),
        None => ("loss of the text", String::new()),
    };
    let perplexity = units::perplexity(report.perplexity);
    let Report { loss, bits_per_byte, tokens, floor, gap, gap_bits_per_byte, .. } = report;
    let mut text = format!(
        "{what} {loss:.4} nats/token  (perplexity {perplexity}, {bits_per_byte:.4} bits/byte, {tokens} tokens{split})\n"
    );
    if let (Some(floor), Some(gap), Some(bits)) = (floor, gap, gap_bits_per_byte) {
        let share = 100.0 * gap / floor;
        text += &format!("floor           {floor:.4} nats/token  (the entropy of the text: no model can do better)\n");
        text += &format!("gap             {gap:.4} nats/token  ({share:.1}% of the floor, {bits:.4} bits/byte)\n");
    }
    text
}
