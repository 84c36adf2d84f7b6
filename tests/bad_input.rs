//! What the program refuses: each with a message that says what to do, exit code 1 or 2, and nothing left behind.
#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use assert_cmd::Command;
use common::{Place, assert_same, failure, stdout};
use serde_json::json;

/// Training is refused with this message (without `error: ` and the line break), and writes no run.
fn refused(place: &Place, args: &[&str], code: i32) -> String {
    let message = failure(place.train().args(args), code);
    assert!(!place.join("runs").exists(), "a run was begun: {:?}", place.names("runs"));
    assert!(!place.join("run").exists(), "a run was begun: {:?}", place.names("run"));
    let message = message.strip_prefix("error: ").unwrap_or(&message).trim_end();
    message.replace(&place.path().display().to_string(), "HERE")
}

mod corpus {
    use super::*;

    fn refused_corpus(corpus: &[u8]) -> String {
        let place = Place::new();
        place.write("a.txt", corpus);
        let message = refused(&place, &["--data", "a.txt"], 1);
        assert_eq!(message, refused(&place, &["--data", "a.txt", "--out", "run"], 1));
        message
    }

    #[test]
    fn a_missing_corpus() {
        insta::assert_snapshot!(refused(&Place::new(), &["--data", "none.txt"], 1), @"there is no corpus at `none.txt`: no file or folder of that name (looked in HERE); give a UTF-8 text file, a folder with .txt or .md files, or a glob such as 'texts/*.txt'");
    }

    #[test]
    fn a_glob_without_a_match() {
        insta::assert_snapshot!(refused(&Place::new(), &["--data", "none/*.txt"], 1), @"no file matches `none/*.txt`: the glob is relative to the current folder; quote it so that the shell leaves it alone");
    }

    #[test]
    fn a_folder_without_text() {
        let place = Place::new();
        place.write("texts/a.bin", "abc");
        insta::assert_snapshot!(refused(&place, &["--data", "texts"], 1), @"no file matches `texts`: the folder holds no .txt or .md file; name the files by a glob if they are called otherwise");
    }

    #[test]
    fn an_empty_corpus() {
        insta::assert_snapshot!(refused_corpus(b""), @"the corpus `a.txt` is empty: there is nothing to train on");
    }

    #[test]
    fn a_corpus_shorter_than_block_size() {
        insta::assert_snapshot!(refused_corpus(b"Once there was"), @"the training split has 12 tokens, but needs at least 17 (block_size + 1); use a larger corpus, a smaller model.block_size or another data.val_fraction");
    }

    #[test]
    fn a_corpus_whose_held_out_part_is_too_short() {
        let place = Place::new();
        place.write("a.txt", "abcdefghij".repeat(10));
        insta::assert_snapshot!(refused(&place, &["--data", "a.txt", "--set", "data.val_fraction=0.001"], 1), @"the validation split has 1 tokens, but needs at least 2; use a larger corpus, a smaller model.block_size or another data.val_fraction");
    }

    #[test]
    fn a_corpus_of_one_repeated_character() {
        insta::assert_snapshot!(refused_corpus(&b"a".repeat(1000)), @"the corpus has 1 distinct token(s): there is nothing to predict; use a corpus with at least 2");
    }

    #[test]
    fn a_corpus_that_is_not_utf_8() {
        insta::assert_snapshot!(refused_corpus(&[&b"Once "[..], b"th\xe9re was"].concat()), @"`a.txt` is not UTF-8 text: the byte at offset 7 (counting from 0) does not belong to a character; convert the file, for example with `iconv -f latin1 -t utf-8`");
        // A character that the end of the file cuts short; and an offset beyond the first read.
        assert!(refused_corpus(b"Once \xc3").contains("the byte at offset 5 "));
        let late = [&b"x".repeat(3 << 20)[..], b"\xff"].concat();
        assert!(refused_corpus(&late).contains("the byte at offset 3145728 "));
    }
}

mod configuration {
    use super::*;

    fn refused_set(item: &str) -> String {
        refused(&Place::new(), &["--set", item, "--out", "run"], 2)
    }

