//! The sampling rules as flags of `tinygpt generate`.

use std::{collections::HashSet, fs, path::PathBuf, process::Output, sync::OnceLock};

use assert_cmd::Command;
use serde_json::Value;
use tempfile::TempDir;

const CONFIG: &str = "[data]\nstories_bytes = 20000\n[model]\nn_layer = 1\nn_embd = 16\nn_head = 2\nblock_size = 32\n\
                      [train]\nbatch_size = 2\nmax_steps = 4\neval_every = 4\neval_batches = 1\n";

/// One trained run for all tests of this file.
fn trained() -> PathBuf {
    static PLACE: OnceLock<TempDir> = OnceLock::new();
    let place = PLACE.get_or_init(|| {
        let place = tempfile::tempdir().unwrap();
        fs::write(place.path().join("small.toml"), CONFIG).unwrap();
        let mut train = Command::new(env!("CARGO_BIN_EXE_tinygpt"));
        train.current_dir(place.path()).env("TINYGPT_CACHE", place.path().join("cache"));
        train.args(["train", "--config", "small.toml", "--out", "run"]).assert().success();
        place
    });
    place.path().join("run")
}

fn run(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tinygpt"));
    command.arg("generate").arg("--checkpoint").arg(trained());
    let seed = if args.contains(&"--seed") { &[][..] } else { &["--seed", "3"] };
    command.args(seed).args(["--prompt", "Once upon a", "--json"]).args(args).output().unwrap()
}

