//! Texts as people have them: records, compressed files, documents, standard input, and tokens of other programs.

use std::{fs, path::Path};

use serde_json::{Value, json};

use crate::common::{Place, assert_same, failure, json, refusal, stderr, stdout};

/// Documents of two lines, some with what must not become a token.
fn documents() -> Vec<String> {
    (0..40)
        .map(|n| match n {
            7 => "a text about <|endoftext|>\nand its end".to_owned(),
            n => format!("the {n}. cat sat\non mat {}", n * n),
        })
        .collect()
}

/// The same as JSON lines, under a key.
fn json_lines(key: &str) -> String {
    documents().iter().map(|text| format!("{}\n", json!({ "id": 1, key: text }))).collect()
}

/// Trains a run on something; gives standard error.
fn train(place: &Place, out: &str, args: &[&str]) -> String {
    stderr(place.train().args(["--out", out]).args(args))
}

/// What `data info` says of something.
fn info(place: &Place, args: &[&str]) -> Value {
    json(place.tinygpt().args(["data", "info", "--json"]).args(args))
}

/// The files of tokens in the cache.
fn cached_tokens(place: &Place) -> Vec<String> {
    place.names("cache").into_iter().filter(|name| name.starts_with("tokens-")).collect()
}

#[test]
fn records_train_documents_and_text_of_the_same_documents_is_the_same_run() {
    let place = Place::new();
    place.write("a.jsonl", json_lines("text"));
    for (n, text) in documents().iter().enumerate() {
        place.write(&format!("texts/{n:02}.txt"), text);
    }
    let said = train(&place, "lines", &["--data", "a.jsonl"]);
    train(&place, "files", &["--data", "texts", "--set", "data.documents=file"]);
    assert!(place.read("lines/model.safetensors") == place.read("files/model.safetensors"));
    assert_eq!(cached_tokens(&place).len(), 1, "one corpus, encoded once");

    let characters: usize = documents().iter().map(|text| text.chars().count()).sum();
    let tokens = characters + documents().len();
    let training = (tokens as f64 * 0.9) as usize;
    assert!(said.contains(&format!(" {training} training tokens, {} validation tokens", tokens - training)), "{said}");
    let tokenizer = place.json("lines/tokenizer.json");
    assert_eq!(tokenizer["added_tokens"][0]["content"], "<|endoftext|>");
    let end = tokenizer["added_tokens"][0]["id"].as_u64().unwrap();
    assert_eq!(place.json("lines/config.json")["eos_token_id"], end);
    assert_eq!(place.json("lines/tokenizer_config.json")["pad_token"], "<|endoftext|>");
    // A text begins behind the end of another one, and ends where the model says so.
    let generated =
        json(place.tinygpt().args(["generate", "--checkpoint", "lines", "--json", "--max-new-tokens", "400"]));
    for sample in generated["samples"].as_array().unwrap() {
        let tokens = sample["tokens"].as_array().unwrap();
        let place_of_end = tokens.iter().position(|token| token == end);
        assert_eq!(sample["ended_by"] == "stop", place_of_end == Some(tokens.len() - 1), "{sample}");
        assert!(!sample["text"].as_str().unwrap().contains("<|endoftext|>"), "{sample}");
    }
    // An evaluation reads other records as the run read its own.
    let report = json(place.tinygpt().args(["eval", "lines", "--data", "a.jsonl", "--json"]));
    assert_eq!(report["tokens"], tokens - 1);
    let bytes: usize = documents().iter().map(String::len).sum();
    let figure = |key: &str| report[key].as_f64().unwrap();
    let expected = figure("bits_per_token") * (tokens - 1) as f64 / (bytes - 1) as f64;
    assert!((figure("bits_per_byte") / expected - 1.0).abs() < 1e-9, "the end of a document has no bytes: {report}");
}

#[test]
fn a_run_without_documents_is_what_it_always_was() {
    let place = Place::new();
    place.write("a.txt", documents().join("\n"));
    train(&place, "run", &["--data", "a.txt"]);
    assert_eq!(place.json("run/tokenizer.json")["added_tokens"], json!([]));
    let names = cached_tokens(&place);
    let figures = info(&place, &["a.txt"]);
    let hash = &figures["sha256"].as_str().unwrap()[..16];
    assert!(names.len() == 1 && names[0].starts_with(&format!("tokens-v1-{hash}-")), "{names:?}");
}

