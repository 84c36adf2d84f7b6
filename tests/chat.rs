//! `tinygpt chat`, with its lines from a pipe: what is typed in a terminal goes the same way.

use assert_cmd::Command;

use crate::common::{Place, failure, stderr, stdout, trained};

/// A chat with the shared run of these lines, 20 tokens each.
fn chat(args: &[&str], lines: &str) -> Command {
    let mut command = trained().tinygpt();
    command.args(["chat", "run", "-n", "20", "--seed", "7"]).args(args).write_stdin(lines);
    command
}

/// What `generate` says of the same.
fn generated(args: &[&str]) -> String {
    let mut command = trained().tinygpt();
    stdout(command.args(["generate", "--checkpoint", "run", "-n", "20", "--seed", "7"]).args(args))
}

#[test]
fn each_line_is_a_prompt_and_gets_the_text_of_generate() {
    let expected = ["Once", "", "There was"].map(|prompt| generated(&["-p", prompt])).concat();
    assert_eq!(stdout(&mut chat(&[], "Once\n\nThere was\n")), expected);
    assert_eq!(stdout(&mut chat(&[], "Once\n\nThere was")), expected, "without a line break at the end");
    assert_eq!(stdout(&mut chat(&[], "Once\r\n\r\nThere was\r\n")), expected, "with those of Windows");
    assert_eq!(stdout(&mut chat(&[], "")), "");
    assert_eq!(stderr(&mut chat(&[], "Once\n")), "", "nothing but texts, where a program reads along");
}

#[test]
fn a_prompt_of_several_lines_ends_its_lines_in_a_backslash() {
    let expected = generated(&["-p", "Once\nthere\n"]);
    assert_eq!(stdout(&mut chat(&[], "Once\\\nthere\\\n\n")), expected);
    assert_eq!(stdout(&mut chat(&["-e"], "Once\\nthere\\n\n")), expected, "or, with escapes, has them spelled out");
    assert_eq!(stdout(&mut chat(&[], "Once\\\nthere\\")), generated(&["-p", "Once\nthere\n"]), "at the end");
}

#[test]
fn settings_change_on_the_way_and_the_last_one_counts() {
    let lines = "/temperature 0.5\nOnce\n/seed 8\n/temperature -0\n/n 4\nOnce\n/reset\nOnce\n";
    let expected = [
        generated(&["-p", "Once", "--temperature", "0.5"]),
        generated(&["-p", "Once", "--temperature", "0", "--seed", "8", "-n", "4"]),
        generated(&["-p", "Once"]),
    ];
    assert_eq!(stdout(&mut chat(&[], lines)), expected.concat());
    // Flags of the command line stay, and those without a value are set without one.
    let text = generated(&["-p", "Once", "--no-echo", "--top-k", "3", "--stop", " "]);
    assert_eq!(stdout(chat(&["--top-k", "3"], "/no-echo\n/stop  \nOnce\n").arg("--stop= ")), text);
    let told = stderr(&mut chat(&[], "/settings\n/top-k 5\n/min-p 0.1\n/settings\n"));
    assert!(told.contains("nothing but") && told.ends_with("--top-k=5 --min-p=0.1\n"), "{told}");
}

#[test]
fn again_draws_the_next_sample_and_more_goes_on() {
    let lines = "Once\n/again\n/again\n/more\n";
    let samples = ["0", "1", "2"].map(|first| generated(&["-p", "Once", "--first-sample", first]));
    let last = samples[2].strip_suffix('\n').unwrap();
    let expected = samples.concat() + &generated(&["-p", last]);
    assert_eq!(stdout(&mut chat(&[], lines)), expected);
}

