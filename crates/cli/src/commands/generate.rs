//! `tinygpt generate`.

mod logprobs;
pub mod prompts;
pub mod settings;
mod texts;

use std::ops::ControlFlow;

use serde_json::json;
use tinygpt_model::{Decoder, Generation, ModelFolder, constraint::Constraint, generate_with, tokenizer::Tokenizer};
use tinygpt_sampler::Sampler;

use crate::{
    args::GenerateArgs,
    generation::fresh_seed,
    generator::Generator,
    hub,
    measured::newest_run,
    output::{Usage, print_json, print_stdout},
};
use prompts::{prompts, unescape};
use settings::{Settings, Wanted};
use texts::{OnText, Sample, Texts};

/// Samples that are computed side by side. The text does not depend on it.
const ROWS: u64 = 16;

/// What is generated, resolved from flags and the run's defaults.
pub struct Plan {
    pub prompt_text: String,
    pub prompt: Vec<u32>,
    stops: Vec<String>,
    pub max_new_tokens: usize,
    /// What the generated text must be, before its first token.
    constraint: Option<Constraint>,
    /// How many of the most probable tokens are told beside each token.
    logprobs: Option<usize>,
}

pub fn run(args: &GenerateArgs) -> anyhow::Result<()> {
    if args.first_sample.checked_add(args.num_samples - 1).is_none() {
        return Err(Usage(format!("--first-sample {} leaves no numbers for --num-samples", args.first_sample)).into());
    }
    let path = match &args.checkpoint {
        Some(path) => hub::folder(path)?.into_owned(),
        None => newest_run()?,
    };
    let defaults = ModelFolder::new(&path).read_generation_defaults()?;
    // Refused before anything is read, and used once the model is there.
    let wanted = Wanted::new(&args.text, &defaults, fresh_seed())?;
    let prompts = prompts(args)?;
    let generator = Generator::open(&path, args.adapter.as_deref())?;
    let settings = wanted.settings(&generator)?;
    let plan = |prompt| settings.plan(prompt, args.logprobs, &generator);
    let plans = prompts.into_iter().map(plan).collect::<anyhow::Result<Vec<_>>>()?;
    let mut samplers = plans.iter().map(|plan| settings.sampler(plan)).collect::<anyhow::Result<Vec<_>>>()?;
    let mut decoder = generator.decoder(&args.opening, ROWS.min(args.num_samples) as usize)?;
    if args.text.seed.is_none() && settings.draws() {
        notice!("seed {}", settings.seed());
    }
    let (decoder, tokenizer) = (decoder.as_mut(), generator.tokenizer());
    if let ([plan], [sampler], false, 1) = (&plans[..], &mut samplers[..], args.json, args.num_samples) {
        print_stdout(settings.echoed(plan))?;
        streamed(decoder, sampler, tokenizer, plan, args.first_sample, |text| {
            print_stdout(text).map(ControlFlow::Continue)
        })?;
        return Ok(print_stdout("\n")?);
    }
    let mut output = Output { args, settings: &settings, is_first: true };
    for (plan, mut sampler) in plans.iter().zip(samplers) {
        output.prompt(plan, |first, rows| samples(decoder, &mut sampler, tokenizer, plan, first, rows))?;
    }
    Ok(())
}

/// How samples are printed that are not told token by token.
struct Output<'a> {
    args: &'a GenerateArgs,
    settings: &'a Settings<'a>,
    /// Whether no sample was printed yet.
    is_first: bool,
}

impl Output<'_> {
    /// The samples of a prompt, which `draw(first sample, rows)` makes some at a time.
    fn prompt(
        &mut self,
        plan: &Plan,
        mut draw: impl FnMut(u64, usize) -> anyhow::Result<Vec<Sample>>,
    ) -> anyhow::Result<()> {
        let Self { args, settings, .. } = *self;
        let mut all = Vec::new();
        for done in (0..args.num_samples).step_by(ROWS as usize) {
            let samples = draw(args.first_sample + done, ROWS.min(args.num_samples - done) as usize)?;
            if args.json {
                all.extend(samples);
                continue;
            }
            for sample in samples {
                print_stdout(&format!("{}{}{}\n", self.separator(), settings.echoed(plan), sample.text))?;
                self.is_first = false;
            }
        }
        if !args.json {
            return Ok(());
        }
        print_json(&json!({ "prompt": plan.prompt_text, "seed": settings.seed(), "samples": all }))
    }

    /// The line before the next sample.
    fn separator(&self) -> String {
        if self.is_first || self.args.separator.is_empty() {
            return String::new();
        }
        unescape(&self.args.separator) + "\n"
    }
}

/// The text of one sample, told piece by piece as its tokens are drawn, until `on_text` ends it.
pub fn streamed(
    decoder: &mut dyn Decoder,
    sampler: &mut Sampler,
    tokenizer: &Tokenizer,
    plan: &Plan,
    sample: u64,
    on_text: OnText,
) -> anyhow::Result<String> {
    let texts = Texts::new(tokenizer, plan, sample, 1, on_text)?;
    let samples = generated(decoder, sampler, plan, texts)?;
    Ok(samples.into_iter().map(|sample| sample.text).collect())
}

/// Some samples side by side.
fn samples(
    decoder: &mut dyn Decoder,
    sampler: &mut Sampler,
    tokenizer: &Tokenizer,
    plan: &Plan,
    first: u64,
    rows: usize,
) -> anyhow::Result<Vec<Sample>> {
    generated(decoder, sampler, plan, Texts::new(tokenizer, plan, first, rows, |_| Ok(ControlFlow::Continue(())))?)
}

/// Generates some texts to their ends.
fn generated(
    decoder: &mut dyn Decoder,
    sampler: &mut Sampler,
    plan: &Plan,
    mut texts: Texts<'_>,
) -> anyhow::Result<Vec<Sample>> {
    let (first_sequence, rows) = texts.place();
    let request = Generation { prompt: &plan.prompt, first_sequence, rows, max_new_tokens: plan.max_new_tokens };
    generate_with(decoder, sampler, request, &mut texts)?;
    texts.finish()
}