#[test]
fn bpe_learns_the_token_between_lines_and_a_larger_vocabulary_than_the_text_has_is_told() {
    let place = Place::new();
    place.write("a.txt", documents().join("\n"));
    let set = ["--set", "data.documents=line", "--set", "data.tokenizer=bpe", "--set", "data.vocab_size=5000"];
    let said = train(&place, "run", &[&["--data", "a.txt"][..], &set].concat());
    let tokenizer = place.json("run/tokenizer.json");
    let vocabulary = tokenizer["model"]["vocab"].as_object().unwrap().len();
    assert_eq!(tokenizer["added_tokens"][0]["id"], vocabulary);
    assert!(said.contains(&format!("of data.vocab_size = 5000, {}", vocabulary + 1)), "{said}");
    let lines = documents().join("\n").lines().count();
    let figures = info(&place, &["a.txt", "--documents", "line", "--tokenizer", "run"]);
    assert_eq!((&figures["documents"], &figures["vocab_size"]), (&json!(lines), &json!(vocabulary + 1)));
    stdout(place.tinygpt().args(["train", "--resume", "--out", "run", "--set", "train.max_steps=8"]));
    let small = ["--set", "data.documents=line", "--set", "data.tokenizer=bpe", "--set", "data.vocab_size=256"];
    let message = failure(place.train().args(["--data", "a.txt"]).args(small), 1);
    assert!(message.contains("and <|endoftext|> is one, so it must be at least 257"), "{message}");
}

#[test]
fn documents_from_all_over_the_corpus_are_held_out_where_that_is_wanted() {
    let place = Place::new();
    for (n, text) in documents().iter().enumerate() {
        place.write(&format!("texts/{n:02}.txt"), text);
    }
    // Every fifth, and what others are.
    let held_out = |n: &usize| (n + 1).is_multiple_of(5);
    for (n, text) in documents().iter().enumerate() {
        let folder = if held_out(&n) { "val" } else { "train" };
        place.write(&format!("{folder}/{n:02}.txt"), text);
    }
    let documents_are_files = ["--set", "data.documents=file"];
    let spread = ["--data", "texts", "--set", "data.val_documents=true", "--set", "data.val_fraction=0.2"];
    train(&place, "spread", &[&spread[..], &documents_are_files].concat());
    train(&place, "apart", &[&["--data", "train", "--set", "data.val=val"][..], &documents_are_files].concat());
    assert!(place.read("spread/model.safetensors") == place.read("apart/model.safetensors"));
    let losses = |run: &str| json(place.tinygpt().args(["eval", run, "--json"]))["loss"].clone();
    assert_eq!(losses("spread"), losses("apart"));
    stdout(place.tinygpt().args(["train", "--resume", "--out", "spread", "--set", "train.max_steps=8"]));

    let refused = |args: &[&str]| failure(place.train().args(["--set", "data.val_documents=true"]).args(args), 2);
    assert!(refused(&["--data", "texts"]).contains("data.documents"));
    assert!(refused(&[]).contains("built-in corpus"));
    assert!(
        refused(&[&["--data", "texts", "--set", "data.val=val"][..], &documents_are_files].concat())
            .contains("data.val")
    );
    place.write("one.txt", documents().join("\n"));
    let one = [&["--data", "one.txt", "--set", "data.val_documents=true"][..], &documents_are_files].concat();
    let message = failure(place.train().args(one), 1);
    assert!(message.contains("validation"), "{message}");
}

#[test]
fn tables_of_python_and_compressed_files_are_read() {
    let place = Place::new();
    let table = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/texts.parquet");
    place.write("texts.parquet", fs::read(table).unwrap());
    let figures = info(&place, &["texts.parquet", "--text-key", "content", "--tokenizer", "char"]);
    let texts: Vec<String> = (0..58).map(|n| format!("Document {} says good mörning.\n", n / 2)).collect();
    let bytes: usize = texts.iter().map(String::len).sum();
    assert_eq!((&figures["documents"], &figures["bytes"]), (&json!(58), &json!(bytes)));
    assert_eq!(figures["tokens"].as_u64().unwrap(), figures["characters"].as_u64().unwrap() + 58);
    train(&place, "table", &["--data", "texts.parquet", "--text-key", "content"]);

    let lines: String = texts.iter().map(|text| format!("{}\n", json!({ "content": text }))).collect();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    std::io::Write::write_all(&mut gzip, lines.as_bytes()).unwrap();
    place.write("texts.jsonl.gz", gzip.finish().unwrap());
    train(&place, "lines", &["--data", "texts.jsonl.gz", "--text-key", "content"]);
    let (table, lines) = (place.timeless("table"), place.timeless("lines"));
    assert!(table["model.safetensors"] == lines["model.safetensors"]);
    // Its configuration says what was read, from any folder, and a resumed run needs no flag.
    let toml = place.text("lines/train.toml");
    assert!(toml.contains("text_key = \"content\"") && toml.contains("/texts.jsonl.gz\""), "{toml}");
    stdout(place.tinygpt().args(["train", "--resume", "--out", "lines", "--set", "train.max_steps=8"]));
}

