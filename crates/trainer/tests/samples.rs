//! `samples.jsonl`: texts of a run as it learns, the same wherever the run was interrupted, and nothing to its weights.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use crate::common::{Prepared, assert_same_weights, prepare};
use candle_core::Device;
use tinygpt_model::{ContextPolicy, Generation, Precision, checkpoint::open_decoder, cpu::WeightFormat, generate};
use tinygpt_sampler::{Sampler, SamplingParams};
use tinygpt_trainer::{
    engine::{AdamW, Engine, TensorEngine, open},
    json_lines,
    samples::{SAMPLES_FILE, Sample},
    train::{Event, StopReason, Trainer},
};

/// More tokens than the context has.
const SETTINGS: &[&str] = &["train.sample_every=2", "train.sample_tokens=20", "train.sample_prompt=the"];

/// Trains, or goes on, until the end or until `interrupt` says so. Gives the samples that events told of.
fn train(settings: &[&str], folder: &Path, resume: bool, interrupt: impl Fn(&Event<'_>) -> bool) -> Vec<Sample> {
    let Prepared { config, data, gpt, run, state, weights } = prepare(settings, folder, resume);
    let mut engine = open(&gpt, Precision::F32, AdamW::from(&config.train), 1, &weights, &Device::Cpu).unwrap();
    let stop = AtomicBool::new(false);
    let trainer = Trainer { config: &config, data: &data, engine: engine.as_mut(), run: &run, state };
    let mut told = Vec::new();
    let outcome = trainer.train(&stop, &mut |event: Event<'_>| {
        stop.store(interrupt(&event), Ordering::Relaxed);
        if let Event::Sample(sample) = event {
            told.push(sample.clone());
        }
        Ok(())
    });
    assert!(matches!(outcome.unwrap().ending, StopReason::MaxSteps | StopReason::Interrupted));
    told
}

fn samples(folder: &Path) -> Vec<Sample> {
    json_lines::read(&folder.join(SAMPLES_FILE)).unwrap()
}

fn bytes(folder: &Path) -> String {
    fs::read_to_string(folder.join(SAMPLES_FILE)).unwrap()
}

#[test]
fn samples_come_at_their_updates_and_at_the_end_and_change_no_weight() {
    let dir = tempfile::tempdir().unwrap();
    let (with, without) = (dir.path().join("with"), dir.path().join("without"));
    let told = train(SETTINGS, &with, false, |_| false);
    assert_eq!(told, samples(&with));
    assert_eq!(told.iter().map(|sample| sample.step).collect::<Vec<_>>(), [0, 2, 4, 6, 8, 9]);
    assert!(told.iter().all(|sample| sample.prompt == "the" && sample.text.chars().count() == 20));
    assert_ne!(told[0].text, told[5].text);
    assert_eq!(train(&[], &without, false, |_| false), []);
    assert!(!without.join(SAMPLES_FILE).exists());
    assert_same_weights(&with, &without);
}

#[test]
fn an_interruption_anywhere_leaves_the_samples_of_a_whole_run() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    train(SETTINGS, &whole, false, |_| false);
    let interruptions: [fn(&Event<'_>) -> bool; 5] = [
        // Before the first sample, before one is drawn, before and after one that an evaluation precedes, and at the end.
        |event| matches!(event, Event::Eval { metrics, .. } if metrics.step == 0),
        |event| matches!(event, Event::Step { metrics, .. } if metrics.step == 4),
        |event| matches!(event, Event::Eval { metrics, .. } if metrics.step == 6),
        |event| matches!(event, Event::Sample(sample) if sample.step == 6),
        |event| matches!(event, Event::Eval { metrics, .. } if metrics.step == 9),
    ];
    for (n, interrupt) in interruptions.into_iter().enumerate() {
        let parts = dir.path().join(format!("parts-{n}"));
        let before = train(SETTINGS, &parts, false, interrupt);
        assert!(before.len() < 6);
        train(SETTINGS, &parts, true, |_| false);
        assert_eq!(bytes(&parts), bytes(&whole), "interruption {n}");
        assert_same_weights(&parts, &whole);
    }
}

#[test]
fn samples_of_updates_that_a_crash_has_lost_are_made_again_and_stand_there_once() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, parts) = (dir.path().join("whole"), dir.path().join("parts"));
    train(SETTINGS, &whole, false, |_| false);
    train(SETTINGS, &parts, false, |event| matches!(event, Event::Step { metrics, .. } if metrics.step == 5));
    // What a process leaves that was killed in the middle of a line after the update that was saved last.
    let lost = bytes(&whole).lines().skip(3).map(|line| line.to_owned() + "\n").collect::<String>();
    let mut file = OpenOptions::new().append(true).open(parts.join(SAMPLES_FILE)).unwrap();
    file.write_all(&lost.as_bytes()[..lost.len() - 9]).unwrap();
    assert_eq!(samples(&parts).len(), 5);
    train(SETTINGS, &parts, true, |_| false);
    assert_eq!(bytes(&parts), bytes(&whole));
    // A finished run has all of them.
    assert_eq!(train(SETTINGS, &parts, true, |_| false), []);
    assert_eq!(bytes(&parts), bytes(&whole));
}

#[test]
fn a_sample_is_the_text_that_the_weights_of_its_update_generate_on_either_engine() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("run");
    let sample = train(SETTINGS, &folder, false, |_| false).pop().unwrap();
    let Prepared { config, data, gpt, weights, .. } = prepare(SETTINGS, &folder, true);
    let tokenizer = &data.tokenizer;
    let prompt = tokenizer.encode("the").unwrap();
    let params: Vec<&[f32]> = weights.params.iter().map(Vec::as_slice).collect();
    let tensors =
        TensorEngine::new(&gpt, Precision::F32, AdamW::from(&config.train), 1, &weights, &Device::Cpu).unwrap();
    let (slide, format) = (ContextPolicy::Slide, WeightFormat::F32);
    for mut decoder in
        [open_decoder(&gpt, &params, slide, format, &Device::Cpu).unwrap(), tensors.decoder(slide).unwrap()]
    {
        let rules = SamplingParams { temperature: 0.8, seed: sample.seed, ..SamplingParams::default() };
        let mut sampler = Sampler::new(rules).unwrap();
        let mut tokens = Vec::new();
        let request = Generation { prompt: &prompt, first_sequence: 0, rows: 1, max_new_tokens: 20 };
        generate(decoder.as_mut(), &mut sampler, request, |_, token| {
            tokens.push(token);
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(tokenizer.decode(&tokens).unwrap(), sample.text);
    }
}
