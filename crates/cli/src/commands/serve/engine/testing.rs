//! What tests of the server are made with: models of random weights, engines of them, and a decoder that behaves badly.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code")]

use tinygpt_model::{
    BatchDecoder, GenerationDefaults, GptConfig, ModelFolder, NextLogits, TokenizerError, init_params,
    tokenizer::StopStrings,
};
use tinygpt_sampler::SamplingParams;

use super::*;
use crate::{
    args::{KvCacheArg, WeightsArg, WindowArg},
    device::DeviceChoice,
};

/// A minute: no test waits that long for what comes.
pub const LONG: Duration = Duration::from_secs(60);
/// The time of a text where a test is not about it.
pub const HOUR: Duration = Duration::from_secs(3600);
pub const OPENING: OpeningArgs = OpeningArgs {
    window: WindowArg::Half,
    weights: WeightsArg::F32,
    kv_cache: KvCacheArg::F32,
    device: DeviceChoice::Cpu,
};
/// More tokens than any test reads.
pub const ENDLESS: usize = 1 << 40;

pub fn config(vocab_size: usize) -> GptConfig {
    GptConfig { vocab_size, block_size: 24, n_layer: 2, n_head: 2, n_embd: 32, ..GptConfig::default() }
}

/// A folder with a model of random weights.
pub fn model(seed: u64) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), seed, |_| {}, |_, _| {});
    folder
}

/// Writes a model whose shape and values may be changed.
pub fn write(
    folder: &Path,
    seed: u64,
    shape: impl FnOnce(&mut GptConfig),
    values: impl FnOnce(&GptConfig, &mut Vec<Vec<f32>>),
) {
    let tokenizer =
        Tokenizer::train_char([Ok::<_, TokenizerError>("abcdefghijklmnopqrstuvwxyz .\n0123456789")]).unwrap();
    let mut config = config(tokenizer.vocab_size());
    shape(&mut config);
    // Initial weights give nearly the same chance to all tokens; these do not.
    let lively = |values: Vec<f32>| values.into_iter().map(|x| if x == 1.0 { x } else { 12.0 * x }).collect();
    let mut params: Vec<Vec<f32>> = init_params(&config, seed).into_iter().map(lively).collect();
    values(&config, &mut params);
    let model = ModelFolder::new(folder);
    model.write_description(&config, &tokenizer, &GenerationDefaults::default()).unwrap();
    model.write_weights(&config, &params).unwrap();
}

pub fn options(slots: usize, queue: usize) -> Options {
    Options { slots, queue, timeout: HOUR, opening: OPENING }
}

pub fn engine(folder: &Path, slots: usize, queue: usize) -> Engine {
    Engine::open("test".into(), folder, options(slots, queue)).unwrap()
}

pub fn request(prompt: &[u32], seed: u64, max_new_tokens: usize) -> TextRequest {
    TextRequest {
        prompt: prompt.to_vec(),
        rules: SamplingParams { seed, temperature: 0.9, top_k: 20, ..SamplingParams::default() },
        adaptive: None,
        sequence: 0,
        max_new_tokens,
        stops: StopStrings::new(Vec::new()).unwrap(),
        top: None,
        constraint: None,
    }
}

/// What a reader got: tokens, their text, and the last event.
#[derive(Debug, Clone, PartialEq)]
pub struct Read {
    pub tokens: Vec<GeneratedToken>,
    pub text: String,
    pub end: Result<EndedBy, Failure>,
}

pub fn read(mut events: Receiver<Event>) -> Read {
    let (mut tokens, mut text) = (Vec::new(), String::new());
    loop {
        match events.blocking_recv().expect("a last event") {
            Event::Token(token) => {
                text += &token.piece;
                tokens.push(token);
            }
            Event::Ended { by, rest } => return Read { tokens, text: text + &rest, end: Ok(by) },
            Event::Failed(why) => return Read { tokens, text, end: Err(why) },
        }
    }
}

pub fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < LONG, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A decoder whose prompts never come to their ends.
pub struct Endless {
    pub slots: usize,
    /// A device that fails as none should.
    pub panics: bool,
}

impl BatchDecoder for Endless {
    fn vocab_size(&self) -> usize {
        39
    }

    fn slots(&self) -> usize {
        self.slots
    }

    fn begin(&mut self, _slot: usize, _prompt: &[u32]) -> Result<(), ModelError> {
        Ok(())
    }

    fn prompt_part(&mut self, _slot: usize) -> Result<Option<&[f32]>, ModelError> {
        assert!(!self.panics, "a panic of a test");
        std::thread::sleep(Duration::from_millis(1));
        Ok(None)
    }

    fn append(&mut self, slot: usize, _token: u32) -> Result<NextLogits, ModelError> {
        Err(ModelError::Slot { slot, reason: "has a prompt without an end" })
    }

    fn step(&mut self, slots: &[usize]) -> Result<&[f32], ModelError> {
        Err(ModelError::Slot { slot: slots[0], reason: "has a prompt without an end" })
    }

    fn release(&mut self, _slot: usize) {}
}

/// An engine whose thread has another decoder.
pub fn engine_of(folder: &Path, decoder: Endless, timeout: Duration) -> Engine {
    let options = Options { timeout, ..options(decoder.slots, 4) };
    let engine = Engine::open("test".into(), folder, options).unwrap();
    let worker =
        Worker::with_decoder(Model::open(folder).unwrap(), &engine.0.common, move |_| Ok(Box::new(decoder))).unwrap();
    let old = std::mem::replace(&mut engine.0.workers().current, Arc::new(worker));
    old.queue.close(Closing::WhenDone);
    engine
}
