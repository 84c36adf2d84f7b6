//! Models of the hub, from a server of its layout on this machine.

use std::{collections::BTreeMap, fs};

use assert_cmd::Command;

use crate::common::{
    Place, failure,
    hub_server::{COMMIT, Faults, HubServer},
    stderr, stdout, trained,
};

const NAME: &str = "someone/tiny-gpt";

/// The shared run as a model of the hub.
fn server(faults: Faults) -> HubServer {
    HubServer::of_folder(NAME, &trained().join("run"), faults)
}

/// The program, with the hub at an address and its cache in this folder.
fn tinygpt(place: &Place, url: &str) -> Command {
    let mut command = place.tinygpt();
    let names = [
        "HF_TOKEN",
        "HF_TOKEN_PATH",
        "HF_HUB_CACHE",
        "HF_HUB_OFFLINE",
        "HTTP_PROXY",
        "http_proxy",
        "ALL_PROXY",
        "all_proxy",
    ];
    for name in names {
        command.env_remove(name);
    }
    command.env("HF_HOME", place.join("hf")).env("HF_ENDPOINT", url);
    command
}

fn generate(mut command: Command, model: &str) -> Command {
    command.args(["generate", "--checkpoint", model, "--prompt", "One", "--seed", "5", "--max-new-tokens", "20"]);
    command
}

fn of_the_folder() -> String {
    stdout(&mut generate(trained().tinygpt(), "run"))
}

#[test]
fn a_model_of_the_hub_generates_what_its_folder_does_and_is_asked_for_once() {
    let (place, server) = (Place::new(), server(Faults::default()));
    let model = format!("hf:{NAME}");
    assert_eq!(stdout(&mut generate(tinygpt(&place, &server.url), &model)), of_the_folder());
    let requests = server.requests();
    assert_eq!(requests[0].path, format!("/api/models/{NAME}/revision/main"));
    assert!(requests.iter().all(|request| request.token.is_none() && !request.path.contains("metrics.jsonl")));

    // What Python's libraries expect of the cache.
    let root = "hf/hub/models--someone--tiny-gpt";
    assert_eq!(place.text(&format!("{root}/refs/main")), COMMIT);
    let snapshot = format!("{root}/snapshots/{COMMIT}");
    assert!(place.join(&format!("{snapshot}/model.safetensors")).is_symlink());
    assert_eq!(place.read(&format!("{snapshot}/config.json")), trained().read("run/config.json"));

    place.write("text.txt", "One day a fox met an owl.\n".repeat(4));
    for args in [&["eval", "--data", "text.txt"][..], &["info"], &["score"]] {
        let mut command = tinygpt(&place, "http://127.0.0.1:1");
        command.args(&args[..1]).arg(&model).args(&args[1..]);
        if args == ["score"] {
            command.arg("One day");
        }
        stdout(&mut command);
    }
    let mut by_commit = generate(tinygpt(&place, "http://127.0.0.1:1"), &format!("{model}@{COMMIT}"));
    assert_eq!(stdout(&mut by_commit), of_the_folder());
    assert_eq!(server.requests().len(), requests.len());
}

#[test]
fn a_download_that_breaks_off_goes_on_where_it_stopped() {
    let (place, server) = (Place::new(), server(Faults { cuts: 2, cut_after: 1000, ..Faults::default() }));
    let model = format!("hf:{NAME}");
    assert_eq!(stdout(&mut generate(tinygpt(&place, &server.url), &model)), of_the_folder());
    let weights = server.requests().into_iter().filter(|request| request.path.ends_with("/model.safetensors"));
    let ranges: Vec<_> = weights.filter_map(|request| request.range).filter(|range| range != "bytes=0-0").collect();
    assert_eq!(ranges, ["bytes=0-", "bytes=1000-", "bytes=2000-"]);
}

#[test]
fn a_server_that_breaks_off_for_good_is_named_and_the_next_try_goes_on() {
    let place = Place::new();
    let model = format!("hf:{NAME}");
    let broken = server(Faults { cuts: usize::MAX, cut_after: 100, ..Faults::default() });
    let message = failure(&mut generate(tinygpt(&place, &broken.url), &model), 1);
    assert!(message.contains(&format!("cannot download {model} from {}", broken.url)), "{message}");
    assert!(message.contains("(tried 4 times)") && message.contains("hf/hub"), "{message}");
    let sound = server(Faults::default());
    assert_eq!(stdout(&mut generate(tinygpt(&place, &sound.url), &model)), of_the_folder());
    let asked = sound.requests();
    assert!(asked.iter().any(|request| request.range.as_deref() == Some("bytes=400-")), "{asked:?}");
}

#[test]
fn other_bytes_than_announced_are_refused_and_not_kept() {
    let place = Place::new();
    let model = format!("hf:{NAME}");
    let lying = server(Faults { wrong_bytes: true, ..Faults::default() });
    let message = failure(&mut generate(tinygpt(&place, &lying.url), &model), 1);
    assert!(message.contains("another model.safetensors") && message.contains("SHA-256"), "{message}");
    let honest = server(Faults::default());
    assert_eq!(stdout(&mut generate(tinygpt(&place, &honest.url), &model)), of_the_folder());
}