    #[test]
    fn a_missing_configuration() {
        let place = Place::new();
        let message = failure(place.tinygpt().args(["train", "--config", "none.toml"]), 2);
        insta::assert_snapshot!(message.trim_end(), @"error: there is no configuration none.toml here or in configs/; `tinygpt config` prints one");
        assert!(!place.join("runs").exists());
    }

    #[test]
    fn a_configuration_that_is_not_toml_or_not_text() {
        for (content, part) in [(&b"[train\nx"[..], "bad.toml: not valid TOML"), (b"\xff\xfe", "cannot read bad.toml")]
        {
            let place = Place::new();
            place.write("bad.toml", content);
            let output = place.tinygpt().args(["train", "--config", "bad.toml"]).output().unwrap();
            let message = String::from_utf8(output.stderr).unwrap();
            assert!(matches!(output.status.code(), Some(1 | 2)), "{message}");
            assert!(message.contains(part), "{message}");
            assert!(!place.join("runs").exists());
        }
    }

    #[test]
    fn an_unknown_key() {
        let place = Place::new();
        place.write("bad.toml", "[train]\nmax_step = 5\n");
        let message = failure(place.tinygpt().args(["train", "--config", "bad.toml"]), 2);
        insta::assert_snapshot!(message.trim_end(), @"error: bad.toml: unknown key `train.max_step`; did you mean `train.max_steps`?; `tinygpt config` lists all keys");
        assert!(!place.join("runs").exists());
        insta::assert_snapshot!(refused_set("model.layers=3"), @"small.toml: unknown key `model.layers`; did you mean `model.n_layer`?; `tinygpt config` lists all keys");
    }

    #[test]
    fn a_value_of_the_wrong_type() {
        insta::assert_snapshot!(refused_set("train.max_steps=many"), @"small.toml: `train.max_steps` must be a whole number, not a string");
        insta::assert_snapshot!(refused_set("data.tokenizer=word"), @r#"small.toml: `data.tokenizer` must be "char" or "bpe", not "word""#);
    }

    #[test]
    fn heads_that_do_not_divide_the_channels() {
        insta::assert_snapshot!(refused_set("model.n_embd=15"), @"small.toml: `model.n_embd` = 15: must be a multiple of n_head = 2");
    }

    #[test]
    fn values_out_of_range() {
        for item in [
            "model.n_layer=0",
            "model.n_head=0",
            "model.block_size=0",
            "model.dropout=1",
            "train.batch_size=0",
            "train.lr=-1",
            "train.lr=nan",
            "train.beta2=1",
            "data.val_fraction=1",
            "data.val_fraction=0",
            "data.stories_bytes=0",
            "generate.top_p=1.5",
            "generate.temperature=-1",
            "name=../up",
            "name=",
        ] {
            let key = item.split('=').next().unwrap();
            let message = refused_set(item);
            assert!(message.contains(&format!("`{key}` = ")), "{item}: {message}");
        }
        assert!(
            refused(&Place::new(), &["--set", "data.tokenizer=bpe", "--set", "data.vocab_size=100"], 2)
                .contains("data.vocab_size")
        );
    }

    #[test]
    fn a_device_that_this_build_does_not_have() {
        if !cfg!(feature = "cuda") {
            insta::assert_snapshot!(refused(&Place::new(), &["--device", "cuda"], 2), @"--device cuda:0: this program was built without CUDA; build it with `cargo build --release --features cuda`");
            assert!(refused(&Place::new(), &["--device", "cuda:1"], 2).contains("--device cuda:1"));
        }
        if !cfg!(feature = "metal") {
            assert!(refused(&Place::new(), &["--device", "metal"], 2).contains("--features metal"));
        }
    }
}

mod folders {
    use super::*;

    #[test]
    fn a_full_run_folder_without_resume_or_overwrite() {
        let place = Place::new().with_run("run");
        let before = place.timeless("run");
        insta::assert_snapshot!(failure(place.train().args(["--out", "run"]), 1).trim_end(), @"error: run is not empty: give --resume to go on with the run in it, --overwrite to replace it, or another --out");
        assert_same(&place.timeless("run"), &before);
        // What is wrong with the configuration is found before anything is deleted, and so is a missing corpus.
        failure(place.train().args(["--out", "run", "--overwrite", "--set", "train.lr=-1"]), 2);
        failure(place.train().args(["--out", "run", "--overwrite", "--data", "none.txt"]), 1);
        assert_same(&place.timeless("run"), &before);
    }

