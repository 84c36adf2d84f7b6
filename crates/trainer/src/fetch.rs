//! Downloading a public text whose content is known beforehand.

mod part;
mod unzip;

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    time::Duration,
};

use self::part::{MadeFolders, Part};
use crate::digest::{Digest, Hasher};

#[cfg(test)]
mod tests;

/// The longest that connecting, or waiting for the next bytes, may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// How many bytes are read between two reports of the progress.
const CHUNK_BYTES: usize = 1 << 16;

/// A text that can be downloaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dataset {
    /// The name that a user gives.
    pub name: &'static str,
    /// The name of the file it is saved as.
    pub file: &'static str,
    /// Where it is, without the last part: the first of these that answers is asked.
    pub base_urls: &'static [&'static str],
    /// The last part of where it is.
    pub url_file: &'static str,
    /// The length of what is downloaded, in bytes.
    pub bytes: u64,
    /// The SHA-256 of what is downloaded, in hexadecimal.
    pub sha256: &'static str,
    /// What to take out of it, where it is an archive.
    pub member: Option<Member>,
}

/// The file in a zip archive of a single file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Its length in bytes.
    pub bytes: u64,
    /// Its SHA-256 in hexadecimal.
    pub sha256: &'static str,
}

impl Dataset {
    /// The SHA-256 of the text, in hexadecimal.
    pub fn text_sha256(&self) -> &'static str {
        self.member.map_or(self.sha256, |member| member.sha256)
    }
}

/// The revision of TinyStories (Eldan and Li, 2023) that the digests are of.
const TINY_STORIES: &str =
    "https://huggingface.co/datasets/roneneldan/TinyStories/resolve/f54c09fd23315a6f9c86f9dc80f725de7d8f9c64";

/// The texts that can be downloaded.
pub const DATASETS: &[Dataset] = &[
    Dataset {
        name: "tinyshakespeare",
        file: "tinyshakespeare.txt",
        base_urls: &["https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare"],
        url_file: "input.txt",
        bytes: 1_115_394,
        sha256: "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        member: None,
    },
    // Stories between `<|endoftext|>`: data.documents = "marker".
    Dataset {
        name: "tinystories",
        file: "tinystories.txt",
        base_urls: &[TINY_STORIES],
        url_file: "TinyStoriesV2-GPT4-train.txt",
        bytes: 2_227_753_162,
        sha256: "6418d412de72888f52b5142c761ac21a582f7d1166f0bfbdb5f03ccfdec90443",
        member: None,
    },
    Dataset {
        name: "tinystories-valid",
        file: "tinystories-valid.txt",
        base_urls: &[TINY_STORIES],
        url_file: "TinyStoriesV2-GPT4-valid.txt",
        bytes: 22_502_601,
        sha256: "6874bae9a4c1a4e7edcf0e53b86c17817e9cf881fc75ff2368da457b80c0585d",
        member: None,
    },
    // The first 10^8 bytes of Wikipedia (Mahoney, 2006).
    Dataset {
        name: "enwik8",
        file: "enwik8",
        base_urls: &["https://mattmahoney.net/dc", "https://data.deepai.org"],
        url_file: "enwik8.zip",
        bytes: 36_445_475,
        sha256: "547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc",
        member: Some(Member {
            bytes: 100_000_000,
            sha256: "2b49720ec4d78c3c9fabaee6e4179a5e997302b3a70029f30f2d582218c024a8",
        }),
    },
];

/// What can go wrong with a download.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// No dataset has this name.
    #[error("there is no dataset `{name}`; known are: {known}")]
    UnknownDataset {
        /// What was asked for.
        name: String,
        /// What exists.
        known: String,
    },
    /// The server could not be reached, or it broke off.
    #[error(
        "cannot download {url}: {reason}; {}check the network, name a mirror by --base-url, or put the file at `{path}` by hand",
        kept_so_far(*.kept)
    )]
    Network {
        /// What was asked for.
        url: String,
        /// What happened.
        reason: String,
        /// Where the file belongs.
        path: PathBuf,
        /// The bytes that came and are kept.
        kept: u64,
    },
    /// Another process downloads the same.
    #[error("`{path}` is being written: another tinygpt downloads the same file there")]
    Busy {
        /// The part that is there.
        path: PathBuf,
    },
    /// An archive does not hold what it should.
    #[error("`{path}` cannot be unpacked: {reason}")]
    Archive {
        /// The archive.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// What came is not the text that was expected.
    #[error(
        "{url} gave another text than expected: its SHA-256 is {found}, not {expected}; nothing was saved. A proxy may \
         have answered in its place: try another network, or put the file at `{path}` by hand"
    )]
    WrongContent {
        /// Where it came from.
        url: String,
        /// The digest of what came.
        found: Digest,
        /// The digest that was expected.
        expected: &'static str,
        /// Where the file belongs.
        path: PathBuf,
    },
    /// A file of another content is in the place.
    #[error(
        "`{path}` exists, but its SHA-256 is {found}, not {expected}: it is left as it is; move or delete it and fetch \
         again"
    )]
    ExistsWithOtherContent {
        /// The file.
        path: PathBuf,
        /// Its digest.
        found: Digest,
        /// The digest that was expected.
        expected: &'static str,
    },
    /// The file cannot be read or written.
    #[error("cannot {action} `{path}`: {source}")]
    Io {
        /// `read`, `write`, ...
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
}

