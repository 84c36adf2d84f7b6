//! Downloading a public text whose content is known beforehand.

use std::{
    io::{Read, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use tinygpt_model::files::atomic::NewFile;

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
    /// Where it is, without its last part.
    pub base_url: &'static str,
    /// The last part of where it is.
    pub url_file: &'static str,
    /// Its length in bytes.
    pub bytes: u64,
    /// Its SHA-256 in hexadecimal.
    pub sha256: &'static str,
}

/// The texts that can be downloaded.
pub const DATASETS: &[Dataset] = &[Dataset {
    name: "tinyshakespeare",
    file: "tinyshakespeare.txt",
    base_url: "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare",
    url_file: "input.txt",
    bytes: 1_115_394,
    sha256: "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
}];

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
    #[error("cannot download {url}: {reason}; check the network, or put the file at `{path}` by hand")]
    Network {
        /// What was asked for.
        url: String,
        /// What happened.
        reason: String,
        /// Where the file belongs.
        path: PathBuf,
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
        /// `read` or `write`.
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
/// The file is complete and has the pinned SHA-256, or it is not there at all. `base_url` replaces the dataset's own.
/// `progress` is called with the number of bytes that have come and the number of all.
///
/// # Errors
/// When the text cannot be downloaded, is another one than expected, or cannot be written; and when another file has
/// its name already, which is left as it is.
pub fn fetch(
    dataset: &Dataset,
    folder: &Path,
    base_url: Option<&str>,
    mut progress: impl FnMut(u64, u64),
) -> Result<Fetched, FetchError> {
    let path = folder.join(dataset.file);
    match std::fs::File::open(&path) {
        Ok(mut file) => {
            let mut hasher = Hasher::default();
            copy(&mut file, |bytes| {
                hasher.update(bytes);
                Ok(())
            })
            .map_err(|error| FetchError::io("read", &path)(error.into_io()))?;
            let (found, expected) = (hasher.finish(), dataset.sha256);
            return if found.to_string() == expected {
                Ok(Fetched { path, downloaded: false })
            } else {
                Err(FetchError::ExistsWithOtherContent { path, found, expected })
            };
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(FetchError::io("read", &path)(error)),
    }

    let url = format!("{}/{}", base_url.unwrap_or(dataset.base_url).trim_end_matches('/'), dataset.url_file);
    let network = |reason: String| FetchError::Network { url: url.clone(), reason, path: path.clone() };
    let write = FetchError::io("write", &path);
    std::fs::create_dir_all(folder).map_err(FetchError::io("write", folder))?;
    // Removed when it is dropped, unless it gets its name at the end.
    let mut file = NewFile::in_folder(folder, ".fetching-", "").map_err(&write)?;

    let mut response = agent(&url).get(&url).call().map_err(|error| network(explain(&error)))?;
    // One byte more than expected is enough to see that it is something else.
    let mut body = response.body_mut().as_reader().take(dataset.bytes + 1);
    let mut hasher = Hasher::default();
    let mut received = 0;
    copy(&mut body, |bytes| {
        hasher.update(bytes);
        received += bytes.len() as u64;
        progress(received, dataset.bytes);
        file.file().write_all(bytes)
    })
    .map_err(|error| match error {
        CopyError::Read(error) => network(format!("the connection broke after {received} bytes ({error})")),
        CopyError::Write(error) => write(error),
    })?;
    let found = hasher.finish();
    if found.to_string() != dataset.sha256 {
        return Err(FetchError::WrongContent { url, found, expected: dataset.sha256, path });
    }
    file.persist(&path).map_err(write)?;
    Ok(Fetched { path, downloaded: true })
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

impl CopyError {
    fn into_io(self) -> std::io::Error {
        let (Self::Read(error) | Self::Write(error)) = self;
        error
    }
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
