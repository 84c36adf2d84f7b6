//! `tinygpt bench`, as a user sees it. Times are not asserted: they are the machine's.
#![allow(clippy::unwrap_used, reason = "test code")]

use std::{fs, process::Output};

use assert_cmd::Command;
use serde_json::Value;

fn bench(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tinygpt"));
    command.args(["bench", "sampling"]).args(args).output().unwrap()
}

#[test]
fn the_cells_that_were_asked_for_come_as_json_with_the_devices_that_are_absent() {
    let output = bench(&["--quick", "--rows", "1,3", "--vocab", "1,500", "--rule", "greedy,top-k+top-p", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let value: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    let cells = value["cells"].as_array().unwrap();
    for rows in [1, 3] {
        for vocab in [1, 500] {
            for rule in ["greedy", "top-k+top-p"] {
                for contender in ["host", "device", "candle"] {
                    let found: Vec<_> = cells
                        .iter()
                        .filter(|c| c["rows"] == rows && c["vocab"] == vocab && c["rule"] == rule)
                        .filter(|c| c["contender"] == contender && c["device"] == "cpu")
                        .collect();
                    let [cell] = found.as_slice() else { panic!("{rows} {vocab} {rule} {contender}: {text}") };
                    let [us, limit, share] =
                        ["us_per_row", "limit_us_per_row", "share_of_limit"].map(|key| cell[key].as_f64().unwrap());
                    assert!(us > 0.0 && limit > 0.0 && (share - limit / us).abs() < 1e-9 * share, "{cell}");
                }
            }
        }
    }
    if !cfg!(any(feature = "cuda", feature = "metal")) {
        let absent: Vec<&str> =
            value["absent"].as_array().unwrap().iter().map(|a| a["device"].as_str().unwrap()).collect();
        assert_eq!(absent, ["cuda:0", "metal"]);
        assert!(value["absent"][0]["reason"].as_str().unwrap().contains("built without CUDA"));
    }
}

#[test]
fn people_get_a_table_and_a_plot() {
    let dir = tempfile::tempdir().unwrap();
    let plot = dir.path().join("plot.svg");
    let args = ["--quick", "--rows", "2,4", "--vocab", "1000,2000", "--rule", "top-p", "--plot"];
    let output = bench(&[&args[..], &[plot.to_str().unwrap()]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("of limit  x candle"), "{text}");
    assert_eq!(text.lines().filter(|line| line.contains("  top-p        ")).count(), 12, "{text}");
    let svg = fs::read_to_string(plot).unwrap();
    for word in
        ["top-p, host on cpu", "top-p, device on cpu", "top-p, candle on cpu", "one read", "sampling from 2000 logits"]
    {
        assert!(svg.contains(word), "{word}");
    }
}

#[test]
fn cells_that_make_no_sense_are_refused() {
    for args in
        [&["--rows", "0"][..], &["--rows", "1025"], &["--vocab", "0"], &["--vocab", "262145"], &["--rule", "best"]]
    {
        assert_eq!(bench(args).status.code(), Some(2), "{args:?}");
    }
}
