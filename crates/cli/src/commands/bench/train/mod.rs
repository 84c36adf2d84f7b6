//! `tinygpt bench train`: milliseconds an update, and the share of the arithmetic peak.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use candle_core::Device;
use serde::Serialize;
use tinygpt_model::{GptConfig, Precision, init_params, network};
use tinygpt_sampler::philox4x32_10;
use tinygpt_trainer::{
    RunConfig,
    data::Split,
    engine::{self, DeferredScalar, Engine, EngineState},
    run::check_memory,
    schedule::learning_rate,
};

use super::{
    limits::{ARITHMETIC, Looks, Threads, f32_peak},
    median, named_recipe, note_debug_build, peak_memory, peak_memory_mib, without_a_text,
};
use crate::{
    args::BenchTrainArgs,
    config_file, device,
    output::{print_json, print_stdout},
};

/// Tokens to draw windows from; as many as Shakespeare has.
const TOKENS: usize = 1 << 20;
/// How long updates are made before the first that is timed: until the processor has found its speed.
const WARM_UP: Duration = Duration::from_millis(500);
/// How long updates are timed without `--iters`, and how many at least.
const DEFAULT: (Duration, usize) = (Duration::from_secs(10), 3);

/// What was measured.
#[derive(Debug, Serialize)]
struct Report {
    work: String,
    device: String,
    precision: Precision,
    threads: usize,
    batch: usize,
    iters: usize,
    median_ms: f64,
    min_ms: f64,
    tokens_per_s: f64,
    /// The loss of the last update, in nats a token.
    loss: f64,
    gflop_per_update: f64,
    #[serde(flatten)]
    peak: Peak,
    /// The most memory that the process held; what a GPU holds is not in it.
    peak_memory_mib: Option<f64>,
    /// The most memory that tensors held on the device, where it counts them.
    device_peak_memory_mib: Option<f64>,
}

/// The arithmetic peak, and the share of it that updates reach.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
struct Peak {
    /// The peak of the CPU, where it can be measured now; that of a GPU is not measured.
    peak_gflops: Option<f64>,
    share_of_peak: Option<f64>,
}

impl Peak {
    /// Nothing can be faster than the peak: what seems to be was not set against the peak.
    fn new(reached: f64, peak: Option<f64>) -> Self {
        match peak {
            Some(peak) if reached <= peak => {
                Self { peak_gflops: Some(peak / 1e9), share_of_peak: Some(reached / peak) }
            }
            _ => Self::default(),
        }
    }
}

pub fn run(args: &BenchTrainArgs) -> anyhow::Result<()> {
    let mut config = configuration(&args.work)?;
    if let Some(batch) = args.batch {
        config.train.batch_size = batch as usize;
    }
    if let Some(precision) = args.precision {
        config.train.precision = precision.into();
    }
    let device = args.device.open()?;
    note_debug_build();
    let gpt = without_a_text(&config);
    check_memory(&config, gpt.vocab_size, None, &device)?;
    // A look before the updates and one after them, and if they do not agree, more of them.
    let mut looks = Looks::new(ARITHMETIC);
    if device.is_cpu() {
        looks.add(f32_peak(Threads::All));
    }
    let mut training = Training::new(&config, &gpt, &device)?;
    let (times, loss) = training.time(args.iters)?;
    let peak = if device.is_cpu() { looks.until_found(|| f32_peak(Threads::All)) } else { None };
    let median_s = median(times.clone());
    let RunConfig { train, .. } = &config;
    let flop = train.grad_accum as f64 * network(&gpt).flops_of_update(train.batch_size, gpt.block_size);
    let report = Report {
        work: format!("train {}", args.work.display()),
        device: device::name(&device),
        precision: train.precision,
        threads: Threads::All.count(),
        batch: train.batch_size,
        iters: times.len(),
        median_ms: 1e3 * median_s,
        min_ms: 1e3 * times.into_iter().fold(f64::INFINITY, f64::min),
        tokens_per_s: config.tokens_per_step() as f64 / median_s,
        loss,
        gflop_per_update: flop / 1e9,
        peak: Peak::new(flop / median_s, peak),
        peak_memory_mib: peak_memory_mib(),
        device_peak_memory_mib: device::peak_memory_mib(&device)?,
    };
    if args.json { print_json(&report) } else { Ok(print_stdout(&describe(&report, &gpt, device.is_cpu()))?) }
}

/// `small`, `baby` and `gpt2`, else what `train --config` takes.
fn configuration(work: &Path) -> anyhow::Result<RunConfig> {
    match work.to_str().and_then(named_recipe) {
        Some(config) => config,
        None => config_file::read(work, Vec::new()),
    }
}

/// Training as the training loop does it, without evaluations and files.
pub struct Training<'a> {
    config: &'a RunConfig,
    tokens: Split,
    device: &'a Device,
    engine: Box<dyn Engine>,
    step: u64,
}

impl<'a> Training<'a> {
    /// A fresh model of the shape `gpt`, and random tokens.
    pub fn new(config: &'a RunConfig, gpt: &GptConfig, device: &'a Device) -> anyhow::Result<Self> {
        let tokens = Split::whole(random_tokens(gpt.vocab_size, config.seed).into(), None);
        tokens.check("random", gpt.block_size + 1)?;
        let state = EngineState::fresh(init_params(gpt, config.seed));
        let engine = engine::open(gpt, config.train.precision, &config.train, config.seed, &state, device)?;
        Ok(Self { config, tokens, device, engine, step: 0 })
    }

