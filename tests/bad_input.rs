//! What the program refuses: each with a message that says what to do, exit code 1 or 2, and nothing left behind.

use crate::common::{Place, SMALL, assert_same, failure};

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
        insta::assert_snapshot!(refused(&Place::new(), &["--data", "none.txt"], 1), @"there is no corpus at `none.txt`: no file or folder of that name (looked in HERE); give a file (UTF-8 text, .jsonl or .parquet, or a .gz or .zst of them), a folder of such files, or a glob such as 'texts/*.txt'");
    }

    #[test]
    fn a_public_corpus_that_was_not_fetched_yet() {
        let place = Place::new();
        let message = failure(place.tinygpt().args(["train", "--config", "shakespeare-small"]), 1);
        assert!(message.contains("; `tinygpt data fetch tinyshakespeare` downloads it to data/"), "{message}");
    }

    #[test]
    fn a_glob_without_a_match() {
        insta::assert_snapshot!(refused(&Place::new(), &["--data", "none/*.txt"], 1), @"no file matches `none/*.txt`: the glob is relative to the current folder; quote it so that the shell leaves it alone");
    }

    #[test]
    fn a_folder_without_text() {
        let place = Place::new();
        place.write("texts/a.bin", "abc");
        insta::assert_snapshot!(refused(&place, &["--data", "texts"], 1), @"no file matches `texts`: the folder holds no .txt, .md, .jsonl or .parquet file, nor a .gz or .zst of one; name the files by a glob if they are called otherwise");
    }

    #[test]
    fn an_empty_corpus() {
        insta::assert_snapshot!(refused_corpus(b""), @"the corpus `a.txt` is empty: there is no text in it");
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
        insta::assert_snapshot!(message.trim_end(), @"error: there is no configuration none.toml here or in configs/, and the recipes are tiny, shakespeare-small-fast, shakespeare-fast, shakespeare-fast-5min, shakespeare-fast-10min, shakespeare-baby-fast, shakespeare-small, shakespeare-baby, finetune-gpt2; `tinygpt config` prints one");
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
        insta::assert_snapshot!(refused_set("model.layers=3"), @"--set model.layers=3: unknown key `model.layers`; did you mean `model.n_layer`?; `tinygpt config` lists all keys");
    }

    #[test]
    fn a_value_of_the_wrong_type() {
        insta::assert_snapshot!(refused_set("train.max_steps=many"), @"--set train.max_steps=many: `train.max_steps` must be a whole number, not a string");
        insta::assert_snapshot!(refused_set("data.tokenizer=word"), @r#"--set data.tokenizer=word: `data.tokenizer` must be "char" or "bpe", not "word""#);
    }

    #[test]
    fn heads_that_do_not_divide_the_channels() {
        insta::assert_snapshot!(refused_set("model.n_embd=15"), @"--set model.n_embd=15: `model.n_embd` = 15: must be a multiple of n_head = 2");
        assert!(refused_set("model.n_head=3").starts_with("--set model.n_head=3: `model.n_embd` = 16: "));
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

    /// Before the corpus is looked for, and so before anything is written.
    #[test]
    #[cfg(target_os = "linux")]
    fn a_model_that_no_machine_holds() {
        let place = Place::new();
        for position in ["model.position=learned", "model.position=rope"] {
            let huge = ["model.n_embd=16384", "model.n_head=1", "model.block_size=16777216", position];
            let mut args: Vec<&str> = huge.iter().flat_map(|item| ["--set", item]).collect();
            args.extend(["--data", "none.txt"]);
            let message = refused(&place, &args, 1);
            assert!(message.starts_with("training needs at least "), "{message}");
            assert!(message.contains(" GiB is there: ") && message.contains("; lower "), "{message}");
        }
        assert_eq!(place.names("."), ["small.toml"]);
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
        place.write("thesis/train.toml", SMALL);
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
        insta::assert_snapshot!(resume("thesis").trim_end(), @"error: thesis is not a run or a model folder: it has no train.toml");
        insta::assert_snapshot!(resume("nowhere").trim_end(), @"error: nowhere is not a run or a model folder: there is no such folder");
        let message = failure(place.tinygpt().args(["train", "--resume"]), 1);
        assert!(message.contains("there is no run in runs/ yet"), "{message}");
        let message = failure(place.tinygpt().args(["train", "--resume", "--config", "small"]), 1);
        assert!(message.contains("there is no run runs/small-N yet"), "{message}");
        assert_eq!(place.names("."), ["small.toml", "thesis"]);
    }

    #[test]
    fn a_checkpoint_that_is_not_a_model() {
        let place = Place::new();
        place.write("thesis/chapter1.txt", "precious").write("file", "x");
        let generate = |folder: &str| failure(place.tinygpt().args(["generate", "--checkpoint", folder]), 1);
        for (folder, reason) in [
            ("nowhere", "nowhere is not a run or a model folder: there is no such folder"),
            ("thesis", "thesis is not a run or a model folder: it has no config.json"),
            ("file", "file: not a GGUF file: it does not begin with"),
        ] {
            let message = generate(folder);
            assert!(message.contains(reason), "{message}");
        }
    }
}