impl FetchError {
    fn io(action: &'static str, path: &Path) -> impl Fn(std::io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { action, path: path.clone(), source }
    }
}

/// What [`fetch`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// Where the text is.
    pub path: PathBuf,
    /// Whether it was downloaded; otherwise it was already there.
    pub downloaded: bool,
}

/// Finds a dataset by its name.
///
/// # Errors
/// When there is none; the message lists those that exist.
pub fn dataset(name: &str) -> Result<&'static Dataset, FetchError> {
    DATASETS.iter().find(|dataset| dataset.name == name).ok_or_else(|| FetchError::UnknownDataset {
        name: name.to_owned(),
        known: DATASETS.iter().map(|dataset| dataset.name).collect::<Vec<_>>().join(", "),
    })
}

/// Downloads a dataset to a file in `folder`, unless it is there already.
///
/// The file is complete and has the pinned SHA-256, or it is not there at all. What has come of it is kept in a file beside it
/// whose name has the digest, and a later call asks for the rest. `base_urls` replace the dataset's own; the next one is asked
/// where one fails. `progress` is called with the number of bytes that have come and the number of all. A folder that was made
/// for it is removed again where nothing came.
///
/// # Errors
/// When the text cannot be downloaded, is another one than expected, or cannot be written; and when another file has
/// its name already, which is left as it is.
pub fn fetch(
    dataset: &Dataset,
    folder: &Path,
    base_urls: &[String],
    mut progress: impl FnMut(u64, u64),
) -> Result<Fetched, FetchError> {
    let path = folder.join(dataset.file);
    if is_there(dataset, &path)? {
        return Ok(Fetched { path, downloaded: false });
    }
    let made = MadeFolders::make(folder).map_err(FetchError::io("write", folder))?;
    let downloaded = Part::open(dataset, folder).and_then(|mut part| {
        let own: Vec<String> = dataset.base_urls.iter().map(|url| url.to_string()).collect();
        part.download(if base_urls.is_empty() { &own } else { base_urls }, &path, &mut progress)?;
        part.finish(&path)
    });
    if downloaded.is_err() {
        made.remove_where_empty();
    }
    downloaded.map(|()| Fetched { path, downloaded: true })
}

/// Whether the text is in its place.
fn is_there(dataset: &Dataset, path: &Path) -> Result<bool, FetchError> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(FetchError::io("read", path)(error)),
    };
    let mut hasher = Hasher::default();
    hasher.read(&mut file).map_err(FetchError::io("read", path))?;
    let found = hasher.finish();
    match dataset.text_sha256() {
        expected if found.to_string() == expected => Ok(true),
        expected => Err(FetchError::ExistsWithOtherContent { path: path.to_owned(), found, expected }),
    }
}

fn kept_so_far(bytes: u64) -> String {
    match bytes {
        0 => String::new(),
        bytes => format!("{bytes} bytes are kept, and the same command asks for the rest; "),
    }
}

fn agent(url: &str) -> ureq::Agent {
    let mut config = ureq::Agent::config_builder()
        .timeout_resolve(Some(PATIENCE))
        .timeout_connect(Some(PATIENCE))
        .timeout_recv_response(Some(PATIENCE))
        .timeout_per_read(Some(PATIENCE));
    // The environment's proxy is for the world outside.
    if url.starts_with("http://127.0.0.1") || url.starts_with("http://localhost") {
        config = config.proxy(None);
    }
    config.build().into()
}

fn explain(error: &ureq::Error) -> String {
    match error {
        ureq::Error::StatusCode(404) => "the server has no such file (404)".to_owned(),
        ureq::Error::StatusCode(status) => format!("the server answered with status {status}"),
        error => error.to_string(),
    }
}

/// Which side of a copy failed.
enum CopyError {
    Read(std::io::Error),
    Write(std::io::Error),
}

fn copy(from: &mut impl Read, mut to: impl FnMut(&[u8]) -> std::io::Result<()>) -> Result<(), CopyError> {
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => to(&buffer[..read]).map_err(CopyError::Write)?,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(CopyError::Read(error)),
        }
    }
}