#[test]
fn a_prompt_may_begin_with_what_a_command_does() {
    let place = Place::new();
    place.write("a.txt", "/path/to - a file\n".repeat(200));
    let mut train = place.train();
    train.args(["--data", "a.txt", "--out", "run", "--set", "data.tokenizer=char"]).assert().success();
    let mut chat = place.tinygpt();
    chat.args(["chat", "run", "-n", "0"]).write_stdin("//path\n- a\n/quit\nfile\n");
    assert_eq!(stdout(&mut chat), "/path\n- a\n");
}

#[test]
fn what_goes_wrong_is_told_and_the_chat_goes_on() {
    let lines = "Once\n/temperatur 0.5\n/temperature hot\n/top-p 7\n/weights int8\n/threads 1\n/json-schema none\nthére\nOnce\n";
    let output = chat(&[], lines).output().unwrap();
    let text = generated(&["-p", "Once"]);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), text.repeat(2));
    let told = String::from_utf8(output.stderr).unwrap();
    let expected = [
        "--temperatur",
        "--temperature",
        "top_p",
        "--weights is for",
        "--threads is for",
        "cannot read none",
        "'é'",
        "7 of the",
    ];
    let errors: Vec<&str> = told.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), expected.len(), "{told}");
    for (error, expected) in errors.iter().zip(expected) {
        assert!(error.contains(expected), "{expected}: {error}");
    }
    assert_eq!(output.status.code(), Some(1), "a program that gave the lines is told too");
    for first in ["/again\n", "/more\n"] {
        assert!(String::from_utf8_lossy(&chat(&[], first).output().unwrap().stderr).contains("no text yet"));
    }
    let help = stderr(&mut chat(&[], "/help\n"));
    assert!(["/again", "/more", "/reset", "/quit"].iter().all(|command| help.contains(command)), "{help}");
    failure(&mut chat(&["--top-p", "7"], ""), 2);
    failure(trained().tinygpt().args(["chat", "no-such-run"]), 1);
    let message = failure(chat(&[], "").write_stdin(&b"Onc\xe9\n"[..]), 1);
    assert!(message.contains("UTF-8"), "{message}");
}

#[test]
fn without_a_run_the_newest_is_taken_and_named_and_so_is_a_seed_that_was_not_given() {
    let place = Place::new();
    place.train().assert().success();
    let mut chat = place.tinygpt();
    let output = chat.args(["chat", "-n", "5"]).write_stdin("Once\n").output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    let seed = told.strip_prefix("run: runs/small-1\nseed ").unwrap_or_else(|| panic!("{told}")).trim_end();
    let args = ["generate", "--checkpoint", "runs/small-1", "-p", "Once", "-n", "5", "--seed", seed];
    assert_eq!(stdout(place.tinygpt().args(args)).into_bytes(), output.stdout);
}

#[test]
fn the_seed_is_told_before_the_first_text_that_draws_and_once() {
    let mut chat = trained().tinygpt();
    let lines = "Once\n/temperature 1\nOnce\n/again\n/seed 5\nOnce\n";
    let output = chat.args(["chat", "run", "-n", "20", "--temperature", "0"]).write_stdin(lines).output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    let seed = told.strip_prefix("seed ").unwrap_or_else(|| panic!("{told}")).trim_end();
    // The run has a temperature of its own, which a flag and `/temperature` replace.
    let bold = ["--temperature", "1"];
    let again = ["--temperature", "1", "--first-sample", "1"];
    let drawn = |args: &[&str]| generated_by(seed, args);
    let expected = [drawn(&["--temperature", "0"]), drawn(&bold), drawn(&again), generated_by("5", &bold)];
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected.concat());
    let mut greedy = trained().tinygpt();
    greedy.args(["chat", "run", "-n", "20", "--temperature", "0"]).write_stdin("Once\n");
    assert_eq!(stderr(&mut greedy), "");
}

/// What `generate` says of "Once" by a seed.
fn generated_by(seed: &str, args: &[&str]) -> String {
    let mut command = trained().tinygpt();
    stdout(command.args(["generate", "--checkpoint", "run", "-n", "20", "-p", "Once", "--seed", seed]).args(args))
}