#[test]
fn standard_input_is_a_text_that_a_run_asks_for_again() {
    let place = Place::new();
    let text = documents().join("\n");
    place.write("a.txt", &text);
    train(&place, "file", &["--data", "a.txt"]);
    stdout(place.train().args(["--out", "piped", "--data", "-"]).write_stdin(text.clone()));
    assert!(place.read("file/model.safetensors") == place.read("piped/model.safetensors"));
    let more = ["train", "--resume", "--out", "piped", "--set", "train.max_steps=8"];
    for args in [&more[..], &["eval", "piped"]] {
        let message = failure(place.tinygpt().args(args), 1);
        assert!(message.contains("the text of piped came from standard input"), "{message}");
    }
    stdout(place.tinygpt().args(more).args(["--data", "-"]).write_stdin(text.clone()));
    let figures = json(place.tinygpt().args(["data", "info", "-", "--json"]).write_stdin(text.clone()));
    assert_eq!(figures["bytes"], text.len());
    let message = failure(place.train().args(["--data", "-"]).write_stdin(""), 1);
    assert!(message.contains("the corpus `-` is empty"), "{message}");
    let message = failure(place.tinygpt().args(["sweep", "--config", "small.toml", "--data", "-"]), 2);
    assert!(message.contains("--data - can be read once"), "{message}");
}

#[test]
fn a_mark_of_byte_order_is_no_character_of_a_text() {
    let place = Place::new();
    let text = documents().join("\n");
    place.write("plain.txt", &text).write("marked.txt", format!("\u{feff}{text}"));
    train(&place, "plain", &["--data", "plain.txt"]);
    train(&place, "marked", &["--data", "marked.txt"]);
    assert!(place.read("plain/model.safetensors") == place.read("marked/model.safetensors"));
    assert!(!place.text("marked/tokenizer.json").contains('\u{feff}'));
}

#[test]
fn a_glob_that_the_shell_resolved_is_the_same_corpus() {
    let place = Place::new();
    place.write("t/a.txt", "the cat sat on the mat. ".repeat(20)).write("t/b.txt", "a dog ran. ".repeat(20));
    train(&place, "glob", &["--data", "t/*.txt"]);
    train(&place, "paths", &["--data", "t/a.txt", "t/b.txt"]);
    train(&place, "other", &["--data", "t/b.txt", "t/a.txt"]);
    assert!(place.read("glob/model.safetensors") == place.read("paths/model.safetensors"));
    assert!(place.read("glob/model.safetensors") != place.read("other/model.safetensors"));
    stdout(place.tinygpt().args(["train", "--resume", "--out", "paths", "--set", "train.max_steps=8"]));
}

