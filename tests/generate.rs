//! `tinygpt generate`: the same seed, the same bytes; and text comes out whole, whatever is asked of it.

use std::{io::Read, process::Stdio};

use crate::common::{Place, failure, json, stderr, stdout, trained};
use assert_cmd::Command;
use serde_json::Value;

/// `tinygpt generate` with the shared run, 40 tokens.
fn generate(args: &[&str]) -> Command {
    let mut command = trained().tinygpt();
    command.args(["generate", "--checkpoint", "run"]).args(args);
    if !args.contains(&"--max-new-tokens") {
        command.args(["--max-new-tokens", "40"]);
    }
    command
}

fn samples(value: &Value) -> &Vec<Value> {
    value["samples"].as_array().unwrap()
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_seed_others() {
    let one = stdout(&mut generate(&["--prompt", "Once", "--seed", "42", "--top-p", "0.9"]));
    assert!(one.starts_with("Once"), "{one}");
    assert_eq!(one.chars().count(), 4 + 40 + 1, "the prompt, the tokens, a line break: {one:?}");
    assert_eq!(one, stdout(&mut generate(&["--prompt", "Once", "--seed", "42", "--top-p", "0.9"])));
    assert_ne!(one, stdout(&mut generate(&["--prompt", "Once", "--seed", "43", "--top-p", "0.9"])));
    let threads = ["--prompt", "Once", "--seed", "42", "--top-p", "0.9", "--threads", "1"];
    assert_eq!(one, stdout(&mut generate(&threads)));
}

#[test]
fn the_fifth_of_eight_samples_is_the_one_that_first_sample_4_gives() {
    for more in [&["--top-k", "20"][..], &["--top-p", "0.9", "--window", "half"]] {
        let common = [&["--seed", "9", "--prompt", "Once"], more].concat();
        let all = stdout(generate(&common).args(["--num-samples", "8"]));
        // Line breaks are text too, so the separator is one that no sample holds.
        let all: Vec<&str> = all.split("\n---\n").collect();
        assert_eq!(all.len(), 8);
        let fifth = stdout(generate(&common).args(["--first-sample", "4", "--num-samples", "1"]));
        assert_eq!(fifth, format!("{}\n", all[4]));
        assert_ne!(all[4], all[3]);

        let all = json(generate(&common).args(["--num-samples", "8", "--json"]));
        let fifth = json(generate(&common).args(["--first-sample", "4", "--json"]));
        assert_eq!(samples(&fifth).len(), 1);
        assert_eq!(samples(&fifth)[0], samples(&all)[4]);
    }
}

#[test]
fn samples_beyond_one_batch_are_numbered_on() {
    let all = json(&mut generate(&["--seed", "9", "--num-samples", "20", "--json", "--max-new-tokens", "8"]));
    let numbers: Vec<_> = samples(&all).iter().map(|s| s["sample"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (0..20).collect::<Vec<_>>());
    let late = json(&mut generate(&["--seed", "9", "--first-sample", "17", "--json", "--max-new-tokens", "8"]));
    assert_eq!(samples(&late)[0], samples(&all)[17]);
}

#[test]
fn json_has_the_prompt_the_seed_and_for_each_sample_its_number_text_tokens_and_end() {
    let value = json(&mut generate(&["--prompt", "Once", "--seed", "3", "--json"]));
    assert_eq!(value.as_object().unwrap().keys().collect::<Vec<_>>(), ["prompt", "seed", "samples"]);
    assert_eq!((&value["prompt"], &value["seed"]), (&"Once".into(), &3.into()));
    let sample = &samples(&value)[0];
    assert_eq!(sample.as_object().unwrap().keys().collect::<Vec<_>>(), ["sample", "text", "tokens", "ended_by"]);
    assert_eq!((&sample["sample"], &sample["ended_by"]), (&0.into(), &"length".into()));
    assert_eq!(sample["tokens"].as_array().unwrap().len(), 40);
    let text = sample["text"].as_str().unwrap();
    assert_eq!(stdout(&mut generate(&["--prompt", "Once", "--seed", "3"])), format!("Once{text}\n"));
}

#[test]
fn the_prompt_is_printed_unless_it_is_not_wanted() {
    let args = ["--prompt", "Once", "--seed", "3"];
    let whole = stdout(&mut generate(&args));
    let text = whole.strip_prefix("Once").unwrap();
    assert_eq!(stdout(generate(&args).arg("--no-echo")), text);
    assert_eq!(stdout(generate(&args).arg("--echo")), whole);
    // The last one counts.
    assert_eq!(stdout(generate(&args).args(["--no-echo", "--echo"])), whole);
    let many = stdout(generate(&args).args(["--no-echo", "--num-samples", "2"]));
    assert!(many.starts_with(text) && !many.contains("Once"), "{many}");
    let message = failure(generate(&args).args(["--no-echo", "--json"]), 2);
    assert!(message.contains("--json"), "{message}");
}

#[test]
fn logprobs_are_those_of_the_models_own_distribution_whatever_the_rules() {
    let args = ["--prompt", "Once", "--seed", "3", "--json", "--max-new-tokens", "12"];
    let plain = json(&mut generate(&args));
    let told = json(generate(&args).args(["--logprobs", "3"]));
    let mut without = told.clone();
    without["samples"][0].as_object_mut().unwrap().remove("logprobs");
    assert_eq!(without, plain, "they change nothing");
    let logprobs = samples(&told)[0]["logprobs"].as_array().unwrap();
    assert_eq!(logprobs.len(), 12);
    let tokens = samples(&told)[0]["tokens"].as_array().unwrap();
    let text: String = logprobs.iter().map(|token| token["token"].as_str().unwrap()).collect();
    assert_eq!(text, samples(&told)[0]["text"].as_str().unwrap());
    for (token, id) in logprobs.iter().zip(tokens) {
        assert_eq!(&token["id"], id);
        let top: Vec<f64> = token["top"].as_array().unwrap().iter().map(|t| t["logprob"].as_f64().unwrap()).collect();
        assert!(top.len() == 3 && top.is_sorted_by(|a, b| a >= b) && top[0] <= 0.0, "{token}");
        let own = token["logprob"].as_f64().unwrap();
        assert!(own <= top[0], "{token}");
        if let Some(same) = token["top"].as_array().unwrap().iter().find(|t| t["id"] == token["id"]) {
            assert_eq!(same["logprob"], token["logprob"]);
        }
    }
    // Rules choose other tokens, and change no probability: the first token has one context.
    let first = |more: &[&str]| {
        let all = json(generate(&args).args(["--logprobs", "100000"]).args(more));
        samples(&all)[0]["logprobs"][0]["top"].clone()
    };
    let whole = first(&[]);
    let sum: f64 = whole.as_array().unwrap().iter().map(|t| t["logprob"].as_f64().unwrap().exp()).sum();
    assert!((sum - 1.0).abs() < 1e-6, "{sum}");
    for rules in
        [&["--temperature", "0.3"][..], &["--top-k", "2"], &["--regex", "[0-9]+|[a-z]+"], &["--logit-bias", "3=9"]]
    {
        assert_eq!(first(rules), whole, "{rules:?}");
    }
    assert!(failure(generate(&["--logprobs", "3"]).args(["--prompt", "Once"]), 2).contains("--json"));
}

#[test]
fn temperature_0_is_greedy_and_names_no_seed() {
    let greedy = || generate(&["--prompt", "Once", "--temperature", "0"]);
    assert_eq!(stderr(&mut greedy()), "");
    let text = stdout(&mut greedy());
    assert_eq!(text, stdout(greedy().args(["--seed", "77"])));
    assert_eq!(text, stdout(&mut generate(&["--prompt", "Once", "--top-k", "1", "--seed", "5"])));
}

#[test]
fn a_seed_that_was_not_given_is_printed_and_gives_the_same_text_again() {
    let output = generate(&["--prompt", "Once"]).output().unwrap();
    let notice = String::from_utf8(output.stderr).unwrap();
    let seed = notice.strip_prefix("seed ").unwrap().trim_end();
    assert!(seed.parse::<u64>().is_ok(), "{notice}");
    let again = generate(&["--prompt", "Once", "--seed", seed]).output().unwrap();
    assert_eq!(again.stdout, output.stdout);
    assert!(again.stderr.is_empty());
}

#[test]
fn without_a_checkpoint_the_newest_run_is_taken() {
    let place = Place::new();
    let message = failure(place.tinygpt().args(["generate", "--prompt", "O"]), 1);
    assert!(message.contains("there is no run in runs/ yet: train one with"), "{message}");
    for seed in ["1", "2"] {
        place.train().args(["--seed", seed]).assert().success();
    }
    let text = |checkpoint: &[&str]| {
        let mut command = place.tinygpt();
        stdout(command.args(["generate", "--prompt", "O", "--seed", "1", "--max-new-tokens", "30"]).args(checkpoint))
    };
    assert_eq!(text(&[]), text(&["--checkpoint", "runs/small-2"]));
    let newest = ["generate", "--prompt", "O", "--seed", "1"];
    assert_eq!(stderr(place.tinygpt().args(newest)), "run: runs/small-2\n", "it says which one it took");
    assert_ne!(text(&[]), text(&["--checkpoint", "runs/small-1"]));
}

#[test]
fn a_prompt_comes_from_a_file_byte_for_byte() {
    let place = Place::new().with_run("run");
    place.write("prompt.txt", "Once there\n").write("latin1.txt", b"Onc\xe9");
    let from_file = |file: &str| {
        let mut command = place.tinygpt();
        command.args([
            "generate",
            "--checkpoint",
            "run",
            "--seed",
            "1",
            "--max-new-tokens",
            "9",
            "--prompt-file",
            file,
        ]);
        command
    };
    let text = stdout(&mut from_file("prompt.txt"));
    assert_eq!(text, stdout(&mut generate(&["--prompt", "Once there\n", "--seed", "1", "--max-new-tokens", "9"])));
    let message = failure(&mut from_file("latin1.txt"), 1);
    assert!(message.contains("latin1.txt is not UTF-8: bad byte at offset 3"), "{message}");
    let message = failure(&mut from_file("none.txt"), 1);
    assert!(message.contains("cannot read none.txt"), "{message}");
    let message = failure(from_file("prompt.txt").args(["--prompt", "x"]), 2);
    assert!(message.contains("cannot be used with"), "{message}");
    assert_eq!(stdout(from_file("-").write_stdin("Once there\n")), text, "standard input");
}

#[test]
fn each_line_of_a_file_is_a_prompt_and_gets_the_text_that_it_gets_alone() {
    let place = Place::new().with_run("run");
    place.write("lines.txt", "Once\n\nThere was\n").write("none.txt", "");
    let of_lines = |more: &[&str]| {
        let mut command = place.tinygpt();
        command.args(["generate", "--checkpoint", "run", "--seed", "1", "-n", "9", "--prompt-lines"]).args(more);
        command
    };
    let alone = |prompt: &str| stdout(&mut generate(&["-p", prompt, "--seed", "1", "--max-new-tokens", "9"]));
    let expected = ["Once", "", "There was"].map(alone).join("---\n");
    assert_eq!(stdout(&mut of_lines(&["lines.txt"])), expected);
    assert_eq!(stdout(of_lines(&["-"]).write_stdin("Once\n\nThere was")), expected);
    let lines = stdout(&mut of_lines(&["lines.txt", "--json", "--num-samples", "2"]));
    let values: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(values.iter().map(|value| &value["prompt"]).collect::<Vec<_>>(), ["Once", "", "There was"]);
    assert!(values.iter().all(|value| samples(value).len() == 2));
    let message = failure(&mut of_lines(&["none.txt"]), 1);
    assert!(message.contains("none.txt has no lines"), "{message}");
    failure(&mut of_lines(&["lines.txt", "-p", "x"]), 2);
}

#[test]
fn flags_are_short_take_what_begins_with_a_dash_and_the_last_of_a_repeated_one_counts() {
    let long = ["--prompt", "Once", "--seed", "3", "--max-new-tokens", "20"];
    let text = stdout(&mut generate(&long));
    let repeated = ["--seed", "9", "-p", "There", "--max-new-tokens", "3", "--seed", "3", "-p", "Once", "-n", "20"];
    assert_eq!(stdout(&mut generate(&repeated)), text);
    assert_eq!(stdout(generate(&repeated).args(["--threads", "2", "--threads", "1"])), text);
    // Of those that are repeatable, each one counts.
    let stopped = stdout(generate(&long).args(["--stop", "-never", "--stop", "e"]));
    assert!(stopped.len() < text.len() && !stopped.trim_end()[4..].contains('e'), "{stopped}");
    let message = failure(&mut generate(&["-p", "-é"]), 1);
    assert!(message.contains("character '-' (U+002D)") || message.contains("'é'"), "a prompt, not a flag: {message}");
}

#[test]
fn escapes_are_understood_in_prompts_where_they_are_wanted_and_in_separators() {
    let text = stdout(&mut generate(&["-p", "Once\nthere", "--seed", "3"]));
    assert_eq!(stdout(&mut generate(&["-e", "-p", "Once\\nthere", "--seed", "3"])), text);
    let message = failure(&mut generate(&["-p", "Once\\nthere", "--seed", "3"]), 1);
    assert!(message.contains("character '\\\\'") || message.contains("U+005C"), "{message}");
    let two = stdout(&mut generate(&["--separator", "\\t*\\n", "--num-samples", "2", "--seed", "3"]));
    assert_eq!(two.matches("\n\t*\n\n").count(), 1, "{two:?}");
}

#[test]
fn a_prompt_that_the_model_does_not_see_whole_is_announced() {
    let long = "Once there was a girl. ".repeat(4);
    let told = stderr(&mut generate(&["--prompt", &long, "--seed", "8"]));
    assert_eq!(told, "the prompt has 92 tokens, of which the model sees the last 16\n");
    assert_eq!(stderr(&mut generate(&["--prompt", &long[..16], "--seed", "8"])), "");
}

#[test]
fn a_stop_ends_the_text_before_it() {
    let whole = json(&mut generate(&["--prompt", "Once", "--seed", "4", "--json", "--max-new-tokens", "200"]));
    let whole = samples(&whole)[0]["text"].as_str().unwrap();
    // Two characters that come somewhere in the middle.
    let stop: String = whole.chars().skip(60).take(2).collect();
    let expected = &whole[..whole.find(&stop).unwrap()];
    let args = ["--prompt", "Once", "--seed", "4", "--max-new-tokens", "200"];
    // A line break can be typed as \n, and a backslash as two.
    let typed = stop.replace('\\', "\\\\").replace('\n', "\\n");
    let stopped = json(generate(&args).args(["--json", "--stop", "never said", "--stop", &typed]));
    let sample = &samples(&stopped)[0];
    assert_eq!((&sample["text"], &sample["ended_by"]), (&expected.into(), &"stop".into()));
    assert_eq!(stdout(generate(&args).args(["--stop", &typed])), format!("Once{expected}\n"), "streamed");
    let message = failure(generate(&args).args(["--stop", ""]), 2);
    assert!(message.contains("--stop"), "{message}");
}

#[test]
fn the_separator_between_samples_can_be_chosen_or_left_out() {
    let args = ["--seed", "4", "--num-samples", "3", "--max-new-tokens", "5"];
    assert_eq!(stdout(generate(&args).args(["--separator", "=*="])).matches("\n=*=\n").count(), 2);
    let plain = json(generate(&args).arg("--json"));
    let texts = samples(&plain).iter().map(|s| format!("{}\n", s["text"].as_str().unwrap())).collect::<String>();
    assert_eq!(stdout(generate(&args).args(["--separator", ""])), texts);
}

#[test]
fn text_goes_on_beyond_the_context_with_either_window() {
    let slide = stdout(&mut generate(&["--prompt", "Once", "--seed", "8", "--max-new-tokens", "100"]));
    let half =
        stdout(&mut generate(&["--prompt", "Once", "--seed", "8", "--max-new-tokens", "100", "--window", "half"]));
    assert_eq!((slide.chars().count(), half.chars().count()), (105, 105));
    // Inside the context, of 16 tokens, they are one and the same.
    assert_eq!(slide[..16], half[..16]);
    // A prompt that is longer than the context.
    let long = "Once there was a girl. ".repeat(4);
    for window in ["slide", "half"] {
        let text = stdout(&mut generate(&["--prompt", &long, "--seed", "8", "--window", window]));
        assert!(text.starts_with(&long) && text.chars().count() == long.len() + 41, "{window}: {text}");
    }
    // As many tokens as the context holds, one more and one fewer.
    for n in ["11", "12", "13"] {
        stdout(&mut generate(&["--prompt", "Once", "--seed", "8", "--window", "half", "--max-new-tokens", n]));
    }
}

#[test]
fn no_new_tokens_and_an_empty_prompt_are_no_errors() {
    assert_eq!(stdout(&mut generate(&["--prompt", "Once", "--seed", "1", "--max-new-tokens", "0"])), "Once\n");
    let empty = stdout(&mut generate(&["--prompt", "", "--seed", "1"]));
    assert_eq!(empty, stdout(&mut generate(&["--seed", "1"])));
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    for endless in [
        ["--max-new-tokens", "100000000", "--num-samples", "1"],
        ["--max-new-tokens", "5", "--num-samples", "100000000"],
    ] {
        let mut command = trained().process(&["generate", "--checkpoint", "run", "--seed", "1"]);
        let mut child = command.args(endless).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut out = child.stdout.take().unwrap();
        out.read_exact(&mut [0; 10]).unwrap();
        drop(out);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
    }
}

#[test]
fn a_character_that_the_model_does_not_know_is_named_with_its_place() {
    let message = failure(&mut generate(&["--prompt", "Once thére"]), 1);
    let expected = "error: the prompt: character 'é' (U+00E9) at character index 7 (counting from 0) is not among the ";
    assert!(message.starts_with(expected), "{message}");
    assert!(message.contains("data.tokenizer = \"bpe\""), "{message}");
}

#[test]
fn a_byte_level_vocabulary_writes_characters_of_many_bytes_unbroken() {
    let place = Place::new();
    place.write("a.txt", "Der süße Käse kostet 3 €. Ein 🦀 läuft über 日本語. ".repeat(40));
    let set =
        ["data.tokenizer=bpe", "data.vocab_size=300", "train.max_steps=150", "train.lr=0.01", "train.eval_every=150"];
    let set = set.iter().flat_map(|item| ["--set", item]);
    let result = json(place.train().args(["--data", "a.txt", "--out", "run", "--json"]).args(set));
    let report = |key: &str| result["report"][key].as_f64().unwrap();
    let bits_per_token = report("loss") / std::f64::consts::LN_2;
    assert!(report("bits_per_byte") < bits_per_token, "a token is more than a byte");
    let generate = |more: &[&str]| {
        let mut command = place.tinygpt();
        command.args(["generate", "--checkpoint", "run", "--seed", "1", "--prompt", "Der süße "]).args(more);
        command.args(["--max-new-tokens", "80"]);
        command
    };
    let streamed = stdout(&mut generate(&[]));
    assert!(streamed.chars().any(|c| "ßäü€🦀日本語".contains(c)), "{streamed}");
    let whole = json(&mut generate(&["--json"]));
    let text = samples(&whole)[0]["text"].as_str().unwrap();
    assert_eq!(streamed, format!("Der süße {text}\n"), "streaming breaks no character");
    let memorized = stdout(&mut generate(&["--temperature", "0"]));
    assert!(!memorized.contains('\u{fffd}'), "{memorized}");
    // Any text is known, also what the corpus does not have.
    let mut unseen = place.tinygpt();
    unseen.args(["generate", "--checkpoint", "run", "--seed", "1", "--prompt", "Ω🦜", "--max-new-tokens", "1"]);
    assert!(stdout(&mut unseen).starts_with("Ω🦜"));
}

#[test]
fn arguments_that_make_no_sense_are_refused() {
    for (arg, message) in [
        ("--top-p=1.5", "top_p"),
        ("--top-p=-0.1", "top_p"),
        ("--temperature=-1", "temperature"),
        ("--temperature=nan", "temperature"),
        ("--num-samples=0", "--num-samples"),
        ("--top-k=-3", "--top-k"),
        ("--window=wide", "--window"),
        ("--threads=0", "--threads"),
        ("--device=tpu", "--device"),
    ] {
        let error = failure(&mut generate(&[arg]), 2);
        assert!(error.contains(message), "{arg}: {error}");
    }
}

#[test]
fn samples_are_numbered_to_the_end_of_the_numbers_and_no_further() {
    let last = u64::MAX.to_string();
    stdout(&mut generate(&["--first-sample", &last, "--seed", "1", "--max-new-tokens", "2"]));
    let message = failure(&mut generate(&["--first-sample", &last, "--num-samples", "2", "--seed", "1"]), 2);
    assert!(message.contains("--first-sample"), "{message}");
}

#[test]
fn rounded_weights_give_text_that_repeats_and_no_format_but_those_named() {
    let text = |weights: &str| {
        let mut command = generate(&["--weights", weights, "--seed", "3", "--max-new-tokens", "40", "--json"]);
        samples(&json(&mut command))[0]["text"].as_str().unwrap().to_owned()
    };
    for weights in ["f32", "bf16", "int8", "int4"] {
        assert_eq!(text(weights), text(weights), "{weights}");
        assert!(text(weights).chars().count() >= 40, "{weights}");
    }
    let error = failure(&mut generate(&["--weights", "int3"]), 2);
    assert!(error.contains("--weights"), "{error}");
}

#[test]
fn a_cache_in_bf16_gives_text_that_repeats_among_any_samples_and_is_for_the_cpu() {
    let flags = ["--kv-cache", "bf16", "--seed", "3", "--max-new-tokens", "60", "--window", "half", "--json"];
    let text = |flags: &[&str]| samples(&json(&mut generate(flags)))[0]["text"].as_str().unwrap().to_owned();
    let alone = text(&flags);
    assert_eq!(alone, text(&[&flags[..], &["--num-samples", "5"]].concat()));
    assert!(alone.chars().count() >= 60);
    let error = failure(&mut generate(&["--kv-cache", "int8"]), 2);
    assert!(error.contains("--kv-cache"), "{error}");
}