    #[test]
    fn overwriting_what_is_not_a_run() {
        let place = Place::new();
        place.write("thesis/chapter1.txt", "precious");
        let message = failure(place.train().args(["--out", "thesis", "--overwrite"]), 1);
        insta::assert_snapshot!(message.trim_end(), @"error: thesis is not a tinygpt run (it lacks train.toml or config.json, or the current folder lies in it), so --overwrite will not delete it; remove it yourself or give another --out");
        // A configuration that happens to be called train.toml makes no run of its folder.
        place.write("thesis/train.toml", common::SMALL);
        let message = failure(place.train().args(["--out", "thesis", "--overwrite"]), 1);
        assert!(message.contains("is not a tinygpt run"), "{message}");
        assert_eq!(place.text("thesis/chapter1.txt"), "precious");
        // Nor can a file be a run.
        place.write("file", "precious");
        failure(place.train().args(["--out", "file", "--overwrite"]), 1);
        failure(place.train().args(["--out", "file"]), 1);
        assert_eq!(place.text("file"), "precious");
    }

    #[test]
    fn resuming_what_is_not_a_run() {
        let place = Place::new();
        place.write("thesis/chapter1.txt", "precious");
        let resume = |out: &str| failure(place.tinygpt().args(["train", "--resume", "--out", out]), 1);
        insta::assert_snapshot!(resume("thesis").trim_end(), @"error: thesis is not a run or a GPT-2 model folder: it has no train.toml");
        insta::assert_snapshot!(resume("nowhere").trim_end(), @"error: nowhere is not a run or a GPT-2 model folder: there is no such folder");
        let message = failure(place.tinygpt().args(["train", "--resume"]), 1);
        assert!(message.contains("there is no run in runs/ yet"), "{message}");
        assert_eq!(place.names("."), ["small.toml", "thesis"]);
    }

    #[test]
    fn a_checkpoint_that_is_not_a_model() {
        let place = Place::new();
        place.write("thesis/chapter1.txt", "precious").write("file", "x");
        let generate = |folder: &str| failure(place.tinygpt().args(["generate", "--checkpoint", folder]), 1);
        for (folder, reason) in [
            ("nowhere", "nowhere is not a run or a GPT-2 model folder: there is no such folder"),
            ("thesis", "thesis is not a run or a GPT-2 model folder: it has no config.json"),
            ("file", "file is not a run or a GPT-2 model folder: "),
        ] {
            let message = generate(folder);
            assert!(message.contains(reason), "{message}");
        }
    }
}

mod damage {
    use super::*;

    /// What `generate`, `eval` and `train --resume` say to this run; each must fail with exit code 1 and name the file.
    fn damaged(place: &Place, file: &str, commands: &[&[&str]]) -> Vec<String> {
        commands
            .iter()
            .map(|args| {
                let message = failure(place.tinygpt().args(*args), 1);
                assert!(message.contains(file), "{args:?}: {message}");
                message
            })
            .collect()
    }

    const GENERATE: &[&str] = &["generate", "--checkpoint", "run", "--seed", "1", "--prompt", "O"];
    const EVAL: &[&str] = &["eval", "run"];
    const RESUME: &[&str] = &["train", "--resume", "--out", "run", "--set", "train.max_steps=90"];

    #[test]
    fn weights_that_are_truncated_foreign_or_missing() {
        let place = Place::new().with_run("run");
        let whole = place.read("run/model.safetensors");
        for content in [
            &whole[..whole.len() - 1],
            &whole[..100],
            &whole[..4],
            b"",
            b"just a text file, not weights",
            b"\xff\xff\xff\xff\xff\xff\xff\xff{}",
        ] {
            place.write("run/model.safetensors", content);
            for message in damaged(&place, "run/model.safetensors", &[GENERATE, EVAL, RESUME]) {
                assert!(message.contains("truncated, or not a safetensors file"), "{message}");
            }
        }
        // Weights of another shape.
        place.write("run/model.safetensors", &whole);
        let config = place.text("run/config.json").replace("\"n_embd\": 16", "\"n_embd\": 32");
        place.write("run/config.json", config);
        for message in damaged(&place, "run/model.safetensors", &[GENERATE, EVAL]) {
            assert!(message.contains("transformer.wte.weight has shape"), "{message}");
        }
    }

