//! Clients that are strangers, that are rude, or that go away: the server keeps serving.

use std::{
    io::Write,
    net::{Shutdown, TcpStream},
    thread::scope,
    time::Duration,
};

use serde_json::json;

use super::server;
use crate::common::{
    http_server::{Server, answer, whole_answer},
    trained,
};

/// A text that takes long beside the others here.
fn long_text() -> serde_json::Value {
    json!({ "prompt": "One", "max_tokens": 60_000, "seed": 1, "stream": true })
}

/// All slots are free again, and the server answers.
fn keeps_serving(server: &Server) {
    comes_to_rest(server);
    assert_eq!(server.post("/v1/completions", &json!({ "max_tokens": 3 })).status, 200);
}

/// All slots are free again, and all connections closed.
fn comes_to_rest(server: &Server) {
    let at_rest = |server: &Server| {
        let is_none = |name| server.metric(name) == Some(0.0);
        is_none("tinygpt_running_texts{model=\"run\"}") && is_none("tinygpt_queued_texts{model=\"run\"}")
    };
    server.wait_for("free slots", at_rest);
    // The one that asks is the only one.
    server.wait_for("closed connections", |server| server.metric("tinygpt_connections") == Some(1.0));
}

#[test]
fn cut_connections_leave_no_slot_taken() {
    let server = server();
    let request = |stream: bool| {
        let mut body = long_text();
        body["stream"] = json!(stream);
        server.request("POST", "/v1/completions", &["Content-Type: application/json"], body.to_string().as_bytes())
    };
    let (streamed, whole) = (request(true), request(false));
    scope(|scope| {
        for client in 0..8_u64 {
            let (server, requests) = (&server, [&streamed, &whole]);
            scope.spawn(move || {
                for time in 0..5_u64 {
                    // In the middle of the request, or some time after it.
                    let bytes = requests[(time % 2) as usize];
                    let sent = if time == 4 { &bytes[..bytes.len() - 10 * client as usize] } else { &bytes[..] };
                    let stream = server.send(sent);
                    std::thread::sleep(Duration::from_millis((client * 37 + time * 11) % 90));
                    if client % 2 == 0 {
                        stream.shutdown(Shutdown::Both).unwrap();
                    }
                }
            });
        }
    });
    keeps_serving(&server);
}

#[test]
fn beyond_the_queue_a_request_is_told_to_come_back() {
    let server = Server::start(trained(), &["run", "--slots", "1", "--queue", "1"]);
    let bytes = server.request(
        "POST",
        "/v1/completions",
        &["Content-Type: application/json"],
        long_text().to_string().as_bytes(),
    );
    // Only the first line of the answers that are texts is read.
    let streams: Vec<_> = (0..12).map(|_| server.send(&bytes)).collect();
    let is_text = |stream: &TcpStream| {
        let mut first = [0; 12];
        stream.peek(&mut first).unwrap();
        &first == b"HTTP/1.1 200"
    };
    // All are kept until all are answered: a text that is given up makes room for another.
    let are_texts: Vec<bool> = streams.iter().map(is_text).collect();
    let others = streams.into_iter().zip(are_texts).filter(|(_, is_text)| !is_text);
    let refused: Vec<_> = others.map(|(stream, _)| answer(stream)).collect();
    assert!(!refused.is_empty());
    for answer in refused {
        assert_eq!((answer.status, answer.header("retry-after")), (429, Some("1")), "{answer:?}");
        assert_eq!(answer.json()["error"]["code"], "queue_full");
    }
    // The texts were given up with their connections: whoever comes back as it was told is served in the end.
    server.wait_for("a retry that succeeds", |server| {
        let answer = server.post("/v1/completions", &json!({ "prompt": "One", "max_tokens": 3, "seed": 1 }));
        if answer.status == 429 {
            let pause = answer.header("retry-after").unwrap().parse().unwrap();
            std::thread::sleep(Duration::from_secs(pause));
            return false;
        }
        assert_eq!(answer.status, 200, "{answer:?}");
        true
    });
    keeps_serving(&server);
}

#[test]
fn beyond_its_own_requests_a_client_is_told_to_come_back() {
    let server = Server::start(trained(), &["run", "--per-client", "2"]);
    let headers = ["Content-Type: application/json"];
    let bytes = server.request("POST", "/v1/completions", &headers, long_text().to_string().as_bytes());
    let running: Vec<_> = (0..2).map(|_| server.send(&bytes)).collect();
    server.wait_for("both run", |server| server.metric("tinygpt_running_texts{model=\"run\"}") == Some(2.0));
    let refused = server.post("/v1/completions", &json!({ "max_tokens": 3 }));
    assert_eq!((refused.status, refused.header("retry-after")), (429, Some("1")), "{refused:?}");
    assert_eq!(refused.json()["error"]["code"], "too_many_of_client");
    assert!(refused.header("content-security-policy").is_some());
    assert_eq!(server.get("/v1/models").status, 200, "what is only read is not counted");
    drop(running);
    server.wait_for("a place", |server| server.post("/v1/completions", &json!({ "max_tokens": 3 })).status == 200);
    keeps_serving(&server);
}

