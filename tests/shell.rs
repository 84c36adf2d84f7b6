//! Completions and manual pages.

use std::{
    io::Write,
    process::{Command, Output, Stdio},
};

use crate::common::{Place, failure, names, stdout};

/// Runs a program of this machine with a text on its standard input; none where it is not installed, which is said.
#[expect(clippy::print_stderr, reason = "how a test says what it skips")]
fn installed(program: &str, args: &[&str], input: &str) -> Option<Output> {
    let child =
        Command::new(program).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let Ok(mut child) = child else {
        eprintln!("skipped: there is no {program} here");
        return None;
    };
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{program}: {output:?}");
    Some(output)
}

#[test]
fn completions_are_scripts_that_their_shells_read() {
    let place = Place::new();
    for (shell, program) in [("bash", "bash"), ("zsh", "zsh"), ("fish", "fish")] {
        let script = stdout(place.tinygpt().args(["completions", shell]));
        assert!(script.contains("tinygpt") && script.contains("generate"), "{script}");
        let flag = if program == "fish" { "--no-execute" } else { "-n" };
        installed(program, &[flag], &script);
    }
    assert!(failure(place.tinygpt().args(["completions", "cmd"]), 2).contains("[possible values: bash, "));
}

#[test]
fn bash_completes_commands_and_flags() {
    let place = Place::new();
    let script = stdout(place.tinygpt().args(["completions", "bash"]));
    for (words, completed) in [("gen", "generate"), ("train --res", "--resume"), ("data sy", "synth")] {
        let words: Vec<&str> = words.split(' ').collect();
        let call = format!(
            "{script}\nCOMP_WORDS=(tinygpt {})\nCOMP_CWORD={}\n_tinygpt tinygpt {} {}\necho \"${{COMPREPLY[@]}}\"\n",
            words.join(" "),
            words.len(),
            words[words.len() - 1],
            if words.len() > 1 { words[words.len() - 2] } else { "tinygpt" },
        );
        if let Some(output) = installed("bash", &["--norc"], &call) {
            assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), completed, "{words:?}");
        }
    }
}

#[test]
fn every_command_has_a_manual_page_that_man_shows() {
    let place = Place::new();
    stdout(place.tinygpt().args(["man", "--dir", "man/man1"]));
    let pages = names(&place.join("man/man1"));
    for page in ["tinygpt.1", "tinygpt-train.1", "tinygpt-data-synth.1", "tinygpt-bench-decode.1"] {
        assert!(pages.iter().any(|name| name == page), "{page}: {pages:?}");
    }
    assert_eq!(place.text("man/man1/tinygpt.1"), stdout(place.tinygpt().arg("man")));
    for page in pages {
        let text = place.text(&format!("man/man1/{page}"));
        assert!(text.starts_with(".ie \\n(.g") || text.contains("\n.TH "), "{page}: {text}");
        if let Some(shown) = installed("man", &["-l", "-"], &text) {
            let (shown, errors) = (String::from_utf8_lossy(&shown.stdout), String::from_utf8_lossy(&shown.stderr));
            assert!(shown.contains("SYNOPSIS") && errors.is_empty(), "{page}: {shown}{errors}");
        }
    }
    place.write("file", "");
    assert!(failure(place.tinygpt().args(["man", "--dir", "file"]), 1).contains("cannot create file"));
}