#[test]
fn info_tells_what_a_corpus_is_like() {
    let place = Place::new();
    place.write("a.txt", "aaaaaaaaaaaaa\nbbbbbbbbbbbbbbb\nccccccccccccccccccccccé\t\n");
    insta::assert_snapshot!(stdout(place.tinygpt().args(["data", "info", "a.txt", "--tokenizer", "char"])), @r"
    files       1
    documents   not cut: --documents file, line or marker
    bytes       56
    characters  55, 6 different
    rare        3 characters occur less than 10 times: ⇥ U+0009 x1, é U+00E9 x1, ⏎ U+000A x3
    tokens      55, 1.02 bytes a token, vocabulary 6
    sha256      152d7e6045a585d9702856bf5e66c87aa383562a799f1ad573ce6c717e793089
    ");
    let text = stdout(place.tinygpt().args(["data", "info", "a.txt", "--documents", "line"]));
    assert!(text.contains("documents   3, of 15 characters in the median and at most 24\n"), "{text}");
    let figures = info(&place, &["a.txt", "--documents", "line"]);
    assert_eq!(
        (&figures["documents"], &figures["median_document"], &figures["longest_document"], &figures["tokens"]),
        (&json!(3), &json!(15), &json!(24), &Value::Null)
    );
    assert_eq!(figures["rare_characters"][1], json!({ "char": "é", "code": "U+00E9", "count": 1 }));
    let message = failure(place.tinygpt().args(["data", "info", "none.txt"]), 1);
    assert!(message.contains("there is no corpus at `none.txt`"), "{message}");
}

#[test]
fn tokens_go_to_nanogpt_and_llm_c_and_come_back_as_the_same_run() {
    let place = Place::new();
    place.write("a.txt", documents().join("\n"));
    train(&place, "text", &["--data", "a.txt"]);
    let tokens = |out: &str, more: &[&str]| {
        let args = ["data", "tokens", "a.txt", "--tokenizer", "text", "--out", out, "--json"];
        json(place.tinygpt().args(args).args(more))["tokens"].as_u64().unwrap()
    };
    let number = tokens("nano.bin", &[]);
    assert_eq!(tokens("llm.bin", &["--format", "llm.c"]), number);
    assert_eq!(number as usize, documents().join("\n").chars().count());
    let (nano, llm) = (place.read("nano.bin"), place.read("llm.bin"));
    assert_eq!((nano.len(), &llm[1024..]), (2 * number as usize, &nano[..]));
    assert_eq!(llm[..4], 20_240_520i32.to_le_bytes());
    assert_eq!(llm[8..12], (number as i32).to_le_bytes());

    for file in ["nano.bin", "llm.bin"] {
        train(&place, file.trim_end_matches(".bin"), &["--data", file, "--tokenizer", "text"]);
    }
    let [text, nano, llm] = ["text", "nano", "llm"].map(|run| {
        let mut files = place.timeless(run);
        files.remove("train.toml");
        files
    });
    assert_same(&text, &nano);
    assert_same(&text, &llm);
    stdout(place.tinygpt().args(["train", "--resume", "--out", "nano", "--set", "train.max_steps=8"]));
    let report = |data: &str| json(place.tinygpt().args(["eval", "text", "--data", data, "--json"]));
    let (of_text, of_tokens) = (report("a.txt"), report("nano.bin"));
    for key in ["loss", "bits_per_byte", "bits_per_char", "tokens"] {
        assert_eq!(of_text[key], of_tokens[key], "{key}");
    }
    let figures = info(&place, &["llm.bin", "--tokenizer", "text"]);
    assert_eq!(
        (&figures["tokens"], &figures["format"], &figures["bits"]),
        (&json!(number), &json!("llm.c"), &json!(16))
    );
    let message =
        failure(place.tinygpt().args(["data", "tokens", "a.txt", "--tokenizer", "text", "--out", "nano.bin"]), 1);
    assert!(message.contains("nano.bin exists already: give --overwrite"), "{message}");
}

#[test]
fn what_is_held_out_may_be_a_file_of_its_own() {
    let place = Place::new();
    place.write("a.txt", documents().join("\n")).write("b.txt", "the cat has a zebra. ".repeat(9));
    let said = train(&place, "text", &["--data", "a.txt", "--set", "data.val=b.txt"]);
    let training = documents().join("\n").chars().count();
    assert!(said.contains(&format!(" {training} training tokens, 189 validation tokens")), "{said}");
    for (text, out) in [("a.txt", "train.bin"), ("b.txt", "val.bin")] {
        stdout(place.tinygpt().args(["data", "tokens", text, "--tokenizer", "text", "--out", out]));
    }
    let bin = ["--data", "train.bin", "--tokenizer", "text/tokenizer.json", "--set", "data.val=val.bin"];
    train(&place, "tokens", &bin);
    assert!(place.read("text/model.safetensors") == place.read("tokens/model.safetensors"));
    // Another text to be judged by is another run.
    place.write("b.txt", "the cat has a zebra! ".repeat(9));
    let message =
        failure(place.tinygpt().args(["train", "--resume", "--out", "text", "--set", "train.max_steps=8"]), 1);
    assert!(message.contains("has changed since this run was started"), "{message}");
    let message = failure(place.train().args(["--set", "data.val=b.txt"]), 2);
    assert!(message.contains("`data.val` = b.txt: the built-in corpus holds out stories of its own"), "{message}");
}

#[test]
fn tokens_that_mean_nothing_are_refused() {
    let place = Place::new();
    place.write("a.txt", documents().join("\n"));
    train(&place, "run", &["--data", "a.txt"]);
    let refused = |args: &[&str]| {
        let message = failure(place.train().args(args), 1);
        assert!(!place.join("runs").exists(), "a run was begun");
        message
    };
    place.write("ids.bin", [1, 0].repeat(500));
    assert!(refused(&["--data", "ids.bin"]).contains("name the tokenizer that made them by --tokenizer"));
    let both = refused(&["--data", "a.txt", "ids.bin", "--tokenizer", "run"]);
    assert!(both.contains("`ids.bin` holds tokens: name such a file alone"), "{both}");
    place.write("meta.pkl", b"\x80\x04.");
    for args in [&["--data", "ids.bin"][..], &["--data", "ids.bin", "--tokenizer", "meta.pkl"]] {
        let message = refused(args);
        assert!(message.contains("meta.pkl` is a Python pickle") && message.contains("data.tokenizer"), "{message}");
    }
    let header = |numbers: [i32; 3], ids: usize| {
        let mut bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        bytes.resize(1024 + ids, 0);
        bytes
    };
    for (bytes, reason) in [
        ([255, 3].repeat(500), "id 1023 at index 0 is not in the vocabulary of"),
        (vec![1; 999], "its 999 bytes are no whole number of ids of 2 bytes"),
        (vec![], "it is empty"),
        (header([20_240_520, 1, i32::MAX], 8), "counts 2147483647 ids of 2 bytes, but 8 bytes follow it"),
        (header([20_240_520, 9, 4], 8), "its header has version 9"),
        (header([20_240_326, 3, 4], 8), "it is another file of llm.c"),
        (b"PK\x03\x04".repeat(200), "it is a PyTorch pickle or another zip archive"),
    ] {
        place.write("bad.bin", bytes);
        for message in [
            refused(&["--data", "bad.bin", "--tokenizer", "run"]),
            failure(place.tinygpt().args(["eval", "run", "--data", "bad.bin"]), 1),
        ] {
            assert!(message.contains("bad.bin") && message.contains(reason), "{message}");
        }
    }
}

#[test]
fn records_without_a_text_are_named() {
    let place = Place::new();
    place.write("a.jsonl", json_lines("body")).write("b.jsonl", json_lines("text") + "{\"text\": 5}\n");
    let refused = |args: &[&str]| failure(place.train().args(args), 1);
    let message = refused(&["--data", "a.jsonl"]);
    assert!(
        message.contains("line 1 of `a.jsonl`: it has no \"text\", but \"id\", \"body\"; name the key"),
        "{message}"
    );
    let message = refused(&["--data", "b.jsonl"]);
    assert!(message.contains("line 41 of `b.jsonl`: its \"text\" is a number, not a string"), "{message}");
    place.write("c.parquet", "PAR1 and nothing of it PAR1");
    assert!(refused(&["--data", "c.parquet"]).contains("`c.parquet`: it cannot be read as Parquet"));
    place.write("d.txt.gz", "no gzip");
    assert!(refused(&["--data", "d.txt.gz"]).contains("cannot read `d.txt.gz`"));
    assert!(!place.join("runs").exists());
    let message = failure(place.train().args(["--set", "data.documents=line"]), 2);
    assert!(message.contains("`data.documents` = line: the built-in corpus has none"), "{message}");
    let message = failure(place.train().args(["--set", "data.documents=page"]), 2);
    assert!(message.contains("\"none\", \"file\", \"line\" or \"marker\""), "{message}");
}

#[test]
fn a_download_that_fails_leaves_no_folder_and_asks_every_mirror() {
    let place = Place::new();
    let mirrors = ["--base-url", "http://127.0.0.1:1/one", "--base-url", "http://127.0.0.1:1/two"];
    let fetch = ["data", "fetch", "enwik8", "--dir", "new/folder"];
    let message = failure(place.tinygpt().args(fetch).args(mirrors), 1);
    assert!(
        message.contains("http://127.0.0.1:1/two/enwik8.zip") && message.contains("new/folder/enwik8"),
        "{message}"
    );
    assert_eq!(place.names("."), ["small.toml"]);
}

#[test]
fn a_damaged_table_is_an_error_without_a_panic_on_standard_error() {
    let table = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/texts.parquet");
    let sound = fs::read(table).unwrap();
    let place = Place::new();
    let mut refused = 0;
    for at in (4..sound.len()).step_by(sound.len() / 60 + 1) {
        let mut bytes = sound.clone();
        bytes[at] ^= 0x55;
        place.write("damaged.parquet", bytes);
        let output =
            place.tinygpt().args(["data", "info", "damaged.parquet", "--text-key", "content"]).output().unwrap();
        if !output.status.success() {
            refused += 1;
            let message = refusal(&output, 1);
            assert!(message.contains("damaged.parquet"), "byte {at}: {message}");
        }
        assert!(!String::from_utf8_lossy(&output.stderr).contains("panicked"), "byte {at}");
    }
    assert!(refused > 10, "{refused}");
}