#[test]
fn a_request_that_takes_too_long_is_given_up() {
    let server = Server::start(trained(), &["run", "--timeout", "1"]);
    let mut body = long_text();
    body["n"] = json!(16);
    body["stream"] = json!(false);
    let whole = server.post("/v1/completions", &body);
    assert_eq!((whole.status, whole.json()["error"]["code"].clone()), (503, json!("timeout")), "{whole:?}");
    body["stream"] = json!(true);
    let events = server.post("/v1/completions", &body).events();
    let last: serde_json::Value = serde_json::from_str(events.last().unwrap()).unwrap();
    assert_eq!(last["error"]["code"], "timeout");
    // Any request of this server may take too long on a busy machine.
    comes_to_rest(&server);
}

#[test]
fn without_the_key_nothing_is_told() {
    let server = Server::start(trained(), &["run", "--api-key", "secret"]);
    assert_eq!(server.get("/health").status, 200);
    for (headers, status) in
        [(&[][..], 401), (&["Authorization: Bearer wrong"], 401), (&["Authorization: Bearer secret"], 200)]
    {
        let answer = server.ask("GET", "/v1/models", headers, b"");
        assert_eq!(answer.status, status);
        if status == 401 {
            assert_eq!(answer.json()["error"]["type"], "authentication_error");
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        }
    }
    assert_eq!(server.get("/metrics").status, 401);
}

#[test]
fn other_sites_are_refused_and_every_answer_says_what_a_page_may() {
    let server = server();
    let ask = |headers: &[&str]| server.ask("GET", "/v1/models", headers, b"");
    assert_eq!(ask(&["Host: example.com"]).status, 421);
    assert_eq!(ask(&["Host: localhost:9"]).status, 200);
    assert_eq!(ask(&["Origin: http://example.com"]).status, 403);
    assert_eq!(ask(&[&format!("Origin: http://{}", server.address)]).status, 200);
    for answer in [ask(&[]), ask(&["Host: example.com"]), server.get("/other")] {
        let policy = answer.header("content-security-policy").unwrap();
        assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"), "{policy}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(answer.header("referrer-policy"), Some("no-referrer"));
        assert_eq!(answer.header("access-control-allow-origin"), None);
    }
}

#[test]
fn heads_without_end_are_refused_and_sockets_without_a_request_closed() {
    let server = server();
    // All of it is read, and nothing comes behind: with bytes that were not read, the system may take the answer back.
    let head = "GET /health HTTP/1.1\r\nHost: localhost\r\nX: ";
    let long = format!("{head}{}", "a".repeat((64 << 10) - head.len()));
    let many = format!("GET /health HTTP/1.1\r\nHost: localhost\r\n{}\r\n", "X: a\r\n".repeat(200));
    for bytes in [long, many] {
        assert_eq!(answer(server.send(bytes.as_bytes())).status, 431);
    }
    for nonsense in [&b"\x16\x03\x01\x02\x00\x01\x00"[..], b"HELLO\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\r\n\r\n\0\0"]
    {
        let stream = server.send(nonsense);
        stream.shutdown(Shutdown::Write).unwrap();
        if let Some(answer) = whole_answer(stream) {
            assert!((400..=505).contains(&answer.status), "{answer:?}");
        }
    }
    // Nothing, a part of a head, and a part of a body: each is closed without the rest ever coming.
    let part = server.request("POST", "/v1/completions", &["Content-Type: application/json"], b"{\"prompt\": \"");
    let part = String::from_utf8(part).unwrap().replace("Content-Length: 12", "Content-Length: 500");
    let mut half_open: Vec<_> = [&b""[..], b"GET /health HT", part.as_bytes()].map(|bytes| server.send(bytes)).into();
    half_open[1].write_all(b"TP/1.1\r\nHost: loc").unwrap();
    assert_eq!(server.get("/health").status, 200);
    let answers: Vec<_> = half_open.into_iter().map(whole_answer).collect();
    assert_eq!(answers[2].as_ref().unwrap().status, 408, "{answers:?}");
    keeps_serving(&server);
}
