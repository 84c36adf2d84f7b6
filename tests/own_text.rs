//! A text of one's own: a run without a configuration, and warnings where one cannot mean what it says.

use crate::common::{Place, failure, json, stderr, stdout};

/// Some 4 kB of text in which there is something to learn.
fn text() -> String {
    let animals = ["fox", "owl", "hen", "cat", "dog", "bee", "ant"];
    let verbs = ["saw", "met", "fed", "hid", "led"];
    let line = |i: usize| format!("The {} {} the {}.\n", animals[i % 7], verbs[i / 3 % 5], animals[(i * i + 1) % 7]);
    (0..200).map(line).collect()
}

#[test]
fn a_text_without_a_configuration_trains_by_a_recipe_that_is_told_and_then_generates() {
    let place = Place::new();
    place.write("my story.txt", text());
    let mut train = place.tinygpt();
    let short = ["--set", "train.max_steps=8", "--set", "train.eval_every=4", "--set", "model.n_embd=16"];
    let notice = stderr(train.args(["train", "--data", "my story.txt"]).args(short));
    for told in [
        "no --config: for a text of ",
        " bytes and ",
        "4 layers of 16 channels, a context of 128 tokens, characters as tokens, 8 updates",
        "ms here: about ",
        "runs/my-story-1: ",
    ] {
        assert!(notice.contains(told), "{told}: {notice}");
    }
    let config = place.text("runs/my-story-1/train.toml");
    assert!(config.contains("optimizer = \"muon\"") && config.contains("dropout = 0.1"), "{config}");
    let mut generate = place.tinygpt();
    assert!(stdout(generate.args(["generate", "--prompt", "The", "--max-new-tokens", "20"])).starts_with("The"));
}

#[test]
fn a_text_of_many_characters_is_learned_by_pieces() {
    let place = Place::new();
    // Every second line has characters of its own.
    let line = |i: u32| format!("the same words {}\n", char::from_u32(0x4e00 + i).unwrap());
    place.write("han.txt", (0..1000).map(line).collect::<String>());
    let mut train = place.tinygpt();
    let short = ["--set", "train.max_steps=2", "--set", "model.n_embd=16"];
    let notice = stderr(train.args(["train", "--data", "han.txt"]).args(short));
    assert!(notice.contains("up to 512 pieces of words as tokens (bpe)"), "{notice}");
}

#[test]
fn a_text_may_be_named_and_described_by_keys_where_no_flag_does() {
    let place = Place::new();
    place.write("named.txt", text());
    let records = |line| serde_json::json!({ "content": line }).to_string() + "\n";
    place.write("records.jsonl", text().lines().map(records).collect::<String>());
    let train = |args: &[&str]| {
        let short = ["--set", "train.max_steps=2", "--set", "model.n_embd=16"];
        stderr(place.tinygpt().arg("train").args(args).args(short))
    };
    let notice = train(&["--set", "data.corpus=named.txt"]);
    assert!(notice.contains("no --config: for a text of ") && notice.contains("runs/named-1: "), "{notice}");
    let by_key = train(&["--data", "records.jsonl", "--set", "data.text_key=content", "--out", "key"]);
    let by_flag = train(&["--data", "records.jsonl", "--text-key", "content", "--out", "flag"]);
    let why = |notice: &str| notice.lines().find(|line| line.starts_with("no --config")).map(str::to_owned).unwrap();
    assert_eq!(why(&by_key), why(&by_flag));
    let config = place.text("key/train.toml");
    assert!(config == place.text("flag/train.toml") && config.contains("text_key = \"content\""), "{config}");
}

#[test]
fn standard_input_is_read_to_choose_a_recipe_and_then_trained_on() {
    let place = Place::new();
    place.write("stdin.txt", text());
    let short = ["--set", "train.max_steps=2", "--set", "model.n_embd=16"];
    let file = stderr(place.tinygpt().args(["train", "--data", "stdin.txt"]).args(short));
    let piped = stderr(place.tinygpt().args(["train", "--data", "-"]).args(short).write_stdin(text()));
    let why = |notice: &str| notice.lines().next().map(str::to_owned).unwrap();
    assert_eq!(why(&file), why(&piped));
    assert!(piped.contains("runs/stdin-2: "), "{piped}");
    assert!(place.read("runs/stdin-1/model.safetensors") == place.read("runs/stdin-2/model.safetensors"));
    assert!(place.text("runs/stdin-2/train.toml").contains("corpus = \"-\""));
}

