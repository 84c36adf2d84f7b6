//! Training in memory: the same updates as a run's, weights in and out, and text from them.

use std::{fs, sync::atomic::AtomicBool};

use tinygpt_model::{Checkpoint, SamplingParams, init_params};
use tinygpt_trainer::{
    Dataset, Fit, GptConfig, Run, RunConfig, TrainError,
    config::{DataConfig, TrainConfig},
    corpus::Documents,
    run::StartOptions,
};

fn text() -> String {
    (0..200).map(|i| format!("The sun is up, and {i} birds sing.\n")).collect()
}

fn small() -> RunConfig {
    let train = TrainConfig {
        batch_size: 2,
        grad_accum: 2,
        max_steps: 8,
        warmup_steps: 2,
        eval_every: 4,
        ..TrainConfig::default()
    };
    let model = GptConfig { n_layer: 1, n_head: 2, n_embd: 16, block_size: 16, dropout: 0.1, ..GptConfig::default() };
    RunConfig { model, train, ..RunConfig::default() }
}

#[test]
fn the_updates_in_memory_are_those_of_a_run_to_the_bit() {
    let folder = tempfile::tempdir().unwrap();
    let (file, out) = (folder.path().join("text.txt"), folder.path().join("run"));
    fs::write(&file, text()).unwrap();
    let mut config = small();
    let data = Dataset::from_text(&text(), &config.data).unwrap();
    let mut fit = Fit::new(config.clone(), &data).unwrap();
    let mut losses = Vec::new();
    while let Some(loss) = fit.update().unwrap() {
        losses.push(loss);
    }
    assert_eq!((losses.len(), fit.step(), fit.update().unwrap()), (8, 8, None));

    config.data.corpus = file.to_string_lossy().into_owned();
    let cache_dir = folder.path().join("cache");
    let run =
        Run::start(config, StartOptions { out: Some(out.clone()), cache_dir, ..StartOptions::default() }).unwrap();
    assert_eq!(run.data().source_hash, data.source_hash);
    let outcome = run.train(&AtomicBool::new(false), &mut |_| Ok(())).unwrap();
    let written = Checkpoint::open(&out).unwrap().into_parts();
    assert_eq!(outcome.state.best.unwrap().step, 8, "otherwise the folder has other weights");
    assert_eq!(fit.params().unwrap(), written.1);
    assert_eq!(fit.val_loss().unwrap(), outcome.report.unwrap().loss);
    assert_eq!(fit.gpt(), &written.0);
}

#[test]
fn weights_go_in_and_out_and_text_comes_from_them() {
    let config = small();
    let data = Dataset::from_text(&text(), &config.data).unwrap();
    let fresh = Fit::new(config.clone(), &data).unwrap();
    let params = fresh.params().unwrap();
    assert_eq!(params, init_params(fresh.gpt(), config.seed));
    let mut one = Fit::from_params(config.clone(), &data, params.clone()).unwrap();
    let mut two = Fit::new(config.clone(), &data).unwrap();
    assert_eq!(one.update().unwrap(), two.update().unwrap());
    assert_ne!(one.params().unwrap(), params);

    let checkpoint = one.checkpoint().unwrap();
    let rules = || SamplingParams { seed: 7, ..SamplingParams::default() };
    let continued = checkpoint.complete("The sun", 20, rules()).unwrap();
    assert_eq!(continued.chars().count(), 20);
    assert_eq!(continued, two.checkpoint().unwrap().complete("The sun", 20, rules()).unwrap());
    assert_eq!(checkpoint.complete("", 3, rules()).unwrap().chars().count(), 3);
    assert!(checkpoint.complete("\u{2603}", 3, rules()).unwrap_err().to_string().contains('\u{2603}'));
    let (gpt, out, tokenizer) = checkpoint.into_parts();
    assert_eq!(out, one.params().unwrap());
    let small = GptConfig { vocab_size: 2, ..gpt.clone() };
    let unknown = Checkpoint::from_params(small, out.clone(), tokenizer.clone()).unwrap_err().to_string();
    assert!(unknown.contains("the tokenizer has"), "{unknown}");
    let missing = Checkpoint::from_params(gpt, out[1..].to_vec(), tokenizer).unwrap_err().to_string();
    assert!(missing.contains("parameters"), "{missing}");
}

#[test]
fn a_text_in_memory_has_documents_where_they_are_asked_for() {
    let config = DataConfig { documents: Documents::Line, val_fraction: 0.5, ..DataConfig::default() };
    let data = Dataset::from_text("ab\nba\n", &config).unwrap();
    let end = data.tokenizer.end_of_text().unwrap();
    let tokens = [data.train.tokens().unwrap(), data.val.tokens().unwrap()].concat();
    assert_eq!(tokens.iter().filter(|&&token| token == end).count(), 2);
}

#[test]
fn what_needs_a_run_or_more_text_is_refused() {
    let data = Dataset::from_text(&text(), &DataConfig::default()).unwrap();
    let refused = |change: &dyn Fn(&mut RunConfig)| {
        let mut config = small();
        change(&mut config);
        Fit::new(config, &data).err().unwrap()
    };
    assert!(matches!(refused(&|config| config.lora.rank = 2), TrainError::NeedsRun));
    assert!(matches!(refused(&|config| config.train.reference = "runs/a".into()), TrainError::NeedsRun));
    assert!(matches!(refused(&|config| config.train.batch_size = 0), TrainError::Config(_)));
    assert!(matches!(refused(&|config| config.model.n_head = 0), TrainError::Config(_)));
    let long = refused(&|config| config.model.block_size = 100_000);
    assert!(matches!(long, TrainError::SplitTooShort { split: "training", .. }), "{long}");
    for text in ["", "aaaa"] {
        assert!(Dataset::from_text(text, &DataConfig::default()).is_err(), "{text:?}");
    }
    let file = || "other.txt".to_owned();
    for (key, config) in [
        ("data.val", DataConfig { val: file(), ..DataConfig::default() }),
        ("data.tokenizer_path", DataConfig { tokenizer_path: file(), ..DataConfig::default() }),
    ] {
        let error = Dataset::from_text(&text(), &config).unwrap_err();
        assert!(matches!(error, TrainError::Config(_)) && error.to_string().contains(key), "{error}");
    }
}
