//! `tinygpt data` and `tinygpt config`: what training starts from.

use crate::common::{Place, failure, json, stdout};

#[test]
fn synth_writes_stories_of_the_size_asked_for_and_prints_their_entropy() {
    let place = Place::new();
    let synth = ["data", "synth", "--bytes", "20000", "--seed", "3", "--out", "stories.txt"];
    let text = stdout(place.tinygpt().args(synth));
    let stories = place.text("stories.txt");
    let longest = stories.lines().map(str::len).max().unwrap();
    assert!((20000..20000 + longest + 1).contains(&stories.len()) && stories.ends_with('\n'));
    assert!(stories.is_ascii());
    let (count, bytes) = (stories.lines().count(), stories.len());
    assert!(text.starts_with(&format!("stories.txt: {count} stories, {bytes} bytes\nentropy ")), "{text}");
    assert!(text.contains(" nats/char, ") && text.ends_with(" bits/char\n"), "{text}");

    let value = json(place.tinygpt().args(synth).args(["--overwrite", "--json"]));
    let figure = |key: &str| value[key].as_f64().unwrap();
    assert_eq!((figure("stories"), figure("bytes")), (count as f64, bytes as f64));
    assert!((figure("nats") / figure("bytes") - figure("nats_per_char")).abs() < 1e-12);
    assert!((figure("nats_per_char") / std::f64::consts::LN_2 - figure("bits_per_char")).abs() < 1e-12);
    assert!((0.2..0.7).contains(&figure("nats_per_char")), "{value}");
}

#[test]
fn synth_gives_the_same_stories_for_the_same_seed() {
    let place = Place::new();
    for (out, seed) in [("a.txt", "3"), ("b.txt", "3"), ("c.txt", "4")] {
        place.tinygpt().args(["data", "synth", "--bytes", "5000", "--seed", seed, "--out", out]).assert().success();
    }
    assert_eq!(place.text("a.txt"), place.text("b.txt"));
    assert_ne!(place.text("a.txt"), place.text("c.txt"));
}

#[test]
fn synth_refuses_what_it_cannot_write() {
    let place = Place::new();
    let message = failure(place.tinygpt().args(["data", "synth", "--bytes", "0", "--out", "a.txt"]), 2);
    assert!(message.contains("--bytes must be at least 1"), "{message}");
    let message = failure(place.tinygpt().args(["data", "synth", "--bytes", "100", "--out", "none/a.txt"]), 1);
    assert!(message.contains("cannot write none/a.txt"), "{message}");
    assert_eq!(place.names("."), ["small.toml"]);
}

#[test]
fn synth_replaces_a_file_only_when_asked_and_a_link_never() {
    let place = Place::new();
    place.write("precious.txt", "precious").write("folder/a.txt", "a");
    #[cfg(unix)]
    for (target, link) in [("precious.txt", "link.txt"), ("gone.txt", "broken.txt")] {
        std::os::unix::fs::symlink(target, place.join(link)).unwrap();
    }
    let synth = |out: &str| {
        let mut command = place.tinygpt();
        command.args(["data", "synth", "--bytes", "500", "--out", out]);
        command
    };
    let outs =
        if cfg!(unix) { &["precious.txt", "folder", "link.txt", "broken.txt", "/dev/null"][..] } else { &["folder"] };
    for out in outs {
        let message = failure(&mut synth(out), 1);
        assert!(message.contains(&format!("{out} exists already: give --overwrite")), "{message}");
    }
    let not_files = if cfg!(unix) { &["folder", "broken.txt", "/dev/null"][..] } else { &["folder"] };
    for out in not_files {
        let message = failure(synth(out).arg("--overwrite"), 1);
        assert!(message.contains(&format!("{out} is not a regular file")), "{message}");
    }
    assert_eq!(place.text("precious.txt"), "precious");
    if cfg!(unix) {
        synth("link.txt").arg("--overwrite").assert().success();
        assert!(place.join("link.txt").is_symlink());
    } else {
        synth("precious.txt").arg("--overwrite").assert().success();
    }
    assert!(place.text("precious.txt").len() >= 500, "what the link leads to is written");
}

#[test]
fn accept_parses_every_story_that_synth_wrote() {
    let place = Place::new();
    let synth = json(place.tinygpt().args(["data", "synth", "--bytes", "20000", "--out", "stories.txt", "--json"]));
    let stories = &synth["stories"];
    let text = stdout(place.tinygpt().args(["data", "accept", "stories.txt"]));
    assert_eq!(text, format!("{stories} of {stories} stories accepted (100.0%)\n"));
    // Read back, they carry the entropy that they were drawn with; and `-` is standard input.
    let accepted = json(place.tinygpt().args(["data", "accept", "-", "--json"]).write_stdin(place.read("stories.txt")));
    assert_eq!((&accepted["accepted"], &accepted["share"]), (stories, &1.0.into()));
    let (drawn, read) = (synth["nats"].as_f64().unwrap(), accepted["nats"].as_f64().unwrap());
    assert!((drawn / read - 1.0).abs() < 1e-9, "{drawn} {read}");
}

