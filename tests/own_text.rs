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
fn without_a_text_and_a_configuration_there_is_nothing_to_train() {
    let place = Place::new();
    let message = failure(place.tinygpt().arg("train"), 2);
    assert!(message.contains("say what to train on: --data FILE") && message.contains("--config tiny"), "{message}");
    let message = failure(place.tinygpt().args(["train", "--data", "-"]).write_stdin("abc"), 2);
    assert!(message.contains("standard input"), "{message}");
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
    ] {
        let notice = told(set);
        assert!(notice.contains("warning: ") && notice.contains(warning), "{warning}: {notice}");
    }
}

#[test]
fn a_diverging_run_ends_with_a_hint_and_can_be_resumed_at_a_lower_rate() {
    let place = Place::new();
    let set = ["train.lr=30", "train.clip=0", "train.warmup_steps=0", "train.max_steps=60"];
    let message = failure(place.train().args(["--out", "run"]).args(set.iter().flat_map(|key| ["--set", key])), 1);
    assert!(message.contains("training has diverged"), "{message}");
    assert!(message.contains("lower train.lr") && message.contains("`last/` still holds"), "{message}");
    let perplexities: Vec<_> = message.lines().filter(|line| line.contains("ppl ")).collect();
    assert!(perplexities.iter().all(|line| line.len() < 120), "{message}");
    let lower = ["--set", "train.lr=1e-3", "--set", "train.max_steps=3", "--json"];
    let resumed = json(place.tinygpt().args(["train", "--resume", "--out", "run"]).args(lower));
    assert_eq!(resumed["step"], 3);
}