#[test]
fn without_a_network_it_is_said_what_was_tried() {
    let place = Place::new();
    let url = "http://127.0.0.1:1"; // nobody listens there
    let message = failure(&mut generate(tinygpt(&place, url), "hf:someone/tiny-gpt"), 1);
    for part in ["cannot download hf:someone/tiny-gpt from", url, "tried 4 times", "hf/hub", "HF_ENDPOINT"] {
        assert!(message.contains(part), "{part}: {message}");
    }
    let message = failure(generate(tinygpt(&place, url), "hf:someone/tiny-gpt").env("HF_HUB_OFFLINE", "1"), 1);
    assert!(message.contains("HF_HUB_OFFLINE forbids"), "{message}");
}

#[test]
fn the_token_of_the_environment_is_sent_and_a_refusal_asks_for_it() {
    let (place, server) = (Place::new(), server(Faults::default()));
    let mut command = generate(tinygpt(&place, &server.url), "hf:someone/tiny-gpt");
    stdout(command.env("HF_TOKEN", "hf_secret"));
    assert!(server.requests().iter().all(|request| request.token.as_deref() == Some("Bearer hf_secret")));
    let message = failure(generate(tinygpt(&place, &server.url), "hf:someone/other").env("HF_TOKEN", "hf_secret"), 1);
    assert!(
        message.contains("does not give hf:someone/other: status 404") && message.contains("HF_TOKEN"),
        "{message}"
    );
    assert!(!message.contains("hf_secret"));
}

#[test]
fn a_wrong_name_is_a_wrong_command_line_and_never_leaves_the_cache() {
    let place = Place::new();
    for name in ["hf:", "hf:../../etc/passwd", "hf:a/b/c", "hf:a//b", "hf:a/b@", "hf:a/b@../x", "hf:a/b c"] {
        let message = failure(&mut generate(tinygpt(&place, "http://127.0.0.1:1"), name), 2);
        assert!(message.contains("is no model of the hub") && message.contains("hf:OWNER/NAME"), "{name}: {message}");
    }
}

#[test]
fn a_model_without_weights_for_this_program_says_what_it_has() {
    let place = Place::new();
    let mut files = BTreeMap::from([("config.json".to_owned(), b"{}".to_vec())]);
    files.insert("pytorch_model.bin".to_owned(), vec![0; 10]);
    let server = HubServer::new(NAME, files, Faults::default());
    let message = failure(&mut generate(tinygpt(&place, &server.url), &format!("hf:{NAME}")), 1);
    assert!(message.contains("no model.safetensors: it has pytorch_model.bin, a pickle"), "{message}");
}

#[test]
fn a_download_is_announced() {
    let (place, server) = (Place::new(), server(Faults::default()));
    let said = stderr(&mut generate(tinygpt(&place, &server.url), "hf:someone/tiny-gpt"));
    assert!(said.starts_with(&format!("downloading hf:someone/tiny-gpt from {} to ", server.url)), "{said}");
}

#[test]
fn what_another_program_has_left_out_of_the_cache_is_downloaded() {
    let (place, server) = (Place::new(), server(Faults::default()));
    let model = format!("hf:{NAME}");
    stdout(&mut generate(tinygpt(&place, &server.url), &model));
    let snapshot = place.join(&format!("hf/hub/models--someone--tiny-gpt/snapshots/{COMMIT}"));
    fs::remove_file(snapshot.join("tokenizer.json")).unwrap();
    let before = server.requests().len();
    assert_eq!(stdout(&mut generate(tinygpt(&place, &server.url), &model)), of_the_folder());
    let asked = server.requests().split_off(before);
    assert!(asked.iter().all(|request| !request.path.ends_with("safetensors")), "{asked:?}");
}

#[test]
fn the_tokenizer_of_the_hub_is_had_without_its_weights_and_trains_a_model_of_ones_own() {
    let (place, server) = (Place::new(), server(Faults::default()));
    place.write("text.txt", "One ".repeat(400));
    let name = format!("hf:{NAME}");
    let info = |tokenizer: &str, mut command: Command| {
        stdout(command.args(["data", "info", "text.txt", "--tokenizer", tokenizer]))
    };
    let tokenizer = trained().join("run/tokenizer.json").display().to_string();
    let told = |text: String| text.lines().filter(|line| line.contains("tokens")).collect::<Vec<_>>().join("\n");
    assert_eq!(told(info(&name, tinygpt(&place, &server.url))), told(info(&tokenizer, place.tinygpt())));
    assert!(
        server.requests().iter().all(|request| !request.path.ends_with(".safetensors")),
        "weights are not asked for"
    );
    let mut train = tinygpt(&place, "http://127.0.0.1:9");
    train.args(["train", "--data", "text.txt", "--tokenizer", &name, "--out", "run", "--config", "small.toml"]);
    stdout(train.args(["--set", "train.max_steps=1"]));
    assert_eq!(place.read("run/tokenizer.json"), fs::read(&tokenizer).unwrap(), "from the cache, without a network");
    // The weights come when the model is wanted.
    assert_eq!(stdout(&mut generate(tinygpt(&place, &server.url), &name)), of_the_folder());
}

#[test]
fn a_password_in_the_address_of_the_server_is_not_printed() {
    let place = Place::new();
    let message = failure(&mut generate(tinygpt(&place, "http://me:secret@127.0.0.1:9/hub/"), "hf:someone/tiny"), 1);
    assert!(message.contains("from http://127.0.0.1:9/hub:") && !message.contains("secret"), "{message}");
}
