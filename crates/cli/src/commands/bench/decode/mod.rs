//! `tinygpt bench decode`: milliseconds a token, the draw included, and the share of the rate at which memory can be
//! read.

mod losses;

use std::{
    ops::ControlFlow,
    time::{Duration, Instant},
};

use anyhow::Context;
use serde::Serialize;
use tinygpt_model::{
    ContextPolicy, Decoder, Generation, GptConfig, ModelFolder, checkpoint::Weights, cpu::DecodeFormats, generate,
    init_params,
};
use tinygpt_sampler::{Sampler, SamplingParams};

use super::{
    flag_name, forget_peak_memory,
    limits::{Memory, READING, Threads, agree},
    median, named_recipe, note_debug_build, peak_memory, peak_memory_mib, without_a_text,
};
use crate::{
    args::BenchDecodeArgs,
    device, hub,
    output::{print_json, print_stdout},
};
use losses::Losses;

/// The tokens of a round, where the context has as many.
const DEFAULT_TOKENS: u32 = 128;
/// The seed of weights and draws.
const SEED: u64 = 1337;
/// How long stretches of rounds are started after a round that warms up, and how many of them must count: be set against
/// what memory gave meanwhile.
const STRETCHES: (Duration, usize) = (Duration::from_secs(3), 3);
/// The time after which no stretch is started, even where too few count.
const AT_MOST: Duration = Duration::from_secs(10);
/// How long rounds are started in a stretch; it has at least one.
const STRETCH: Duration = Duration::from_millis(400);

/// What was measured.
#[derive(Debug, Serialize)]
struct Report {
    work: String,
    device: String,
    weights: String,
    kv_cache: String,
    threads: usize,
    rows: usize,
    tokens: usize,
    rounds: usize,
    /// The median time of a step, which makes one token of each row.
    median_ms: f64,
    min_ms: f64,
    /// Tokens of all rows in a second.
    tokens_per_s: f64,
    /// What a step reads of memory; measured on the CPU alone.
    #[serde(flatten)]
    reading: Option<Reading>,
    /// The most memory that the process held from the opening of the decoder to the end of the first round; what a GPU holds
    /// is not in it.
    peak_memory_mib: Option<f64>,
    /// The most memory that tensors held on the device, where it counts them.
    device_peak_memory_mib: Option<f64>,
    /// What rounding costs, where weights or caches are rounded.
    #[serde(flatten)]
    losses: Option<Losses>,
}

/// What a step reads of memory, beside what it could read.
#[derive(Debug, Serialize)]
struct Reading {
    /// The bytes of all weights that a step reads.
    weight_bytes: usize,
    /// The median of the rates beside the stretches that count; `None` where it cannot be measured now.
    read_gb_per_s: Option<f64>,
    /// The median of the shares of the stretches that count. Above 1 where the weights fit the caches.
    share_of_bandwidth: Option<f64>,
}

impl Reading {
    /// Sets the stretches against the rates beside them. Where too few count, nothing is known but the bytes.
    fn new(weight_bytes: usize, stretches: &[Stretch]) -> Self {
        let beside: Vec<(&Stretch, f64)> =
            stretches.iter().filter_map(|stretch| Some((stretch, stretch.read_rate()?))).collect();
        if beside.len() < STRETCHES.1 {
            return Self { weight_bytes, read_gb_per_s: None, share_of_bandwidth: None };
        }
        let share = |&(stretch, rate): &(&Stretch, f64)| weight_bytes as f64 / median(stretch.times.clone()) / rate;
        Self {
            weight_bytes,
            read_gb_per_s: Some(median(beside.iter().map(|(_, rate)| rate / 1e9).collect())),
            share_of_bandwidth: Some(median(beside.iter().map(share).collect())),
        }
    }
}