    /// The seconds of each of `iters` updates, or of as many as the default takes, and the loss of the last one.
    fn time(&mut self, iters: Option<u32>) -> anyhow::Result<(Vec<f64>, f64)> {
        match (iters, DEFAULT) {
            (Some(iters), _) => self.time_for(WARM_UP, Duration::ZERO, iters as usize, || Ok(())),
            (None, (long, least)) => self.time_for(WARM_UP, long, least, || Ok(())),
        }
    }

    /// The seconds of each update, at least `least` of them and for `long`, once updates were made for `warm_up`; and the
    /// loss of the last one. An error of `go_on`, which is asked before each, ends it.
    pub fn time_for(
        &mut self,
        warm_up: Duration,
        long: Duration,
        least: usize,
        go_on: impl Fn() -> anyhow::Result<()>,
    ) -> anyhow::Result<(Vec<f64>, f64)> {
        let start = Instant::now();
        loop {
            go_on()?;
            self.update()?;
            if start.elapsed() >= warm_up {
                break;
            }
        }
        let (mut times, mut losses) = (Vec::new(), Vec::new());
        let start = Instant::now();
        while times.len() < least || start.elapsed() < long {
            go_on()?;
            let start = Instant::now();
            losses = self.update()?;
            times.push(start.elapsed().as_secs_f64());
        }
        let count = losses.len() as f64;
        let losses = losses.iter().map(DeferredScalar::read).collect::<Result<Vec<_>, _>>()?;
        Ok((times, losses.iter().sum::<f64>() / count))
    }

    /// One update; gives the losses of its batches.
    fn update(&mut self) -> anyhow::Result<Vec<DeferredScalar>> {
        let RunConfig { train, model, seed, .. } = self.config;
        let batches = train.grad_accum as u64;
        let mut losses = Vec::new();
        for micro_step in self.step * batches..(self.step + 1) * batches {
            let batch = self.tokens.random_batch(train.batch_size, model.block_size, *seed, micro_step)?;
            losses.push(self.engine.forward_backward(&batch, micro_step)?);
        }
        self.engine.optimizer_step(learning_rate(train, self.step), train.clip)?;
        // A GPU goes on working when it has been told what to do.
        self.device.synchronize()?;
        self.step += 1;
        Ok(losses)
    }
}

/// Uniform tokens: nothing can be learned from them but that, and an update takes the same time.
fn random_tokens(vocab_size: usize, seed: u64) -> Vec<u32> {
    let key = [seed as u32, (seed >> 32) as u32];
    let token = |word: u32| ((u64::from(word) * vocab_size as u64) >> 32) as u32;
    (0..TOKENS as u32 / 4).flat_map(|block| philox4x32_10([block, 0, 0, 0], key).map(token)).collect()
}

fn describe(report: &Report, gpt: &GptConfig, on_cpu: bool) -> String {
    let GptConfig { n_layer, n_head, n_embd, block_size, vocab_size, dropout, .. } = gpt;
    let Report { work, device, precision, threads, batch, iters, median_ms, min_ms, tokens_per_s, loss, .. } = report;
    let Report { gflop_per_update, peak, peak_memory_mib, device_peak_memory_mib, .. } = report;
    let share = match *peak {
        Peak { share_of_peak: Some(share), peak_gflops: Some(peak) } => {
            format!("{:.1}% of the peak of {peak:.1}; ", 100.0 * share)
        }
        _ if on_cpu => "the peak cannot be measured now, as something else runs on this machine; ".into(),
        _ => String::new(),
    };
    let text = format!(
        "{work}: {n_layer} layers, {n_head} heads, {n_embd} channels, context {block_size}, vocabulary {vocab_size}, \
         dropout {dropout}; batch {batch}, {}, {device}, {threads} threads\n\
         update       {median_ms:.2} ms (median of {iters}; fastest {min_ms:.2})\n\
         speed        {tokens_per_s:.0} tokens/s\n\
         arithmetic   {:.1} GFLOP/s in products, {share}{gflop_per_update:.2} GFLOP an update\n\
         loss         {loss:.4} on random tokens\n",
        precision.name(),
        1e3 * gflop_per_update / median_ms,
    );
    text + &peak_memory(*peak_memory_mib, *device_peak_memory_mib)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_tokens_are_of_the_vocabulary_and_all_of_it() {
        let tokens = random_tokens(65, 1337);
        assert_eq!(tokens.len(), TOKENS);
        let mut counts = [0usize; 65];
        tokens.iter().for_each(|&token| counts[token as usize] += 1);
        let mean = TOKENS as f64 / 65.0;
        assert!(counts.iter().all(|&n| (n as f64 - mean).abs() < 6.0 * mean.sqrt()), "{counts:?}");
    }

    #[test]
    fn no_share_is_above_the_whole_of_a_peak_or_of_one_that_was_not_found() {
        assert_eq!(Peak::new(5e11, Some(1e12)), Peak { peak_gflops: Some(1000.0), share_of_peak: Some(0.5) });
        assert_eq!(Peak::new(1.3e12, Some(1e12)), Peak::default());
        assert_eq!(Peak::new(5e11, None), Peak::default());
    }

    #[test]
    fn the_short_names_are_the_recipes_of_shakespeare_and_gpt2() {
        let shape = |work: &str| {
            let config = configuration(Path::new(work)).unwrap();
            let (m, batch) = (config.model, config.train.batch_size);
            (m.n_layer, m.n_head, m.n_embd, m.block_size, batch, m.dropout)
        };
        assert_eq!(shape("small"), (4, 4, 128, 64, 12, 0.0));
        assert_eq!(shape("baby"), (6, 6, 384, 256, 64, 0.2));
        assert_eq!(shape("gpt2"), (12, 12, 768, 1024, 16, 0.0));
        assert_eq!(without_a_text(&configuration(Path::new("gpt2")).unwrap()).vocab_size, 50_257);
        assert!(configuration(Path::new("nothing")).is_err());
    }
}
