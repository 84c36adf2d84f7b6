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
    for key in ["", "two words", "schlüssel", "line\n"] {
        let message = failure(&mut serve(&["run", "--api-key", key]), 2);
        assert!(message.contains("--api-key"), "{key:?}: {message}");
    }
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

/// What comes on a connection until its end.
#[cfg(unix)]
fn rest_of(mut stream: BufReader<std::net::TcpStream>) -> String {
    let mut rest = Vec::new();
    // A connection that is cut may end in an error; what came before it counts.
    stream.read_to_end(&mut rest).ok();
    String::from_utf8(rest).unwrap()
}

#[cfg(unix)]
#[test]
fn texts_that_run_beyond_the_grace_end_with_an_error() {
    let mut server = Server::start(trained(), &["run", "--grace", "0"]);
    let stream = begin_text(&server, 65_000);
    server.signal("-INT");
    let rest = rest_of(stream);
    assert!(rest.contains("\"code\":\"shutting_down\"") && !rest.contains("[DONE]"), "{rest}");
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
}

#[cfg(unix)]
#[test]
fn a_connection_without_a_request_is_not_waited_for() {
    let mut server = Server::start(trained(), &["run", "--grace", "300"]);
    let half_open = server.send(b"GET /health HT");
    server.wait_for("the connection", |server| server.metric("tinygpt_connections") == Some(2.0));
    server.signal("-INT");
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
    drop(half_open);
}

#[cfg(unix)]
#[test]
fn a_second_signal_ends_running_texts_and_is_told_by_the_exit_code() {
    // Nothing but the second signal could end it within the patience of a test.
    let mut server = Server::start(trained(), &["run", "--grace", "300"]);
    let stream = begin_text(&server, 65_000);
    server.signal("-INT");
    // No connection is taken any more, hence the first signal was heard.
    server.wait_for("the end of accepting", |server| std::net::TcpStream::connect(&server.address).is_err());
    server.signal("-TERM");
    assert_eq!(server.child.wait().unwrap().code(), Some(130));
    let rest = rest_of(stream);
    assert!(!rest.contains("[DONE]") && !rest.contains("shutting_down"), "{rest}");
}
