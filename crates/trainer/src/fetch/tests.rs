use std::{
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    thread::JoinHandle,
};

use super::*;

const TEXT: &str = "To be, or not to be.\n";

/// A dataset of which a test can serve every byte.
const SMALL: Dataset = Dataset {
    name: "small",
    file: "small.txt",
    base_urls: &["http://127.0.0.1:1"],
    url_file: "input.txt",
    bytes: TEXT.len() as u64,
    sha256: "3db74bcc6cca69db7cf6843ca28644aa93a26c1332de16d6a4f30a5f711c591c",
    member: None,
};

/// Answers each request with the next of the given bytes, and then hangs up; gives the base URL and, at the end, the requests.
fn serve_all(answers: Vec<Vec<u8>>) -> (String, JoinHandle<Vec<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/texts/", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        let answered = answers.into_iter().map(|answer| {
            let (mut stream, _) = listener.accept().unwrap();
            let lines = BufReader::new(stream.try_clone().unwrap()).lines().map(Result::unwrap);
            let request = lines.take_while(|line| !line.is_empty()).collect();
            // The client may hang up before the end; that is not what is tested.
            let _ = stream.write_all(&answer);
            request
        });
        answered.collect()
    });
    (url, server)
}

/// The same for one request, of which the first line is given.
fn serve(answer: String) -> (String, JoinHandle<String>) {
    let (url, server) = serve_all(vec![answer.into_bytes()]);
    (url, std::thread::spawn(move || server.join().unwrap()[0][0].clone()))
}

/// The range that a request asked for.
fn range(request: &[String]) -> Option<&str> {
    request.iter().find_map(|line| line.strip_prefix("range: ").or_else(|| line.strip_prefix("Range: ")))
}

/// The rest of the text, as a server with ranges gives it.
fn rest(from: usize) -> Vec<u8> {
    let (body, all) = (&TEXT[from..], TEXT.len());
    let range = format!("Content-Range: bytes {from}-{}/{all}", all - 1);
    let length = body.len();
    format!("HTTP/1.1 206 Partial Content\r\n{range}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
        .into()
}

fn ok(length: usize, body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
}

/// Fetches from a server that gives `answer`, which must fail and leave nothing behind.
fn refused(answer: String) -> String {
    let dir = tempfile::tempdir().unwrap();
    let (url, server) = serve(answer);
    let message = fetch(&SMALL, dir.path(), std::slice::from_ref(&url), |_, _| {}).unwrap_err().to_string();
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
    let fetched =
        fetch(&SMALL, &folder, std::slice::from_ref(&url), |received, total| last = (received, total)).unwrap();
    assert_eq!(server.join().unwrap(), "GET /texts/input.txt HTTP/1.1");
    assert_eq!(fetched, Fetched { path: folder.join("small.txt"), downloaded: true });
    assert_eq!(std::fs::read_to_string(&fetched.path).unwrap(), TEXT);
    assert_eq!(last, (SMALL.bytes, SMALL.bytes));
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);

    // The second time nothing is asked for: the default address would refuse the connection.
    let again = fetch(&SMALL, &folder, &[], |_, _| panic!("no download")).unwrap();
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
    let error =
        fetch(&SMALL, dir.path(), std::slice::from_ref(&url), |received, _| assert!(received <= SMALL.bytes + 1))
            .unwrap_err();
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
fn a_connection_that_breaks_is_taken_up_where_it_broke() {
    let dir = tempfile::tempdir().unwrap();
    let cut = ok(TEXT.len(), &TEXT[..5]).into_bytes();
    let (url, server) = serve_all(vec![cut, rest(5)]);
    let fetched = fetch(&SMALL, dir.path(), &[url], |_, _| {}).unwrap();
    let requests = server.join().unwrap();
    assert_eq!((range(&requests[0]), range(&requests[1])), (None, Some("bytes=5-")));
    assert_eq!(std::fs::read_to_string(&fetched.path).unwrap(), TEXT);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn what_came_is_kept_for_the_next_call_and_another_server() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("data");
    let cut = ok(TEXT.len(), &TEXT[..5]).into_bytes();
    // It breaks off, and is not there any more.
    let (url, server) = serve_all(vec![cut]);
    let message = fetch(&SMALL, &folder, std::slice::from_ref(&url), |_, _| {}).unwrap_err().to_string();
    server.join().unwrap();
    assert!(message.contains(&url) && message.contains("5 bytes are kept"), "{message}");
    let names: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, [".small.txt.3db74bcc6cca69db.part"]);
    let (other, server) = serve_all(vec![rest(5)]);
    fetch(&SMALL, &folder, &[other], |_, _| {}).unwrap();
    assert_eq!(range(&server.join().unwrap()[0]), Some("bytes=5-"));
    assert_eq!(std::fs::read_to_string(folder.join("small.txt")).unwrap(), TEXT);
}

