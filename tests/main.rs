//! The black-box tests of the built program, one module a file. They are one test binary (the target `cli` of crates/cli),
//! since linking takes longer than most of them run; `cargo test -p tinygpt-cli --test cli sample::` runs a file's.
#![allow(clippy::unwrap_used, reason = "test code")]

mod common;
#[path = "common/recorded.rs"]
mod recorded;

mod bad_input;
mod baseline;
mod bench;
mod cache;
mod chat;
mod compare;
mod constraints;
mod corpora;
mod damage;
mod data;
mod devices;
mod docs;
mod elsewhere;
mod eval;
mod finetune;
mod foreign;
mod generate;
mod gguf;
mod golden;
mod help;
mod hub;
mod lab;
mod loss_chart;
mod own_text;
mod plan;
#[cfg(unix)]
mod progress;
mod report;
mod resume;
mod runs;
mod sample;
mod sampling_flags;
mod score;
#[cfg(feature = "serve")]
mod serve;
#[cfg(feature = "serve")]
mod serve_page;
mod shell;
mod simd;
mod sweep;
mod train;

/// Cargo looks for test targets neither here nor in the crates whose tests are one binary: a file that nothing names would
/// pass without being compiled.
#[test]
fn every_test_file_of_the_workspace_belongs_to_a_test_target() {
    use std::{fs::read_to_string, path::Path};
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for (package, folder) in [
        ("crates/cli", "tests"),
        ("crates/model", "crates/model/tests"),
        ("crates/sampler", "crates/sampler/tests"),
        ("crates/trainer", "crates/trainer/tests"),
    ] {
        let manifest = read_to_string(root.join(package).join("Cargo.toml")).unwrap();
        let main = read_to_string(root.join(folder).join("main.rs")).unwrap();
        let files: Vec<String> = common::names(&root.join(folder))
            .iter()
            .filter_map(|name| name.strip_suffix(".rs").map(str::to_owned))
            .collect();
        assert!(files.len() > 1, "{folder}: {files:?}");
        for file in files.iter().filter(|file| *file != "main") {
            let is_module = main.lines().any(|line| line == format!("mod {file};"));
            let is_target = manifest.lines().any(|line| line == format!("name = \"{file}\""));
            assert!(
                is_module || is_target,
                "{folder}/{file}.rs is no module of {folder}/main.rs and no target of {package}"
            );
        }
    }
}
