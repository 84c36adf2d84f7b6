//! Continues a text with the model of a folder: `cargo run --release -p tinygpt-model --example generate [FOLDER [TEXT]]`.
//! Without a folder, with the one that the example `train` leaves.
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::{env, error::Error, ops::ControlFlow};

use tinygpt_model::{Checkpoint, ContextPolicy, Device, Generation, cpu::WeightFormat, generate};
use tinygpt_sampler::{Sampler, SamplingParams};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = env::args_os().nth(1).map_or_else(|| env::temp_dir().join("tinygpt-example"), Into::into);
    let checkpoint = Checkpoint::open(folder)?;
    let tokenizer = checkpoint.tokenizer();
    let prompt = match env::args().nth(2) {
        Some(text) => tokenizer.encode(&text)?,
        None => vec![tokenizer.start_token()],
    };
    let mut decoder = checkpoint.decoder(ContextPolicy::Half, WeightFormat::F32, &Device::Cpu)?;
    let mut sampler = Sampler::new(SamplingParams { top_p: 0.9, seed: 1, ..SamplingParams::default() })?;
    let request = Generation { prompt: &prompt, first_sequence: 0, rows: 1, max_new_tokens: 300 };
    let mut text = tokenizer.text_stream();
    let mut failed = None;
    generate(decoder.as_mut(), &mut sampler, request, |_row, token| match text.push(token) {
        Ok(piece) => {
            print!("{piece}");
            ControlFlow::Continue(())
        }
        Err(error) => {
            failed = Some(error);
            ControlFlow::Break(())
        }
    })?;
    println!("{}", text.finish()?);
    failed.map_or(Ok(()), |error| Err(error.into()))
}