#[test]
fn accept_shows_where_a_text_ceases_to_be_a_story() {
    let place = Place::new();
    place.tinygpt().args(["data", "synth", "--bytes", "600", "--out", "stories.txt"]).assert().success();
    let stories = place.text("stories.txt");
    let story = stories.lines().next().unwrap();
    let garbled = format!("{}@{}\n\n{story}\n", &story[..20], &story[20..]);
    let text = stdout(place.tinygpt().args(["data", "accept", "-"]).write_stdin(garbled.clone()));
    assert!(text.starts_with("1 of 2 stories accepted (50.0%)\n"), "{text}");
    assert!(text.contains(&format!("line 1: no story goes on after the bar: {}|@", &story[..20])), "{text}");
    let value = json(place.tinygpt().args(["data", "accept", "-", "--json"]).write_stdin(garbled));
    assert_eq!(value["share"], 0.5);
    assert_eq!((&value["rejected"][0]["line"], &value["rejected"][0]["position"]), (&1.into(), &20.into()));

    place
        .write("letters.txt", "dear sir\nor madam\n")
        .write("many.txt", "x\n".repeat(10))
        .write("latin1.txt", b"On\xff");
    let text = stdout(place.tinygpt().args(["data", "accept", "letters.txt"]));
    assert!(text.starts_with("0 of 2 stories accepted (0.0%)\n"), "{text}");
    let text = stdout(place.tinygpt().args(["data", "accept", "many.txt"]));
    assert!(text.ends_with("... and 7 more; --json lists all\n"), "{text}");
    let message = failure(place.tinygpt().args(["data", "accept", "-"]).write_stdin("\n \n"), 1);
    assert!(message.contains("has no stories"), "{message}");
    let message = failure(place.tinygpt().args(["data", "accept", "none.txt"]), 1);
    assert!(message.contains("cannot read none.txt"), "{message}");
    let message = failure(place.tinygpt().args(["data", "accept", "latin1.txt"]), 1);
    assert!(message.contains("latin1.txt is not UTF-8: bad byte at offset 2"), "{message}");
}

#[test]
fn fetch_names_the_corpora_it_knows_and_the_address_it_cannot_reach() {
    let place = Place::new();
    let message = failure(place.tinygpt().args(["data", "fetch", "warandpeace"]), 2);
    assert!(message.contains("there is no dataset `warandpeace`; known are: tinyshakespeare"), "{message}");
    let unreachable = ["data", "fetch", "tinyshakespeare", "--base-url", "http://127.0.0.1:1"];
    let message = failure(place.tinygpt().args(unreachable), 1);
    assert!(message.contains("http://127.0.0.1:1/") && message.contains("data/tinyshakespeare.txt"), "{message}");
    assert!(!place.join("data/tinyshakespeare.txt").exists());
}

#[test]
fn config_prints_a_configuration_that_training_takes() {
    let place = Place::new();
    let text = stdout(place.tinygpt().arg("config"));
    place.write("mine.toml", &text);
    // Each key has a line of its own that explains it.
    let lines: Vec<_> = text.lines().collect();
    for pair in lines.windows(2).filter(|pair| pair[1].contains(" = ")) {
        assert!(pair[0].starts_with("# "), "{}", pair[1]);
    }
    let set = ["model.n_layer=1", "model.n_head=1", "model.n_embd=8", "model.block_size=8", "train.batch_size=1"];
    let set = set.iter().chain(&["train.max_steps=1", "data.stories_bytes=9000", "train.eval_batches=1"]);
    place
        .tinygpt()
        .args(["train", "--config", "mine.toml"])
        .args(set.flat_map(|item| ["--set", item]))
        .assert()
        .success();
    assert_eq!(place.names("runs"), ["mine-1"], "a configuration without a name of its own is named for its file");
}

#[test]
fn config_prints_the_recipes_too() {
    let place = Place::new();
    for name in ["tiny", "shakespeare-small-fast", "shakespeare-fast", "shakespeare-small", "shakespeare-baby.toml"] {
        let text = stdout(place.tinygpt().args(["config", name]));
        assert!(text.contains(&format!("name = \"{}\"", name.trim_end_matches(".toml"))), "{text}");
    }
    let message = failure(place.tinygpt().args(["config", "huge"]), 2);
    assert!(message.contains("there is no recipe huge; the recipes are tiny, shakespeare-small-fast"));
}