    #[test]
    fn weights_of_the_last_update_that_are_truncated() {
        for file in ["run/last/weights-60.safetensors", "run/last/optimizer-60.safetensors"] {
            let place = Place::new().with_run("run");
            let whole = place.read(file);
            place.write(file, &whole[..whole.len() / 2]);
            damaged(&place, file, &[RESUME]);
            std::fs::remove_file(place.join(file)).unwrap();
            damaged(&place, file, &[RESUME]);
            // The best model is whole.
            stdout(place.tinygpt().args(GENERATE));
        }
    }

    #[test]
    fn a_state_of_another_format() {
        let place = Place::new().with_run("run");
        let mut state = place.json("run/last/state.json");
        state["format"] = json!(99);
        place.write("run/last/state.json", state.to_string());
        let message = &damaged(&place, "run/last/state.json", &[RESUME])[0];
        insta::assert_snapshot!(message.trim_end(), @"error: run/last/state.json has format 99, this program reads format 1: use the version of tinygpt that wrote it");
        for content in ["", "{}", "{\"format\": 1}", "[]", "not json"] {
            place.write("run/last/state.json", content);
            damaged(&place, "run/last/state.json", &[RESUME]);
        }
        std::fs::remove_file(place.join("run/last/state.json")).unwrap();
        damaged(&place, "run/last/state.json", &[RESUME]);
    }

    #[test]
    fn descriptions_that_are_broken() {
        for (file, content, commands) in [
            ("run/config.json", "{}", &[GENERATE, EVAL, RESUME][..]),
            ("run/config.json", "{\"model_type\": \"llama\"}", &[GENERATE, EVAL, RESUME]),
            ("run/config.json", "not json", &[GENERATE, EVAL, RESUME]),
            ("run/tokenizer.json", "not json", &[GENERATE, EVAL, RESUME]),
            ("run/tokenizer.json", "{}", &[GENERATE, EVAL, RESUME]),
            ("run/generation_config.json", "[", &[GENERATE]),
            ("run/train.toml", "[train", &[EVAL, RESUME]),
            ("run/train.toml", "format = 99", &[EVAL, RESUME]),
        ] {
            let place = Place::new().with_run("run");
            place.write(file, content);
            damaged(&place, file, commands);
        }
        let place = Place::new().with_run("run");
        let config = place.text("run/config.json").replace("\"format\": 1", "\"format\": 99");
        place.write("run/config.json", config);
        for message in damaged(&place, "run/config.json", &[GENERATE, EVAL, RESUME]) {
            assert!(message.contains("has format 99, this program reads format 1"), "{message}");
        }
    }

    #[test]
    fn a_tokenizer_of_another_model() {
        let place = Place::new();
        for (out, text) in [("run", "the cat sat on the mat. "), ("other", "ABCDEFGHIJKLMNOPQRSTUVWXYZ")] {
            place.write("a.txt", text.repeat(20));
            place.train().args(["--data", "a.txt", "--out", out]).assert().success();
        }
        std::fs::copy(place.join("other/tokenizer.json"), place.join("run/tokenizer.json")).unwrap();
        for temperature in ["0", "1"] {
            let mut generate = place.tinygpt();
            generate.args([
                "generate",
                "--checkpoint",
                "run",
                "--seed",
                "1",
                "--temperature",
                temperature,
                "--prompt",
                "Z",
            ]);
            let output = generate.output().unwrap();
            let message = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(1), "{message}");
            assert!(message.contains("token") && !message.contains("panicked"), "{message}");
        }
    }
}

mod trouble {
    use super::*;

