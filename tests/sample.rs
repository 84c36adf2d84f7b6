//! `tinygpt sample`, as a user sees it.

use std::{fs, path::Path, process::Output};

use assert_cmd::Command;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::{Value, json};

fn sample(input: &str, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tinygpt"));
    command.args(["sample", "--input", "-"]).args(args).write_stdin(input).output().unwrap()
}

/// The rows of the JSON that a run with this exit code prints.
fn rows(input: &str, args: &[&str], code: i32) -> Vec<Value> {
    let output = sample(input, &[args, &["--json"]].concat());
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{error}");
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    value["rows"].as_array().unwrap().clone()
}

/// Standard error of a run that must end with this exit code and print nothing.
fn refused(input: &str, args: &[&str], code: i32) -> String {
    let output = sample(input, args);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(code), &b""[..]), "{error}");
    assert!(!error.contains("panicked"), "{error}");
    error
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

#[test]
fn every_rule_is_off_by_default_and_a_row_tells_what_it_may_give() {
    let row = &rows(r#"{"rows": [[0, 1, "-inf", 1]]}"#, &[], 0)[0];
    assert_eq!(row["kept"], json!([1, 3, 0]));
    let probs = floats(&row["probs"]);
    let total = 2.0 + (-1f64).exp();
    assert!((probs[0] - 1.0 / total).abs() < 1e-6 && (probs[2] - (-1f64).exp() / total).abs() < 1e-6);
    let entropy: f64 = probs.iter().map(|p| -p * p.ln()).sum();
    assert!((row["entropy"].as_f64().unwrap() - entropy).abs() < 1e-9);
    assert_eq!(row["samples"].as_array().unwrap().len(), 1);
}

#[test]
fn all_paths_keep_and_draw_the_same_for_every_rule() {
    let logits: Vec<f64> = (0..300).map(|n| f64::from(n * 7919 % 1000) / 100.0).collect();
    let input = json!({ "rows": [logits, vec![0.0; 50], [5.0, 5.0, -1.0]] }).to_string();
    for rules in [
        &[][..],
        &["--temperature", "0"],
        &["--temperature", "0.3"],
        &["--top-k", "7"],
        &["--top-p", "0.9", "--temperature", "2"],
        &["--min-p", "0.05"],
        &["--top-k", "20", "--top-p", "0.5", "--min-p", "0.1"],
        &[
            "--history",
            "1,1,2",
            "--repetition-penalty",
            "1.5",
            "--presence-penalty",
            "-0.5",
            "--frequency-penalty",
            "0.2",
        ],
        &["--logit-bias", "0=3.5", "--logit-bias", "1=-inf"],
        &["--adaptive", "0.4"],
    ] {
        let more = ["--num-samples", "40", "--seed", "7", "--sequence", "3", "--position", "11"];
        let of = |path| rows(&input, &[rules, &more, &["--path", path]].concat(), 0);
        let oracle = of("oracle");
        for path in ["host", "device"] {
            for (found, oracle) in of(path).iter().zip(&oracle) {
                assert_eq!(found["kept"], oracle["kept"], "{path} {rules:?}");
                assert_eq!(found["samples"], oracle["samples"], "{path} {rules:?}");
                for (a, b) in floats(&found["probs"]).iter().zip(floats(&oracle["probs"])) {
                    assert!((a - b).abs() < 1e-5, "{path} {rules:?}");
                }
            }
        }
    }
}

#[test]
fn the_device_path_names_bad_rows_and_devices_that_are_absent() {
    let bad = r#"{"rows": [[1, "nan"], ["inf", 0], ["-inf", "-inf"], [], [1, 2]]}"#;
    for rules in [&[][..], &["--top-k", "1"], &["--top-p", "0.5"], &["--history", "9", "--presence-penalty", "1"]] {
        let [host, device] = ["host", "device"].map(|path| rows(bad, &[rules, &["--path", path]].concat(), 1));
        for (host, device) in host.iter().zip(&device) {
            assert_eq!((&host["error"], &host["samples"]), (&device["error"], &device["samples"]), "{rules:?}");
        }
    }
    let explicit = rows(r#"{"rows": [[1, 2]]}"#, &["--path", "device", "--device", "cpu"], 0);
    assert_eq!(explicit[0]["samples"], rows(r#"{"rows": [[1, 2]]}"#, &[], 0)[0]["samples"]);
    for (args, message) in [
        (&["--device", "cpu"][..], "--device is where --path device draws"),
        (&["--path", "device", "--device", "tpu"], "must be auto, cpu, cuda, cuda:N or metal"),
        #[cfg(not(feature = "cuda"))]
        (&["--path", "device", "--device", "cuda"], "built without CUDA"),
    ] {
        assert!(refused("not read", args, 2).contains(message), "{args:?}");
    }
}

#[test]
fn a_draw_depends_on_its_sequence_and_position_alone() {
    let (a, b) = ("[0.5, 1, 2, 1.5, 0, 1]", "[3, 3, 3, 3, 3, 3, 3]");
    let both = rows(&format!(r#"{{"rows": [{a}, {b}]}}"#), &["--num-samples", "30", "--seed", "1"], 0);
    let second = rows(&format!(r#"{{"rows": [{b}]}}"#), &["--num-samples", "30", "--seed", "1", "--sequence", "1"], 0);
    assert_eq!(both[1], second[0]);
    let later = rows(
        &format!(r#"{{"rows": [{b}]}}"#),
        &["--num-samples", "5", "--seed", "1", "--sequence", "1", "--position", "20"],
        0,
    );
    assert_eq!(both[1]["samples"].as_array().unwrap()[20..25], later[0]["samples"].as_array().unwrap()[..]);
    let last = u64::MAX.to_string();
    assert_eq!(
        rows(
            &format!(r#"{{"rows": [{a}, {b}]}}"#),
            &["--num-samples", "3", "--sequence", &last, "--position", &last],
            0
        )
        .len(),
        2
    );
}

#[test]
fn a_bad_row_is_an_error_in_its_place_and_the_others_are_unharmed() {
    let bad = r#"[1, "nan"], ["inf", 0], ["-inf", "-inf"], [], ["one"], 7, [1, null]"#;
    let mixed = rows(&format!(r#"{{"rows": [[1, 2, 3], {bad}, [3, 2]]}}"#), &["--seed", "5"], 1);
    for (row, message) in [
        (1, "row 1: the logit of token 1 is NaN"),
        (2, "row 2: the logit of token 0 is +infinity"),
        (3, "row 3: none of the 2 logits is finite, so no token can be drawn"),
        (4, "row 4: none of the 0 logits is finite, so no token can be drawn"),
        (5, "row 5: entry 0 must be a number, \"inf\", \"-inf\" or \"nan\""),
        (6, "row 6: must be an array of numbers"),
        (7, "row 7: entry 1 must be a number, \"inf\", \"-inf\" or \"nan\""),
    ] {
        assert_eq!(mixed[row], json!({ "error": message }));
    }
    let good = rows(r#"{"rows": [[1, 2, 3]]}"#, &["--seed", "5"], 0);
    assert_eq!(mixed[0], good[0]);
    assert_eq!(mixed[8], rows(r#"{"rows": [[3, 2]]}"#, &["--seed", "5", "--sequence", "8"], 0)[0]);
    let output = sample(r#"{"rows": [["nan"]]}"#, &["--json"]);
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "error: 1 of 1 rows cannot be drawn from\n");
}

#[test]
fn weights_are_drawn_with_and_without_replacement() {
    let input = r#"{"rows": [[1, 0, 3], [5, 5, 5]]}"#;
    let without = rows(input, &["--kind", "weights", "--num-samples", "2"], 0);
    assert_eq!(without[0].as_object().unwrap().keys().collect::<Vec<_>>(), ["probs", "samples"]);
    assert_eq!(without[0]["probs"], json!([0.25, 0.75]));
    let mut drawn = floats(&without[0]["samples"]);
    drawn.sort_by(f64::total_cmp);
    assert_eq!(drawn, [0.0, 2.0]);
    let with = rows(input, &["--kind", "weights", "--num-samples", "4000", "--replacement"], 0);
    let twos = floats(&with[0]["samples"]).iter().filter(|&&n| n == 2.0).count();
    assert!((2900..3100).contains(&twos), "{twos}");
}

#[test]
fn bad_weights_name_the_row_and_the_reason() {
    let bad = rows(
        r#"{"rows": [[1, -1], [0, 0], [1, 0], [1], ["inf"], [1, 2]]}"#,
        &["--kind", "weights", "--num-samples", "2"],
        1,
    );
    for (row, message) in [
        (0, "row 0: weight 1 is -1, but must be a finite number of at least 0"),
        (1, "row 1: the sum of the 2 weights is 0, so nothing can be drawn"),
        (2, "row 2: cannot draw 2 without replacement, as only 1 of the weights are not zero"),
        (3, "row 3: cannot draw 2 of 1 weights without replacement"),
        (4, "row 4: weight 0 is inf, but must be a finite number of at least 0"),
    ] {
        assert_eq!(bad[row]["error"], message);
    }
    assert!(bad[5]["samples"].is_array());
    let none = rows(r#"{"rows": [[1]]}"#, &["--kind", "weights", "--num-samples", "0"], 1);
    assert_eq!(none[0]["error"], "num_samples is 0, but must be at least 1");
}

/// Fails where a count is further from its expectation than five standard deviations.
fn assert_law(drawn: &[f64], tokens: &[f64], probs: &[f64]) {
    for (token, p) in tokens.iter().zip(probs) {
        let expected = p * drawn.len() as f64;
        let count = drawn.iter().filter(|&n| n == token).count() as f64;
        assert!((count - expected).abs() < 5.0 * (expected * (1.0 - p)).sqrt(), "{token}: {count}, {expected}");
    }
    assert!(drawn.iter().all(|n| tokens.contains(n)), "only what may be drawn");
}

#[test]
fn gumbel_noise_draws_what_the_rules_keep_with_the_same_law() {
    let input = r#"{"rows": [[0, 1, "-inf", 1.5, -1, 0.5]]}"#;
    let draw = |count: &str, more: &[&str]| {
        let rules = ["--top-k", "4", "--temperature", "1.5", "--seed", "3", "--num-samples", count];
        rows(input, &[&rules[..], more].concat(), 0).remove(0)
    };
    let drawn = draw("20000", &["--method", "gumbel"]);
    let inverse = draw("20000", &["--method", "inverse"]);
    assert_eq!(inverse, draw("20000", &[]), "inverse is the default");
    for same in ["kept", "probs", "entropy"] {
        assert_eq!(drawn[same], inverse[same]);
    }
    assert_ne!(drawn["samples"], inverse["samples"]);
    assert_law(&floats(&drawn["samples"]), &floats(&drawn["kept"]), &floats(&drawn["probs"]));
    let few = drawn["samples"].as_array().unwrap()[..50].to_vec();
    for path in ["oracle", "device"] {
        assert_eq!(draw("50", &["--method", "gumbel", "--path", path])["samples"], json!(few), "{path}");
    }
    assert_eq!(draw("3", &["--method", "gumbel", "--top-p", "0"])["samples"], json!([3, 3, 3]));
}

#[test]
fn gumbel_draws_depend_on_seed_sequence_and_position_alone() {
    let (a, b) = ("[0.5, 1, 2, 1.5, 0, 1]", "[3, 3, 3, 3, 3, 3, 3]");
    let of = |input: &str, args: &[&str]| {
        rows(&format!(r#"{{"rows": [{input}]}}"#), &[&["--method", "gumbel"][..], args].concat(), 0)
    };
    let both = of(&format!("{a}, {b}"), &["--num-samples", "30", "--seed", "1"]);
    assert_eq!(both, of(&format!("{a}, {b}"), &["--num-samples", "30", "--seed", "1"]));
    assert_eq!(both[1], of(b, &["--num-samples", "30", "--seed", "1", "--sequence", "1"])[0]);
    let later = of(b, &["--num-samples", "10", "--seed", "1", "--sequence", "1", "--position", "20"]);
    assert_eq!(both[1]["samples"].as_array().unwrap()[20..], later[0]["samples"].as_array().unwrap()[..]);
    assert_ne!(both[1], of(b, &["--num-samples", "30", "--seed", "2", "--sequence", "1"])[0]);
}

#[test]
fn gumbel_noise_draws_from_weights_as_multinomial_does() {
    let gumbel = ["--kind", "weights", "--method", "gumbel"];
    let with = &rows(
        r#"{"rows": [[1e300, 0, 3e300]]}"#,
        &[&gumbel[..], &["--num-samples", "8000", "--replacement"]].concat(),
        0,
    )[0];
    assert_law(&floats(&with["samples"]), &[0.0, 2.0], &[0.25, 0.75]);
    // Without replacement, each of many rows: the first has the law of the weights, the second that of those left.
    let input = json!({ "rows": vec![[1.0, 0.0, 3.0, 4.0]; 4000] }).to_string();
    let drawn = rows(&input, &[&gumbel[..], &["--num-samples", "2"]].concat(), 0);
    let pairs: Vec<Vec<f64>> = drawn.iter().map(|row| floats(&row["samples"])).collect();
    assert!(pairs.iter().all(|pair| pair[0] != pair[1]));
    let firsts: Vec<f64> = pairs.iter().map(|pair| pair[0]).collect();
    assert_law(&firsts, &[0.0, 2.0, 3.0], &[0.125, 0.375, 0.5]);
    let after_three: Vec<f64> = pairs.iter().filter(|pair| pair[0] == 3.0).map(|pair| pair[1]).collect();
    assert_law(&after_three, &[0.0, 2.0], &[0.25, 0.75]);
    // More draws leave the first ones as they are.
    let more = rows(&input, &[&gumbel[..], &["--num-samples", "3"]].concat(), 0);
    assert!(pairs.iter().zip(&more).all(|(pair, more)| pair[..] == floats(&more["samples"])[..2]));
    // What cannot be drawn from is refused for the same reasons.
    let bad = r#"{"rows": [[1, -1], [0, 0], [1, 0], [1], ["inf"], []]}"#;
    for more in [&["--num-samples", "2"][..], &["--num-samples", "2", "--replacement"], &["--num-samples", "0"]] {
        let [inverse, gumbel] = ["inverse", "gumbel"]
            .map(|method| sample(bad, &[&["--kind", "weights", "--json", "--method", method], more].concat()));
        let errors = |output: &Output| -> Vec<Value> {
            let value: Value = serde_json::from_slice(&output.stdout).unwrap();
            value["rows"].as_array().unwrap().iter().map(|row| row["error"].clone()).collect()
        };
        assert_eq!(errors(&gumbel), errors(&inverse), "{more:?}");
        assert_eq!(gumbel.status.code(), Some(1));
    }
}

#[test]
fn rules_outside_their_range_are_refused_before_anything_is_read() {
    for (args, message) in [
        (&["--temperature", "-1"][..], "temperature is -1, but must be"),
        (&["--temperature", "nan"], "temperature is NaN"),
        (&["--top-p", "1.5"], "top_p is 1.5"),
        (&["--min-p", "-0.5"], "min_p is -0.5"),
        (&["--repetition-penalty", "0"], "repetition_penalty is 0"),
        (&["--logit-bias", "3=inf"], "logit_bias is inf for token 3"),
        (&["--logit-bias", "3"], "must be ID=VALUE"),
        (&["--adaptive", "2"], "adaptive is 2"),
        (&["--num-samples", "99999999999"], "--num-samples"),
        (&["--kind", "weights", "--top-k", "3"], "--kind weights is multinomial"),
        (&["--method", "softmax"], "[possible values: inverse, gumbel]"),
    ] {
        let error = refused("not read", args, 2);
        assert!(error.contains(message), "{args:?}: {error}");
    }
}

#[test]
fn input_that_is_no_rows_is_refused() {
    for bad in ["", "{", "[1, 2]", r#"{"row": []}"#, r#"{"rows": 1}"#, "{\"rows\": [[1e999]]}", "\u{0}"] {
        assert!(refused(bad, &[], 1).starts_with("error: standard input: "), "{bad}");
    }
    assert_eq!(rows(r#"{"rows": []}"#, &[], 0), Vec::<Value>::new());
    let unknown = rows(r#"{"rows": [[1, 2]]}"#, &["--logit-bias", "4294967295=1"], 1);
    assert_eq!(unknown[0]["error"], "row 0: token 4294967295 of the logit_bias is not below the vocabulary size 2");
}

#[test]
fn numbers_come_from_a_file_or_a_tensor_of_a_safetensors_file() {
    let dir = tempfile::tempdir().unwrap();
    let (json, tensors) = (dir.path().join("rows.json"), dir.path().join("rows.safetensors"));
    let input = r#"{"rows": [[1, 2, 3], [0, 5, 0]]}"#;
    fs::write(&json, input).unwrap();
    let f32s: Vec<u8> = [1f32, 2.0, 3.0, 0.0, 5.0, 0.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    let ints: Vec<u8> = [1i64, 2].iter().flat_map(|x| x.to_le_bytes()).collect();
    let views = [
        ("logits", TensorView::new(Dtype::F32, vec![2, 3], &f32s).unwrap()),
        ("deep", TensorView::new(Dtype::F32, vec![1, 2, 3], &f32s).unwrap()),
        ("ints", TensorView::new(Dtype::I64, vec![2], &ints).unwrap()),
    ];
    serialize_to_file(views, None, &tensors).unwrap();
    let run = |path: &Path, args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tinygpt"));
        command.arg("sample").arg("--input").arg(path).arg("--json").args(args).output().unwrap()
    };
    let expected = sample(input, &["--json"]).stdout;
    assert_eq!(run(&json, &[]).stdout, expected);
    assert_eq!(run(&tensors, &["--tensor", "logits"]).stdout, expected);
    for (args, code, message) in [
        (&["--tensor", "nothing"][..], 2, "the file has no such tensor; it has deep, ints, logits"),
        (&[], 2, "--tensor NAME is needed"),
        (&["--tensor", "ints"], 1, "logits must be floats, but tensor ints is I64"),
        (&["--tensor", "ints", "--kind", "weights"], 1, "weights must be floats, but are I64"),
        (&["--tensor", "deep"], 1, "logits must have rank 1 or 2"),
        (&["--tensor", "deep", "--kind", "weights"], 1, "weights must have rank 1 or 2, but have rank 3"),
    ] {
        let output = run(&tensors, args);
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(code) && error.contains(message), "{args:?}: {error}");
    }
    assert_eq!(run(&json, &["--tensor", "logits"]).status.code(), Some(1));
    assert_eq!(run(&dir.path().join("nowhere"), &[]).status.code(), Some(1));
}

#[test]
fn people_get_a_table_with_bars_and_a_plot() {
    let dir = tempfile::tempdir().unwrap();
    let plot = dir.path().join("plot.svg");
    let input = r#"{"rows": [["nan"], [1, 2, 3]]}"#;
    let output = sample(input, &["--num-samples", "100", "--plot", plot.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("row 0: the logit of token 0 is NaN\n"), "{text}");
    assert!(text.contains("row 1: 3 of 3 tokens kept, entropy 0.8324 nats") && text.contains("██"), "{text}");
    assert!(text.contains("... and 76 more; --json lists all"), "{text}");
    let svg = fs::read_to_string(plot).unwrap();
    for word in ["<svg", "row 1: 100 draws", "expected", "observed", "linear", "softmax"] {
        assert!(svg.contains(word), "{word}");
    }
}

#[test]
fn a_plot_is_a_png_where_its_name_says_so_and_no_other_name_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let plot = |name: &str| {
        let path = dir.path().join(name);
        (sample(r#"{"rows": [[1, 2, 3]]}"#, &["--plot", path.to_str().unwrap()]), path)
    };
    let (output, path) = plot("plot.png");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(fs::read(path).unwrap().starts_with(b"\x89PNG"));
    let (output, path) = plot("plot.pdf");
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(2) && error.contains("a plot is written as .svg or .png"), "{error}");
    assert!(output.stdout.is_empty() && !path.exists(), "nothing was drawn");
}

#[test]
fn every_row_can_be_plotted() {
    let dir = tempfile::tempdir().unwrap();
    let plot = dir.path().join("plot.svg");
    for (input, args) in [
        ("[0]", &["--num-samples", "0"][..]),
        ("[-1e38, 1e38]", &["--top-k", "1"]),
        (r#"["-inf", -3]"#, &[]),
        ("[1e308, 1e308]", &["--kind", "weights"]),
        ("[0, 1e-320]", &["--kind", "weights"]),
    ] {
        let args = [args, &["--plot", plot.to_str().unwrap()]].concat();
        let output = sample(&format!(r#"{{"rows": [{input}]}}"#), &args);
        assert_eq!(output.status.code(), Some(0), "{input}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(fs::read_to_string(&plot).unwrap().ends_with("</svg>\n"));
        fs::remove_file(&plot).unwrap();
    }
}