pub fn run(args: &BenchDecodeArgs) -> anyhow::Result<()> {
    let Model { config, weights } = Model::named(args)?;
    let device = args.device.open()?;
    note_debug_build();
    let formats = DecodeFormats { weights: args.weights.into(), kv_cache: args.kv_cache.into() };
    let open = |formats: DecodeFormats, device| weights.decoder(&config, ContextPolicy::Slide, formats, device);
    // Random weights took memory that generating does not.
    forget_peak_memory();
    let mut decoder = open(formats, &device)?;
    let tokens = (args.tokens.unwrap_or(DEFAULT_TOKENS) as usize).min(config.block_size);
    if let Some(asked) = args.tokens.filter(|&asked| asked as usize > tokens) {
        notice!("--tokens {asked} is more than the context of {tokens}: {tokens} tokens are measured");
    }
    let mut steps = Steps::new(decoder.as_mut(), args.rows as usize, tokens)?;
    steps.round()?;
    // What follows is the same again, and what it is compared with.
    let (peak_memory_mib, device_peak_memory_mib) = (peak_memory_mib(), device::peak_memory_mib(&device)?);
    let memory = device.is_cpu().then(Memory::new);
    let stretches = steps.time(|| memory.as_ref().map(|memory| memory.read_rate(Threads::All)))?;
    drop(memory);
    let losses = if formats == DecodeFormats::default() {
        None
    } else {
        let mut exact = open(DecodeFormats::default(), &device)?;
        Some(Losses::of_drawn_text(exact.as_mut(), decoder.as_mut(), config.block_size, SEED)?)
    };
    let reading = device.is_cpu().then(|| Reading::new(formats.weights.bytes_of_a_step(&config), &stretches));
    let times: Vec<f64> = stretches.into_iter().flat_map(|stretch| stretch.times).collect();
    let median_s = median(times.clone());
    let report = Report {
        work: format!("decode {}", args.work.display()),
        device: device::name(&device),
        weights: flag_name(args.weights),
        kv_cache: flag_name(args.kv_cache),
        threads: Threads::All.count(),
        rows: args.rows as usize,
        tokens,
        rounds: times.len(),
        median_ms: 1e3 * median_s,
        min_ms: 1e3 * times.into_iter().fold(f64::INFINITY, f64::min),
        tokens_per_s: f64::from(args.rows) / median_s,
        reading,
        peak_memory_mib,
        device_peak_memory_mib,
        losses,
    };
    if args.json { print_json(&report) } else { Ok(print_stdout(&describe(&report, &config))?) }
}

/// A model to decode with, whose weights are mapped as in generation.
struct Model {
    config: GptConfig,
    weights: Weights,
}

impl Model {
    /// A shape with random weights, or the model of a run.
    fn named(args: &BenchDecodeArgs) -> anyhow::Result<Self> {
        let name = args.work.to_str();
        let config = match name.and_then(named_recipe) {
            Some(recipe) => without_a_text(&recipe?),
            None => {
                let folder = hub::folder(&args.work)?;
                if !folder.exists() {
                    let name = folder.display();
                    anyhow::bail!(
                        "there is no model {name}: give the folder of one, or one of the shapes small, baby and gpt2"
                    );
                }
                let (config, weights) = ModelFolder::new(&folder).map()?;
                return Ok(Self { config, weights });
            }
        };
        // The file goes with the folder, and the map stays.
        let folder = tempfile::tempdir().context("cannot make a folder for the random weights")?;
        let file = ModelFolder::new(folder.path());
        file.write_weights(&config, &init_params(&config, SEED))?;
        Ok(Self { weights: file.map_weights(&config)?, config })
    }
}

/// Some rounds of decoding. What memory gives varies from second to second on a machine shared with others, and decoding with it: it
/// is measured before and after each stretch.
struct Stretch {
    /// The seconds of a token of every row, of each round.
    times: Vec<f64>,
    /// Bytes a second before and after it; `None` on a GPU.
    read_rates: Option<[f64; 2]>,
}

impl Stretch {
    /// What memory gave meanwhile, where it is known: the stretch does not count where the rates beside it do not agree.
    fn read_rate(&self) -> Option<f64> {
        self.read_rates.filter(|&rates| agree(rates, READING)).map(|[before, after]| (before + after) / 2.0)
    }
}

/// Generation from position 0, again and again.
struct Steps<'a> {
    decoder: &'a mut dyn Decoder,
    sampler: Sampler,
    rows: usize,
    tokens: usize,
}

impl<'a> Steps<'a> {
    fn new(decoder: &'a mut dyn Decoder, rows: usize, tokens: usize) -> anyhow::Result<Self> {
        let rules = SamplingParams { temperature: 0.8, top_k: 50, seed: SEED, ..SamplingParams::default() };
        Ok(Self { decoder, sampler: Sampler::new(rules)?, rows, tokens })
    }