#[test]
fn a_server_without_ranges_gives_the_whole_again() {
    let dir = tempfile::tempdir().unwrap();
    let cut = ok(TEXT.len(), &TEXT[..5]).into_bytes();
    let (url, server) = serve_all(vec![cut, ok(TEXT.len(), TEXT).into_bytes()]);
    let mut most = 0;
    fetch(&SMALL, dir.path(), &[url], |received, _| most = most.max(received)).unwrap();
    assert_eq!(range(&server.join().unwrap()[1]), Some("bytes=5-"), "it was asked for the rest");
    assert_eq!(std::fs::read_to_string(dir.path().join("small.txt")).unwrap(), TEXT);
    assert_eq!(most, SMALL.bytes);
}

#[test]
fn a_part_of_something_else_is_found_out_and_begun_anew() {
    let dir = tempfile::tempdir().unwrap();
    let part = dir.path().join(".small.txt.3db74bcc6cca69db.part");
    // The rest fits, and the whole does not.
    std::fs::write(&part, "to be").unwrap();
    let (url, server) = serve_all(vec![rest(5)]);
    let error = fetch(&SMALL, dir.path(), &[url], |_, _| {}).unwrap_err();
    assert!(matches!(error, FetchError::WrongContent { .. }), "{error}");
    server.join().unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    // One that is longer than the whole is not asked about.
    std::fs::write(&part, TEXT.repeat(2)).unwrap();
    let (url, server) = serve_all(vec![ok(TEXT.len(), TEXT).into_bytes()]);
    fetch(&SMALL, dir.path(), &[url], |_, _| {}).unwrap();
    assert_eq!(range(&server.join().unwrap()[0]), None);
}

#[test]
fn the_next_mirror_is_asked_where_one_fails_or_gives_another_text() {
    let dir = tempfile::tempdir().unwrap();
    let missing = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec();
    let (first, one) = serve_all(vec![missing]);
    let (second, two) = serve_all(vec![ok(TEXT.len(), &TEXT.to_uppercase()).into_bytes()]);
    let (third, three) = serve_all(vec![ok(TEXT.len(), TEXT).into_bytes()]);
    fetch(&SMALL, dir.path(), &[first, second, third], |_, _| {}).unwrap();
    assert_eq!([one, two, three].map(|server| server.join().unwrap().len()), [1, 1, 1]);
    assert_eq!(std::fs::read_to_string(dir.path().join("small.txt")).unwrap(), TEXT);
}

#[test]
fn a_download_that_brought_nothing_leaves_no_folder() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("mine")).unwrap();
    for folder in ["made/for/this", "mine"] {
        let folder = dir.path().join(folder);
        assert!(fetch(&SMALL, &folder, &["http://127.0.0.1:1".to_owned()], |_, _| {}).is_err());
    }
    let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["mine"], "a folder that was there stays");
}

#[test]
fn two_processes_do_not_write_one_part() {
    let dir = tempfile::tempdir().unwrap();
    let held = Part::open(&SMALL, dir.path()).unwrap();
    let error = fetch(&SMALL, dir.path(), &["http://127.0.0.1:1".to_owned()], |_, _| {}).unwrap_err();
    assert!(matches!(error, FetchError::Busy { .. }), "{error}");
    drop(held);
}