    #[test]
    fn training_that_diverges_is_named_and_the_last_good_state_stays_loadable() {
        let place = Place::new();
        let diverge = ["--out", "run", "--set", "train.lr=1e30", "--set", "train.clip=0"];
        let output = place.train().args(diverge).output().unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(output.stdout.is_empty());
        let error = message.lines().find(|line| line.starts_with("error: ")).unwrap();
        assert!(error.contains("training has diverged; start again with a lower train.lr"), "{error}");
        let finite = |file: &str| {
            let bytes = place.read(file);
            let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            tensors
                .tensors()
                .iter()
                .all(|(_, t)| t.data().chunks(4).all(|x| f32::from_le_bytes(x.try_into().unwrap()).is_finite()))
        };
        let step = place.json("run/last/state.json")["step"].as_u64().unwrap();
        assert!(finite(&format!("run/last/weights-{step}.safetensors")) && finite("run/model.safetensors"));
        for line in place.text("run/metrics.jsonl").lines() {
            serde_json::from_str::<serde_json::Value>(line).unwrap();
        }
        stdout(place.tinygpt().args(["eval", "run"]));
        stdout(place.tinygpt().args(["generate", "--checkpoint", "run", "--seed", "1", "--max-new-tokens", "3"]));
        // It can be resumed, and diverges again at the same update.
        let message = failure(place.tinygpt().args(["train", "--resume", "--out", "run"]), 1);
        assert!(message.contains(error), "{message}");
        // What came before the first update was not done again.
        let metrics = place.text("run/metrics.jsonl");
        assert_eq!(metrics.lines().filter(|line| line.contains("\"kind\":\"eval\"")).count(), 1, "{metrics}");
    }

    /// The program where no file may have more than `blocks` blocks (of 512 or 1024 bytes, as the shell likes): as good
    /// as a full disk.
    #[cfg(unix)]
    fn on_a_full_disk(place: &Place, blocks: &str, args: &[&str]) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -f $0; trap '' XFSZ; exec \"$@\"", blocks, common::PROGRAM]).args(args);
        command.current_dir(place.path()).env("TINYGPT_CACHE", place.join("cache"));
        command
    }

    #[test]
    #[cfg(unix)]
    fn a_full_disk_at_the_start_leaves_no_run() {
        let place = Place::new();
        let train = ["train", "--config", "small.toml"];
        for out in [&[][..], &["--out", "run"]] {
            let message = failure(&mut on_a_full_disk(&place, "1", &[&train, out].concat()), 1);
            assert!(
                message.contains("cannot write run") && message.contains("/train.toml: File too large"),
                "{message}"
            );
            assert_eq!(message.matches("File too large").count(), 1, "the reason is given once: {message}");
        }
        let left: Vec<String> =
            ["run", "runs"].iter().filter(|f| place.join(f).exists()).flat_map(|f| place.names(f)).collect();
        assert_eq!(left, [""; 0]);
        let message =
            failure(&mut on_a_full_disk(&place, "1", &["data", "synth", "--bytes", "9000", "--out", "a.txt"]), 1);
        assert!(message.contains("cannot write a.txt: File too large"), "{message}");
        let message = failure(&mut on_a_full_disk(&place, "0", &[&train[..], &["--data", "small.toml"]].concat()), 1);
        assert!(
            message.contains("cannot write the token cache in `") && message.contains("TINYGPT_CACHE"),
            "{message}"
        );
        let files: Vec<String> = place.names(".").into_iter().filter(|name| place.join(name).is_file()).collect();
        assert_eq!(files, ["small.toml"]);
        assert_eq!(place.names("cache"), [""; 0]);
    }

    #[test]
    #[cfg(unix)]
    fn a_full_disk_in_the_middle_keeps_what_was_saved_before() {
        let place = Place::new().with_run("run");
        let before = place.timeless("run");
        let resume = ["train", "--resume", "--out", "run", "--set", "train.max_steps=90"];
        // Room for the descriptions, but not for weights of 17 KiB.
        let message = failure(&mut on_a_full_disk(&place, "16", &resume), 1);
        assert!(message.contains("error: cannot write run/"), "{message}");
        let after = place.timeless("run");
        for (name, bytes) in before.iter().filter(|(name, _)| name.as_str() != "train.toml") {
            assert_eq!(after.get(name), Some(bytes), "{name}");
        }
        assert_eq!(after.len(), before.len(), "nothing half-written: {:?}", after.keys());
        stdout(place.tinygpt().args(resume));
    }
}