#[test]
fn a_model_to_start_from_has_a_recipe_that_its_size_decides() {
    let place = Place::new();
    place.write("a.txt", text()).write("other tale.txt", text().replace("saw", "fed"));
    place.train().args(["--data", "a.txt", "--out", "base", "--set", "train.max_steps=40"]).assert().success();
    let mut train = place.tinygpt();
    train.args(["train", "--init-from", "base", "--data", "other tale.txt", "--out", "run"]);
    let notice = stderr(&mut train);
    for told in [
        "no --config: for a model of ",
        " parameters, 16 channels wide, and a text of ",
        "finetune-gpt2 in its size: 20 updates of 1024 tokens, a context of 16, train.lr = 1.0e-3",
        "ms here: about ",
    ] {
        assert!(notice.contains(told), "{told}: {notice}");
    }
    let config = place.text("run/train.toml");
    assert!(config.contains("optimizer = \"adamw\"") && config.contains("name = \"other-tale\""), "{config}");
    let rows: Vec<serde_json::Value> =
        place.text("run/metrics.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let losses: Vec<f64> = rows.iter().filter_map(|row| row["val_loss"].as_f64()).collect();
    assert!(losses.len() > 2 && losses[losses.len() - 1] < losses[0], "{losses:?}");
    // The built-in corpus is a text for it as well, and keys are changed as anywhere.
    let set = ["--set", "train.max_steps=2", "--set", "data.stories_bytes=20000", "--set", "model.dropout=0"];
    place.train().args(["--out", "stories"]).assert().success();
    let stories = ["train", "--init-from", "stories", "--data", "stories", "--out", "more"];
    let notice = stderr(place.tinygpt().args(stories).args(set));
    assert!(notice.contains("and a text of 20,000 bytes") && notice.contains("2 updates of"), "{notice}");
}

#[test]
fn three_commands_lead_from_30_kb_of_text_to_a_conversation() {
    let place = Place::new();
    let paragraph = |n: usize| text().lines().cycle().skip(7 * n).take(20).collect::<Vec<_>>().join(" ") + "\n";
    let own: String = (0..80).map(paragraph).collect();
    assert!((30_000..40_000).contains(&own.len()), "{}", own.len());
    place.write("my.txt", own);
    // After `cargo install`, what the README begins with; but for fewer updates.
    let train = ["train", "--data", "my.txt", "--set", "train.max_steps=30"];
    let output = place.tinygpt().args(train).output().unwrap();
    let (told, result) = (String::from_utf8(output.stderr).unwrap(), String::from_utf8(output.stdout).unwrap());
    assert!(output.status.success(), "{told}");
    assert!(!told.contains("warning"), "{told}");
    assert!(result.contains("validation loss ") && result.ends_with("runs/my-1\n"), "{result}");
    let mut chat = place.tinygpt();
    let output = chat.args(["chat", "-n", "40"]).write_stdin("The fox\n/temperature 0.5\nThe owl\n").output().unwrap();
    let (told, texts) = (String::from_utf8(output.stderr).unwrap(), String::from_utf8(output.stdout).unwrap());
    assert!(output.status.success() && told.contains("run: runs/my-1"), "{told}");
    let (first, second) = (texts.find("The fox"), texts.rfind("The owl"));
    assert!(first == Some(0) && second > first, "{texts}");
    assert!(texts.len() > "The fox".len() + "The owl".len() + 60, "{texts}");
}

#[test]
fn without_a_text_and_a_configuration_there_is_nothing_to_train() {
    let place = Place::new();
    let message = failure(place.tinygpt().arg("train"), 2);
    assert!(message.contains("say what to train on: --data FILE") && message.contains("--config tiny"), "{message}");
    let message = failure(place.tinygpt().args(["train", "--init-from", "nowhere", "--data", "-"]).write_stdin(""), 1);
    assert!(message.contains("there is no such folder"), "{message}");
    place.train().args(["--out", "base"]).assert().success();
    let message = failure(place.tinygpt().args(["train", "--init-from", "base"]), 2);
    assert!(message.contains("--data FILE with a text of yours\n") && !message.contains("--config"), "{message}");
    let message = failure(place.tinygpt().args(["train", "--data", "-"]).write_stdin(""), 1);
    assert!(message.contains("the corpus `-` is empty"), "{message}");
    let message = failure(place.tinygpt().args(["train", "--data", "none.txt"]), 1);
    assert!(message.contains("there is no corpus at `none.txt`"), "{message}");
}

#[test]
fn a_run_that_cannot_mean_what_it_says_is_warned_of() {
    let place = Place::new();
    place.write("a.txt", text());
    let told = |set: &[&str]| {
        let set = set.iter().flat_map(|key| ["--set", key]);
        stderr(place.train().args(["--data", "a.txt"]).args(set))
    };
    let plain = told(&[]);
    assert!(!plain.contains("warning"), "{plain}");
    for (set, warning) in [
        (&["train.warmup_steps=6"][..], "train.warmup_steps = 6 is not shorter than the run of 6 updates"),
        (&["data.val_fraction=0.01"], "validation tokens are less than 4 windows of 16"),
        (&["data.tokenizer=bpe", "data.vocab_size=300"], "of the vocabulary occur at most once in the training text"),
        (&["train.lr=0.5"], "train.lr = 0.5 is more than 10 times what is usual"),
        (&["train.lr=1e-6", "train.min_lr=0"], "train.lr = 0.000001 is far below what is usual"),
        (&["train.batch_size=300"], "an update reads 4800 tokens, and the text has "),
        (
            &[
                "model.n_embd=512",
                "model.block_size=8",
                "train.batch_size=1",
                "train.max_steps=1",
                "train.warmup_steps=0",
            ],
            "8 tokens an update are few for a model of ",
        ),
    ] {
        let notice = told(set);
        assert!(notice.contains("warning: ") && notice.contains(warning), "{warning}: {notice}");
    }
}

#[test]
fn rare_tokens_are_warned_of_by_what_helps_and_not_where_a_tokenizer_was_given() {
    let place = Place::new();
    // Each line has a character of its own.
    let line = |i: u32| format!("the {}\n", char::from_u32(0x4e00 + i).unwrap());
    place.write("han.txt", (0..300).map(line).collect::<String>());
    let train = |args: &[&str]| stderr(place.train().args(["--data", "han.txt"]).args(args));
    let notice = train(&["--set", "data.tokenizer=char", "--out", "han"]);
    assert!(notice.contains("occur at most once") && notice.contains("use data.tokenizer = \"bpe\", or"), "{notice}");
    let notice = train(&["--tokenizer", "han", "--out", "given"]);
    assert!(!notice.contains("occur at most once"), "{notice}");
}

#[test]
fn a_diverging_run_ends_with_a_hint_and_can_be_resumed_at_a_lower_rate() {
    let place = Place::new();
    let set = ["train.lr=30", "train.clip=0", "train.warmup_steps=0", "train.max_steps=60"];
    let message = failure(place.train().args(["--out", "run"]).args(set.iter().flat_map(|key| ["--set", key])), 1);
    assert!(message.contains("training has diverged"), "{message}");
    assert!(message.contains("lower train.lr") && message.contains("`last/` still holds"), "{message}");
    let perplexities: Vec<_> =
        message.split("ppl ").skip(1).filter_map(|rest| rest.split_whitespace().next()).collect();
    assert!(!perplexities.is_empty() && perplexities.iter().all(|told| told.len() < 12), "{message}");
    let lower = ["--set", "train.lr=1e-3", "--set", "train.max_steps=3", "--json"];
    let resumed = json(place.tinygpt().args(["train", "--resume", "--out", "run"]).args(lower));
    assert_eq!(resumed["step"], 3);
}
