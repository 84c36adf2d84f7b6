//! A server with one model in the layout of the Hugging Face hub, on this machine.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{Shutdown, TcpListener, TcpStream},
    path::Path,
    sync::{Arc, Mutex},
};

use serde_json::json;

/// The commit that `main` is.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// How the server misbehaves.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Faults {
    /// Answers about the content of `model.safetensors` that break off, each after this many of its bytes.
    pub(crate) cuts: usize,
    pub(crate) cut_after: usize,
    /// Sends other bytes than the hash that it announces.
    pub(crate) wrong_bytes: bool,
}

/// What was asked for: the path, and the headers `range` and `authorization`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) path: String,
    pub(crate) range: Option<String>,
    pub(crate) token: Option<String>,
}

/// The server, which runs until the tests end.
pub(crate) struct HubServer {
    pub(crate) url: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

struct Model {
    name: String,
    files: BTreeMap<String, Vec<u8>>,
    faults: Mutex<Faults>,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl HubServer {
    /// Serves the files of a folder as the model `name`.
    pub(crate) fn of_folder(name: &str, folder: &Path, faults: Faults) -> Self {
        let files = super::names(folder).into_iter().filter(|file| folder.join(file).is_file());
        Self::new(name, files.map(|file| (file.clone(), std::fs::read(folder.join(&file)).unwrap())).collect(), faults)
    }

    pub(crate) fn new(name: &str, files: BTreeMap<String, Vec<u8>>, faults: Faults) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let model =
            Arc::new(Model { name: name.into(), files, faults: Mutex::new(faults), requests: Arc::clone(&requests) });
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let model = Arc::clone(&model);
                // A client may hang up at any time, which is what some tests are about.
                std::thread::spawn(move || model.answer(stream?));
            }
        });
        Self { url, requests }
    }

    /// The requests so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

impl Model {
    fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let first = lines.next().transpose()?.unwrap_or_default();
        let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut request = Request { path: path.clone(), range: None, token: None };
        for line in lines {
            let line = line?;
            match line.split_once(": ").map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())) {
                Some((name, value)) if name == "range" => request.range = Some(value),
                Some((name, value)) if name == "authorization" => request.token = Some(value),
                Some(_) => {}
                None => break,
            }
        }
        self.requests.lock().unwrap().push(request.clone());

        let name = &self.name;
        if path == format!("/api/models/{name}/revision/main") {
            let siblings: Vec<_> = self.files.keys().map(|file| json!({ "rfilename": file })).collect();
            let body = json!({ "sha": COMMIT, "siblings": siblings }).to_string();
            return head(&mut stream, "200 OK", body.len(), "").and_then(|()| stream.write_all(body.as_bytes()));
        }
        let file = path.strip_prefix(&format!("/{name}/resolve/main/")).unwrap_or_default();
        let Some(bytes) = self.files.get(file) else {
            return head(&mut stream, "404 Not Found", 0, "");
        };
        self.answer_file(stream, file, bytes, request.range.as_deref().unwrap_or("bytes=0-"))
    }

    fn answer_file(&self, mut stream: TcpStream, file: &str, bytes: &[u8], range: &str) -> std::io::Result<()> {
        let is_large = file == "model.safetensors";
        let digest = |bytes: &[u8]| tinygpt_trainer::digest::Digest::of(bytes).to_string();
        // As the hub's: of large files the SHA-256, of others another hash of 40 digits.
        let etag = if is_large { digest(bytes) } else { digest(bytes)[..40].to_owned() };
        let mut faults = self.faults.lock().unwrap();
        let mut bytes = bytes.to_vec();
        if is_large && faults.wrong_bytes {
            bytes[20] ^= 1;
        }
        let (from, to) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
        let (from, to) = (from.parse::<usize>().unwrap(), to.parse().unwrap_or(bytes.len() - 1));
        let fields = format!(
            "Content-Range: bytes {from}-{to}/{}\r\nETag: \"{etag}\"\r\nX-Repo-Commit: {COMMIT}\r\n",
            bytes.len()
        );
        let body = &bytes[from..=to];
        head(&mut stream, "206 Partial Content", body.len(), &fields)?;
        if is_large && body.len() > 1 && faults.cuts > 0 {
            faults.cuts -= 1;
            stream.write_all(&body[..faults.cut_after.min(body.len())])?;
            return stream.shutdown(Shutdown::Both);
        }
        stream.write_all(body)
    }
}

fn head(stream: &mut TcpStream, status: &str, length: usize, fields: &str) -> std::io::Result<()> {
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{fields}\r\n")
}