    /// Rounds in stretches, with a look at what memory gives before and after each of them.
    fn time(&mut self, read_rate: impl Fn() -> Option<f64>) -> anyhow::Result<Vec<Stretch>> {
        let (start, mut stretches) = (Instant::now(), Vec::<Stretch>::new());
        let mut before = read_rate();
        let has_rates = before.is_some();
        let wanted = |stretches: &[Stretch]| {
            let counted = stretches.iter().filter(|stretch| !has_rates || stretch.read_rate().is_some()).count();
            let elapsed = start.elapsed();
            elapsed < STRETCHES.0 || stretches.len() < STRETCHES.1 || (counted < STRETCHES.1 && elapsed < AT_MOST)
        };
        while wanted(&stretches) {
            let (start, mut times) = (Instant::now(), Vec::new());
            while times.is_empty() || start.elapsed() < STRETCH {
                let start = Instant::now();
                self.round()?;
                times.push(start.elapsed().as_secs_f64() / self.tokens as f64);
            }
            let after = read_rate();
            stretches.push(Stretch { times, read_rates: before.zip(after).map(|(before, after)| [before, after]) });
            before = after;
        }
        Ok(stretches)
    }

    /// What `tinygpt generate` does, but for the text.
    fn round(&mut self) -> anyhow::Result<()> {
        let Self { decoder, sampler, rows, tokens } = self;
        let request = Generation { prompt: &[0], first_sequence: 0, rows: *rows, max_new_tokens: *tokens };
        Ok(generate(*decoder, sampler, request, |_, _| ControlFlow::Continue(()))?)
    }
}

fn describe(report: &Report, config: &GptConfig) -> String {
    let GptConfig { n_layer, n_head, n_embd, block_size, vocab_size, .. } = config;
    let Report {
        work, device, weights, kv_cache, threads, rows, tokens, rounds, median_ms, min_ms, tokens_per_s, ..
    } = report;
    let Report { reading, peak_memory_mib, device_peak_memory_mib, losses, .. } = report;
    let mut text = format!(
        "{work}: {n_layer} layers, {n_head} heads, {n_embd} channels, context {block_size}, vocabulary {vocab_size}; \
         {rows} rows, {tokens} tokens each, weights {weights}, cache {kv_cache}, {device}, {threads} threads\n\
         step         {median_ms:.3} ms (median of {rounds} rounds; fastest {min_ms:.3})\n\
         speed        {tokens_per_s:.1} tokens/s\n"
    );
    if let Some(Reading { weight_bytes, read_gb_per_s, share_of_bandwidth }) = reading {
        let share = match (share_of_bandwidth, read_gb_per_s) {
            (Some(share), Some(rate)) if *share > 1.0 => {
                format!(
                    "more than a streaming read of memory gives ({rate:.1} GB/s), since the caches hold some of them"
                )
            }
            (Some(share), Some(rate)) => format!("{:.1}% of a streaming read of {rate:.1} GB/s", 100.0 * share),
            _ => "the rate of a streaming read cannot be measured now, as something else runs on this machine".into(),
        };
        text += &format!("memory       {:.2} MB of weights a step: {share}\n", *weight_bytes as f64 / 1e6);
    }
    if let Some(Losses { loss_f32, loss, loss_difference, loss_tokens }) = losses {
        text += &format!(
            "loss         {loss:.5} nats/token, {loss_difference:+.5} from the {loss_f32:.5} of f32 ({loss_tokens} tokens \
             that f32 drew)\n"
        );
    }
    text + &peak_memory(*peak_memory_mib, *device_peak_memory_mib)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_of_what_memory_gave_beside_each_stretch() {
        let stretch = |times: &[f64], read_rates| Stretch { times: times.to_vec(), read_rates: Some(read_rates) };
        // 1 GB in 0.1 s at 20 GB/s, in 0.05 s at 40 GB/s, once in the shadow of another process, and once while memory
        // became faster: the last does not count.
        let stretches = [
            stretch(&[0.1, 0.1, 0.2], [1.9e10, 2.1e10]),
            stretch(&[0.05], [4e10, 4e10]),
            stretch(&[0.4], [4e10, 4e10]),
            stretch(&[0.01], [2e10, 4e10]),
        ];
        let Reading { weight_bytes, read_gb_per_s, share_of_bandwidth } = Reading::new(1_000_000_000, &stretches);
        assert_eq!((weight_bytes, read_gb_per_s, share_of_bandwidth), (1_000_000_000, Some(40.0), Some(0.5)));
    }

    #[test]
    fn there_is_no_share_where_the_rates_beside_the_stretches_do_not_agree() {
        let stretch = |read_rates| Stretch { times: vec![1.0], read_rates };
        let unsteady = [[1.0, 2.0], [2.0, 2.0], [2.0, 1.0], [1.0, 1.0]].map(|rates| stretch(Some(rates)));
        let reading = Reading::new(8, &unsteady);
        assert_eq!((reading.read_gb_per_s, reading.share_of_bandwidth), (None, None));
        assert_eq!(Reading::new(8, &[stretch(None), stretch(None), stretch(None)]).read_gb_per_s, None);
    }
}