/// The tokens of each sample.
fn tokens(args: &[&str]) -> Vec<Vec<u64>> {
    let output = run(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    let tokens = |sample: &Value| sample["tokens"].as_array().unwrap().iter().map(|t| t.as_u64().unwrap()).collect();
    value["samples"].as_array().unwrap().iter().map(tokens).collect()
}

#[test]
fn every_rule_gives_the_same_text_alone_and_in_a_batch() {
    for rules in [
        &["--min-p", "0.5"][..],
        &["--repetition-penalty", "1.4", "--presence-penalty", "0.3", "--frequency-penalty", "0.2"],
        &["--logit-bias", "2=4", "--logit-bias", "3=-inf"],
        &["--temperature", "2", "--temperature-end", "0.2"],
        &["--temperature", "2", "--temperature-end", "0.2", "--temperature-schedule", "exponential"],
        &["--adaptive", "0.1"],
        &["--typical-p", "0.8"],
        &["--top-n-sigma", "1.2"],
        &["--xtc-probability", "0.5", "--xtc-threshold", "0.02"],
        &["--dynatemp-range", "0.8", "--dynatemp-exponent", "2"],
        &["--mirostat-tau", "2", "--mirostat-eta", "0.6"],
        &["--dry-multiplier", "2", "--dry-allowed-length", "1", "--dry-range", "20", "--dry-breaker", "e "],
        &["--no-repeat-ngram-size", "2"],
    ] {
        let many = tokens(&[rules, &["--num-samples", "5", "--max-new-tokens", "12"]].concat());
        let one = tokens(&[rules, &["--first-sample", "3", "--max-new-tokens", "12"]].concat());
        assert_eq!(one, many[3..4], "{rules:?}");
    }
}

#[test]
fn a_banned_token_never_comes_and_a_favoured_one_always() {
    let never = tokens(&["--logit-bias", "5=-inf", "--temperature", "3", "--num-samples", "8"]);
    assert!(never.iter().flatten().all(|&token| token != 5));
    let always = tokens(&["--logit-bias", "5=1000", "--max-new-tokens", "6"]);
    assert_eq!(always, [[5; 6]]);
}

#[test]
fn a_large_presence_penalty_repeats_no_token() {
    let sample = &tokens(&["--presence-penalty", "10000", "--max-new-tokens", "10"])[0];
    assert_eq!(sample.iter().collect::<HashSet<_>>().len(), 10);
}

#[test]
fn no_sequence_of_n_tokens_comes_twice_and_the_prompt_counts() {
    let prompt: Vec<u64> = tokens(&["--regex", "Once upon a", "--max-new-tokens", "11"]).remove(0);
    let sample = &tokens(&["--no-repeat-ngram-size", "2", "--temperature", "0", "--max-new-tokens", "60"])[0];
    let text = [&prompt[..], sample].concat();
    assert_eq!(text.windows(2).collect::<HashSet<_>>().len(), text.len() - 1, "{text:?}");
    let free = &tokens(&["--temperature", "0", "--max-new-tokens", "60"])[0];
    assert!(free.windows(2).collect::<HashSet<_>>().len() < 59, "{free:?}");
}

#[test]
fn dry_ends_a_loop_and_a_breaker_lets_it_go_on() {
    let distinct = |args: &[&str]| {
        let args = [&["--temperature", "0", "--max-new-tokens", "60"], args].concat();
        tokens(&args)[0].windows(3).collect::<HashSet<_>>().len()
    };
    let dry = ["--dry-multiplier", "5", "--dry-allowed-length", "1", "--dry-breaker", ""];
    assert!(distinct(&dry) > distinct(&[]), "{} {}", distinct(&dry), distinct(&[]));
    // Every token is a breaker.
    let letters: Vec<String> = (' '..='[').chain(']'..='~').chain(['\n']).map(String::from).collect();
    let breakers: Vec<&str> = letters.iter().flat_map(|letter| ["--dry-breaker", letter]).collect();
    assert_eq!(distinct(&[&dry[..4], &breakers].concat()), distinct(&[]));
}

#[test]
fn xtc_that_always_acts_leaves_the_least_probable_of_the_top_choices() {
    // All tokens are top choices: the least probable one comes, whatever the draw.
    let least = tokens(&["--xtc-probability", "1", "--xtc-threshold", "0", "--max-new-tokens", "5"]);
    let again = tokens(&["--xtc-probability", "1", "--xtc-threshold", "0", "--max-new-tokens", "5", "--seed", "9"]);
    assert_eq!(least, again);
    assert_ne!(least, tokens(&["--temperature", "0", "--max-new-tokens", "5"]));
    assert_eq!(tokens(&["--xtc-probability", "0"]), tokens(&[]));
}

#[test]
fn mirostat_stands_in_the_place_of_the_rules_that_keep_tokens() {
    let narrow = tokens(&["--mirostat-tau", "0.01", "--max-new-tokens", "20"]);
    assert_eq!(narrow, tokens(&["--temperature", "0", "--max-new-tokens", "20"]));
    assert_ne!(tokens(&["--mirostat-tau", "6"]), narrow);
}

#[test]
fn a_schedule_begins_at_the_first_new_token_whatever_the_prompts_length() {
    let moving =
        tokens(&["--temperature", "3", "--temperature-end", "0", "--max-new-tokens", "2", "--num-samples", "16"]);
    let hot = tokens(&["--temperature", "3", "--max-new-tokens", "2", "--num-samples", "16"]);
    let firsts = |samples: &[Vec<u64>]| samples.iter().map(|s| s[0]).collect::<Vec<_>>();
    assert_eq!(firsts(&moving), firsts(&hot));
    // The last token is greedy, so it is a function of the first.
    let seconds: HashSet<_> = moving.iter().map(|s| (s[0], s[1])).collect();
    assert_eq!(seconds.len(), firsts(&moving).iter().collect::<HashSet<_>>().len());
    assert_ne!(moving, hot);
    let flat =
        tokens(&["--temperature", "3", "--temperature-end", "3", "--max-new-tokens", "2", "--num-samples", "16"]);
    assert_eq!(flat, hot);
}

#[test]
fn an_adaptive_threshold_of_zero_is_greedy_and_of_one_does_nothing() {
    assert_eq!(tokens(&["--adaptive", "0"]), tokens(&["--temperature", "0"]));
    assert_eq!(tokens(&["--adaptive", "1"]), tokens(&[]));
}

#[test]
fn rules_that_make_no_sense_are_refused_with_exit_code_2() {
    for (args, message) in [
        (&["--min-p", "2"][..], "min_p is 2"),
        (&["--repetition-penalty", "-1"], "repetition_penalty is -1"),
        (&["--presence-penalty", "nan"], "presence_penalty is NaN"),
        (&["--logit-bias", "4000000000=1"], "--logit-bias: token 4000000000 is not below the vocabulary size"),
        (&["--logit-bias", "x"], "must be ID=VALUE"),
        (&["--adaptive", "-1"], "adaptive is -1"),
        (&["--typical-p", "2"], "typical_p is 2"),
        (&["--top-n-sigma", "-1"], "top_n_sigma is -1"),
        (&["--xtc-probability", "2"], "xtc_probability is 2"),
        (&["--xtc-threshold", "-0.5"], "xtc_threshold is -0.5"),
        (&["--dry-multiplier", "nan"], "dry.multiplier is NaN"),
        (&["--dry-base", "0.5"], "dry.base is 0.5"),
        (&["--dry-allowed-length", "0"], "dry.allowed_length is 0"),
        (&["--dynatemp-range", "-1"], "dynatemp_range is -1"),
        (&["--dynatemp-exponent", "0"], "dynatemp_exponent is 0"),
        (&["--mirostat-eta", "inf"], "mirostat_eta is inf"),
        (&["--mirostat-tau", "5", "--top-k", "40"], "since mirostat replaces top_k"),
        (&["--mirostat-tau", "5", "--xtc-probability", "0.5"], "since mirostat replaces xtc_probability"),
        (&["--temperature-end", "-1"], "the schedule's end temperature is -1"),
        (&["--temperature-end", "0", "--temperature-schedule", "exponential"], "never reaches 0"),
        (&["--temperature-schedule", "exponential"], "--temperature-end"),
    ] {
        let output = run(args);
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && error.contains(message), "{args:?}: {error}");
    }
}
