//! What is kept of corpora that were prepared, and small things around them.

use std::fs;

use crate::common::{Place, failure, json, stderr, stdout};

#[test]
fn the_built_in_corpus_is_kept_like_a_text_and_used_the_next_time() {
    let place = Place::new();
    place.train().args(["--out", "one"]).assert().success();
    let kinds = || -> Vec<String> {
        let listed = json(place.tinygpt().args(["cache", "--json"]));
        let files = listed["files"].as_array().unwrap();
        let mut kinds: Vec<_> = files.iter().map(|file| file["kind"].as_str().unwrap().to_owned()).collect();
        kinds.sort();
        kinds
    };
    assert_eq!(kinds(), ["stories", "tokenizer"]);
    place.train().args(["--out", "two"]).assert().success();
    assert_eq!(kinds(), ["stories", "tokenizer"]);
    assert_eq!(place.timeless("one"), place.timeless("two"));
    // What is damaged is made again, and nobody is told.
    for name in place.names("cache") {
        let mut bytes = place.read(&format!("cache/{name}"));
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        place.write(&format!("cache/{name}"), bytes);
    }
    place.train().args(["--out", "three"]).assert().success();
    assert_eq!(place.timeless("one"), place.timeless("three"));
}

#[test]
fn the_cache_is_shown_and_cleared_and_nothing_else_in_its_folder() {
    let place = Place::new();
    assert!(stdout(place.tinygpt().arg("cache")).starts_with("nothing in "));
    place.write("a.txt", "the cat sat on the mat. ".repeat(40));
    place.train().args(["--data", "a.txt"]).assert().success();
    place.write("cache/thesis.txt", "precious");
    let shown = stdout(place.tinygpt().arg("cache"));
    for word in ["UTC  tokens ", "UTC  tokenizer ", "2 files, ", "`tinygpt cache --clear` deletes them"] {
        assert!(shown.contains(word), "{word}: {shown}");
    }
    let cleared = stdout(place.tinygpt().args(["cache", "--clear"]));
    assert!(cleared.contains("deleted 2 files, "), "{cleared}");
    assert_eq!(place.names("cache"), ["thesis.txt"]);
    // And the run goes on without it.
    place.tinygpt().args(["train", "--resume", "--set", "train.max_steps=8"]).assert().success();
}

#[test]
fn a_cache_that_cannot_be_written_does_not_keep_the_built_in_corpus_from_training() {
    let place = Place::new();
    place.write("cache", "a file, and no folder");
    place.train().assert().success();
}

#[test]
fn an_empty_text_that_is_evaluated_has_no_text_in_it() {
    let place = Place::new().with_run("run");
    place.write("empty.txt", "");
    let message = failure(place.tinygpt().args(["eval", "run", "--data", "empty.txt"]), 1);
    assert!(message.contains("`empty.txt` is empty: there is no text in it"), "{message}");
    assert!(!message.contains("train on"), "{message}");
}

#[test]
fn more_threads_than_cores_are_not_started() {
    let place = Place::new();
    let notice = stderr(place.train().args(["--threads", "1000"]));
    assert!(notice.contains("1000 threads are more than the ") && notice.contains(" are used"), "{notice}");
}

#[test]
fn a_benchmark_says_what_it_cuts_and_which_shapes_there_are() {
    let place = Place::new().with_run("run");
    let notice = stderr(place.tinygpt().args(["bench", "decode", "run", "--tokens", "100"]));
    assert!(notice.contains("--tokens 100 is more than the context of 16: 16 tokens are measured"), "{notice}");
    let message = failure(place.tinygpt().args(["bench", "decode", "smal"]), 1);
    assert!(message.contains("there is no model smal") && message.contains("small, baby and gpt2"), "{message}");
}

#[test]
fn a_download_that_fails_leaves_no_folder() {
    let place = Place::new();
    let fetch = ["data", "fetch", "tinyshakespeare", "--dir", "new", "--base-url", "http://127.0.0.1:9"];
    failure(place.tinygpt().args(fetch), 1);
    assert!(fs::metadata(place.join("new")).is_err());
}
