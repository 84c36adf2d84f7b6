//! What is refused before a server starts, and how it ends.

use std::{
    io::{BufRead, BufReader, Read},
    net::TcpListener,
};

use serde_json::json;

use super::server;
use crate::common::{Place, failure, http_server::Server, trained};

fn serve(args: &[&str]) -> assert_cmd::Command {
    let mut command = trained().tinygpt();
    command.env_remove("TINYGPT_API_KEY").arg("serve").args(args);
    command
}

#[test]
fn what_cannot_be_served_is_said_before_anything_is_opened() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let message = failure(&mut serve(&["run", "--port", &port]), 1);
    assert!(message.contains(&format!("cannot listen at 127.0.0.1:{port}")), "{message}");
    assert!(message.contains("in use"), "{message}");
    let message = failure(&mut serve(&["run", "--host", "192.0.2.1", "--insecure"]), 1);
    assert!(message.contains("cannot listen at 192.0.2.1:8000"), "{message}");
    let message = failure(&mut serve(&["run", "--host", "0.0.0.0"]), 2);
    assert!(message.contains("--api-key") && message.contains("--insecure"), "{message}");
    let message = failure(&mut serve(&["run", "--api-key", ""]), 2);
    assert!(message.contains("--api-key"), "{message}");
    let message = failure(&mut serve(&["nowhere", "--port", "0"]), 1);
    assert!(message.contains("nowhere"), "{message}");
    let message = failure(&mut serve(&["run", "./run", "--port", "0"]), 2);
    assert!(message.contains("two models are named `run`"), "{message}");
    let message = failure(Place::new().tinygpt().args(["serve", "--port", "0"]), 1);
    assert!(message.contains("runs"), "{message}");
    let message = failure(&mut serve(&["run", "--port", "0", "--timeout", "18446744073709551615"]), 2);
    assert!(message.contains("--timeout") && message.contains("31536000"), "{message}");
}

#[cfg(unix)]
#[test]
fn a_signal_ends_an_idle_server_at_once() {
    for signal in ["-INT", "-TERM"] {
        let mut server = server();
        assert_eq!(server.get("/health").status, 200);
        server.signal(signal);
        assert_eq!(server.child.wait().unwrap().code(), Some(0), "{signal}");
    }
}

/// Starts a streamed text, waits for its first token, and gives the connection.
fn begin_text(server: &Server, max_tokens: u32) -> BufReader<std::net::TcpStream> {
    let body = json!({ "prompt": "One", "max_tokens": max_tokens, "seed": 1, "stream": true, "n": 4 }).to_string();
    let request = server.request("POST", "/v1/completions", &["Content-Type: application/json"], body.as_bytes());
    let mut stream = BufReader::new(server.send(&request));
    let mut line = String::new();
    while !line.starts_with("data: ") {
        line.clear();
        assert!(stream.read_line(&mut line).unwrap() > 0, "no token");
    }
    stream
}

#[cfg(unix)]
#[test]
fn a_signal_lets_running_texts_finish() {
    let mut server = server();
    let mut stream = begin_text(&server, 50);
    server.signal("-INT");
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("data: [DONE]"), "{rest}");
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
    assert!(std::net::TcpStream::connect(&server.address).is_err());
}

#[cfg(unix)]
#[test]
fn a_second_signal_ends_running_texts_and_is_told_by_the_exit_code() {
    let mut server = server();
    let mut stream = begin_text(&server, 65_000);
    server.signal("-INT");
    // No connection is taken any more, hence the first signal was heard.
    server.wait_for("the end of accepting", |server| std::net::TcpStream::connect(&server.address).is_err());
    server.signal("-TERM");
    assert_eq!(server.child.wait().unwrap().code(), Some(130));
    let mut rest = String::new();
    stream.read_to_string(&mut rest).ok();
    assert!(!rest.contains("[DONE]"));
}
