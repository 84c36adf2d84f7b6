//! What the black-box tests share: the built program, a folder for each test, and one trained run for all tests.
#![allow(clippy::unwrap_used, reason = "test code")]

pub(crate) mod http_server;
pub(crate) mod hub_server;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Output,
    sync::OnceLock,
};

use assert_cmd::Command;
use serde_json::Value;
use tempfile::TempDir;

/// The built program.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_tinygpt");

/// A configuration that trains in a fraction of a second.
pub(crate) const SMALL: &str = r#"[data]
stories_bytes = 20000
[model]
n_layer = 1
n_embd = 16
n_head = 2
block_size = 16
[train]
batch_size = 2
max_steps = 6
warmup_steps = 2
eval_every = 3
eval_batches = 2
log_every = 1
"#;

/// A folder that the program runs in; `small.toml` is there, and nothing outside it is touched.
pub(crate) struct Place {
    dir: TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("small.toml"), SMALL).unwrap();
        Self { dir }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> &Self {
        let path = self.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
        self
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    pub(crate) fn text(&self, name: &str) -> String {
        String::from_utf8(self.read(name)).unwrap()
    }

    pub(crate) fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&self.read(name)).unwrap()
    }

    /// The program, in this folder.
    pub(crate) fn tinygpt(&self) -> Command {
        let mut command = Command::new(PROGRAM);
        let inherited = ["RAYON_NUM_THREADS", "CANDLE_NUM_THREADS", "RUST_BACKTRACE"];
        inherited.iter().for_each(|name| {
            command.env_remove(name);
        });
        command
            .current_dir(self.path())
            .env("TINYGPT_CACHE", self.join("cache"))
            .env("HOME", self.path())
            .env("COLUMNS", "100")
            .timeout(std::time::Duration::from_secs(120));
        command
    }

    /// The same as a plain process, to be watched, signalled or cut off.
    pub(crate) fn process(&self, args: &[&str]) -> std::process::Command {
        let mut command = std::process::Command::new(PROGRAM);
        command.args(args).current_dir(self.path()).env("TINYGPT_CACHE", self.join("cache")).env("HOME", self.path());
        command
    }

    /// `tinygpt train --config small.toml`.
    pub(crate) fn train(&self) -> Command {
        let mut command = self.tinygpt();
        command.args(["train", "--config", "small.toml"]);
        command
    }

    /// The names in a folder, sorted.
    pub(crate) fn names(&self, folder: &str) -> Vec<String> {
        names(&self.join(folder))
    }

    /// A copy of the shared run, to be damaged.
    pub(crate) fn with_run(self, name: &str) -> Self {
        copy(&trained().join("run"), &self.join(name));
        self
    }

    /// Every file below a folder, by name, but for those that hold times: `metrics.jsonl` and `state.json`.
    pub(crate) fn timeless(&self, run: &str) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        for folder in ["", "last", "adapter", "base"].map(|folder| format!("{run}/{folder}")) {
            if !self.join(&folder).is_dir() {
                continue;
            }
            for name in self.names(&folder) {
                let path = format!("{folder}/{name}");
                if self.join(&path).is_file() && !["metrics.jsonl", "state.json"].contains(&name.as_str()) {
                    files.insert(path[run.len()..].trim_matches('/').to_owned(), self.read(&path));
                }
            }
        }
        files
    }
}

/// A run of the built-in corpus, trained once: `run` in this place, which nobody may change.
pub(crate) fn trained() -> &'static Place {
    static TRAINED: OnceLock<Place> = OnceLock::new();
    TRAINED.get_or_init(|| {
        let place = Place::new();
        let mut train = place.train();
        train.args(["--out", "run", "--set", "train.max_steps=60", "--set", "train.eval_every=30"]);
        train.assert().success();
        place
    })
}

pub(crate) fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for name in names(from) {
        let (from, to) = (from.join(&name), to.join(&name));
        if from.is_dir() {
            copy(&from, &to);
        } else {
            fs::copy(from, to).unwrap();
        }
    }
}

/// Two folders hold the same files with the same bytes; names those that differ.
pub(crate) fn assert_same(one: &BTreeMap<String, Vec<u8>>, two: &BTreeMap<String, Vec<u8>>) {
    assert_eq!(one.keys().collect::<Vec<_>>(), two.keys().collect::<Vec<_>>());
    let differing: Vec<_> = one.keys().filter(|name| one[*name] != two[*name]).collect();
    assert!(differing.is_empty(), "these files differ: {differing:?}");
}

/// Standard output of a command that must succeed.
pub(crate) fn stdout(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Standard error of a command that must succeed.
pub(crate) fn stderr(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// Standard output of a command that must succeed, as one JSON object on one line.
pub(crate) fn json(command: &mut Command) -> Value {
    let text = stdout(command);
    assert_eq!(text.matches('\n').count(), 1, "one line: {text}");
    let value: Value = serde_json::from_str(&text).unwrap();
    assert!(value.is_object());
    value
}

/// The message of a command that must fail with this exit code, print nothing to standard output, and not panic.
pub(crate) fn failure(command: &mut Command, code: i32) -> String {
    let output = command.output().unwrap();
    refusal(&output, code)
}

/// The message of a failed process.
pub(crate) fn refusal(output: &Output, code: i32) -> String {
    let message = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{message}");
    assert!(output.stdout.is_empty(), "{:?}", String::from_utf8_lossy(&output.stdout));
    assert!(!message.contains("panicked"), "{message}");
    message
}
