use std::{
    io::{BufRead, BufReader},
    net::TcpListener,
    thread::JoinHandle,
};

use super::*;

const TEXT: &str = "To be, or not to be.\n";

/// A dataset of which a test can serve every byte.
const SMALL: Dataset = Dataset {
    name: "small",
    file: "small.txt",
    base_url: "http://127.0.0.1:1",
    url_file: "input.txt",
    bytes: TEXT.len() as u64,
    sha256: "3db74bcc6cca69db7cf6843ca28644aa93a26c1332de16d6a4f30a5f711c591c",
};

/// Answers one request with the given bytes; gives the base URL and, at the end, the request's first line.
fn serve(answer: String) -> (String, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/texts/", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map(Result::unwrap);
        let first = lines.next().unwrap();
        lines.find(String::is_empty).unwrap();
        stream.write_all(answer.as_bytes()).unwrap();
        first
    });
    (url, server)
}

fn ok(length: usize, body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
}

/// Fetches from a server that gives `answer`, which must fail and leave nothing behind.
fn refused(answer: String) -> String {
    let dir = tempfile::tempdir().unwrap();
    let (url, server) = serve(answer);
    let message = fetch(&SMALL, dir.path(), Some(&url), |_, _| {}).unwrap_err().to_string();
    server.join().unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "something was left behind");
    assert!(message.contains(&url) && message.contains("by hand") && message.contains("small.txt"), "{message}");
    message
}

#[test]
fn the_text_is_saved_under_its_name_and_progress_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("data");
    let (url, server) = serve(ok(TEXT.len(), TEXT));
    let mut last = (0, 0);
    let fetched = fetch(&SMALL, &folder, Some(&url), |received, total| last = (received, total)).unwrap();
    assert_eq!(server.join().unwrap(), "GET /texts/input.txt HTTP/1.1");
    assert_eq!(fetched, Fetched { path: folder.join("small.txt"), downloaded: true });
    assert_eq!(std::fs::read_to_string(&fetched.path).unwrap(), TEXT);
    assert_eq!(last, (SMALL.bytes, SMALL.bytes));
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);

    // The second time nothing is asked for: the default address would refuse the connection.
    let again = fetch(&SMALL, &folder, None, |_, _| panic!("no download")).unwrap();
    assert_eq!(again, Fetched { downloaded: false, ..fetched });
}

#[test]
fn another_text_is_refused_with_both_digests() {
    let wrong = TEXT.to_uppercase();
    let message = refused(ok(wrong.len(), &wrong));
    assert!(message.contains(SMALL.sha256), "{message}");
    assert!(message.contains(&Digest::of(wrong.as_bytes()).to_string()), "{message}");
}

#[test]
fn a_text_that_does_not_end_is_not_read_to_its_end() {
    let endless = TEXT.repeat(100_000);
    let dir = tempfile::tempdir().unwrap();
    let (url, server) = serve(ok(endless.len(), &endless));
    let error = fetch(&SMALL, dir.path(), Some(&url), |received, _| assert!(received <= SMALL.bytes + 1)).unwrap_err();
    assert!(matches!(error, FetchError::WrongContent { .. }), "{error}");
    // The server's write fails when the client hangs up; that is not what is tested.
    let _ = server.join();
}

#[test]
fn a_missing_page_is_named_with_its_status() {
    let message = refused("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_owned());
    assert!(message.contains("404"), "{message}");
    let message = refused("HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_owned());
    assert!(message.contains("503"), "{message}");
}

#[test]
fn a_connection_that_breaks_off_is_told_apart_from_another_text() {
    let message = refused(ok(TEXT.len(), &TEXT[..5]));
    assert!(message.contains("broke after 5 bytes"), "{message}");
}

#[test]
fn a_server_that_is_not_there_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let message = fetch(&SMALL, dir.path(), Some(&url), |_, _| {}).unwrap_err().to_string();
    assert!(message.contains(&url) && message.contains("check the network"), "{message}");
}

#[test]
fn a_file_of_another_content_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(SMALL.file);
    std::fs::write(&path, "mine").unwrap();
    let message = fetch(&SMALL, dir.path(), None, |_, _| {}).unwrap_err().to_string();
    assert!(message.contains(SMALL.sha256) && message.contains(&Digest::of(b"mine").to_string()), "{message}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a-file");
    std::fs::write(&file, "x").unwrap();
    let message = fetch(&SMALL, &file.join("data"), None, |_, _| {}).unwrap_err().to_string();
    assert!(message.contains("a-file"), "{message}");
}

#[test]
fn datasets_are_found_by_name_and_an_unknown_one_lists_them() {
    assert_eq!(dataset("tinyshakespeare").unwrap().bytes, 1_115_394);
    assert!(dataset("shakespeare").unwrap_err().to_string().contains("known are: tinyshakespeare"));
}