/// A zip archive of one file.
fn zipped(text: &str) -> Vec<u8> {
    let mut deflate = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
    deflate.write_all(text.as_bytes()).unwrap();
    let mut header = vec![0; 30];
    header[..4].copy_from_slice(b"PK\x03\x04");
    (header[8], header[26], header[28]) = (8, 3, 2);
    [header, b"a.tEX".to_vec(), deflate.finish().unwrap(), b"PK\x01\x02 and so on".to_vec()].concat()
}

fn zip_dataset(archive: &[u8], text: &str) -> Dataset {
    let sha256 = |bytes: &[u8]| -> &'static str { Digest::of(bytes).to_string().leak() };
    let member = Member { bytes: TEXT.len() as u64, sha256: sha256(text.as_bytes()) };
    Dataset { bytes: archive.len() as u64, sha256: sha256(archive), member: Some(member), ..SMALL }
}

fn serve_archive(archive: &[u8]) -> (String, JoinHandle<Vec<Vec<String>>>) {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", archive.len());
    serve_all(vec![[head.as_bytes(), archive].concat()])
}

#[test]
fn an_archive_is_unpacked_and_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let archive = zipped(TEXT);
    let dataset = zip_dataset(&archive, TEXT);
    let (url, server) = serve_archive(&archive);
    let fetched = fetch(&dataset, dir.path(), &[url], |_, _| {}).unwrap();
    server.join().unwrap();
    assert_eq!(std::fs::read_to_string(&fetched.path).unwrap(), TEXT);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    assert!(!fetch(&dataset, dir.path(), &[], |_, _| panic!("no download")).unwrap().downloaded);
}

#[test]
fn an_archive_of_something_else_is_refused() {
    let not_deflated = [&b"PK\x03\x04"[..], &[0; 60]].concat();
    for (archive, reason) in [
        (zipped(&TEXT.to_uppercase()), "the SHA-256 of what is in it is"),
        (zipped(&TEXT.repeat(1000)), "the SHA-256 of what is in it is"),
        (zipped(TEXT)[..40].to_vec(), "cannot be unpacked"),
        (zipped(TEXT)[..20].to_vec(), "cannot be unpacked"),
        (not_deflated, "does not begin with a deflated file"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (url, server) = serve_archive(&archive);
        let message = fetch(&zip_dataset(&archive, TEXT), dir.path(), &[url], |_, _| {}).unwrap_err().to_string();
        server.join().unwrap();
        assert!(message.contains(reason), "{message}");
        assert!(!dir.path().join("small.txt").exists());
    }
}

#[test]
fn a_server_that_is_not_there_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let message = fetch(&SMALL, dir.path(), std::slice::from_ref(&url), |_, _| {}).unwrap_err().to_string();
    assert!(message.contains(&url) && message.contains("check the network"), "{message}");
}

#[test]
fn a_file_of_another_content_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(SMALL.file);
    std::fs::write(&path, "mine").unwrap();
    let message = fetch(&SMALL, dir.path(), &[], |_, _| {}).unwrap_err().to_string();
    assert!(message.contains(SMALL.sha256) && message.contains(&Digest::of(b"mine").to_string()), "{message}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a-file");
    std::fs::write(&file, "x").unwrap();
    let message = fetch(&SMALL, &file.join("data"), &[], |_, _| {}).unwrap_err().to_string();
    assert!(message.contains("a-file"), "{message}");
}

#[test]
fn datasets_are_found_by_name_and_an_unknown_one_lists_them() {
    assert_eq!(dataset("tinyshakespeare").unwrap().bytes, 1_115_394);
    assert!(dataset("shakespeare").unwrap_err().to_string().contains("known are: tinyshakespeare, tinystories"));
    for (at, dataset) in DATASETS.iter().enumerate() {
        assert!(DATASETS[..at].iter().all(|other| other.name != dataset.name && other.file != dataset.file));
        assert!(dataset.sha256.len() == 64 && dataset.text_sha256().len() == 64);
    }
}
