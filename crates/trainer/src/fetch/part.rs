//! What has come of a file, and how the rest of it is asked for.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use tinygpt_model::files::atomic::sync_folder;

use super::{CopyError, Dataset, FetchError, agent, copy, explain, unzip::unzip};
use crate::digest::Hasher;

/// How often a server is asked for the rest after a connection broke. Only a connection that brought something counts anew.
const ATTEMPTS: usize = 3;

/// The begin of a file, which another call may go on with: its name says by the digest what it is the begin of.
pub(super) struct Part<'d> {
    dataset: &'d Dataset,
    path: PathBuf,
    /// Locked, so that no other process appends to it.
    file: File,
    hasher: Hasher,
    bytes: u64,
}

/// Why one server did not give the whole file.
enum Failure {
    /// It may go on where it broke off.
    Broken(FetchError),
    /// Another server may do better.
    Refused(FetchError),
    /// No server can.
    Own(FetchError),
}

impl<'d> Part<'d> {
    /// Opens or begins the part of a dataset in a folder.
    pub(super) fn open(dataset: &'d Dataset, folder: &Path) -> Result<Self, FetchError> {
        let path = folder.join(format!(".{}.{:.16}.part", dataset.file, dataset.sha256));
        let write = FetchError::io("write", &path);
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = options.map_err(&write)?;
        if let Err(fs::TryLockError::WouldBlock) = file.try_lock() {
            return Err(FetchError::Busy { path });
        }
        // Longer than the whole: of something else.
        if file.metadata().map_err(&write)?.len() > dataset.bytes {
            file.set_len(0).map_err(&write)?;
        }
        let mut hasher = Hasher::default();
        hasher.read(&mut file).map_err(FetchError::io("read", &path))?;
        let bytes = file.stream_position().map_err(&write)?;
        Ok(Self { dataset, path, file, hasher, bytes })
    }

    /// Asks one server after the other for what is missing. Where nothing came at all, nothing is left.
    pub(super) fn download(
        &mut self,
        base_urls: &[String],
        target: &Path,
        progress: &mut impl FnMut(u64, u64),
    ) -> Result<(), FetchError> {
        let mut last = None;
        'servers: for base in base_urls {
            let url = format!("{}/{}", base.trim_end_matches('/'), self.dataset.url_file);
            let mut attempts = ATTEMPTS;
            while attempts > 0 {
                let before = self.bytes;
                let failure = match self.ask(&url, target, progress) {
                    Ok(()) => return Ok(()),
                    Err(failure) => failure,
                };
                match failure {
                    Failure::Own(error) => {
                        last = Some(error);
                        break 'servers;
                    }
                    Failure::Refused(error) => {
                        last = Some(error);
                        continue 'servers;
                    }
                    Failure::Broken(error) => {
                        last = Some(error);
                        attempts = if self.bytes > before { ATTEMPTS } else { attempts - 1 };
                    }
                }
            }
        }
        if self.bytes == 0 {
            self.delete()?;
        }
        match last {
            Some(error) => Err(error),
            None => Err(self.network(self.dataset.url_file, "no server is named".into(), target)),
        }
    }

    fn ask(&mut self, url: &str, target: &Path, progress: &mut impl FnMut(u64, u64)) -> Result<(), Failure> {
        let all = self.dataset.bytes;
        if self.bytes < all {
            let mut request = agent(url).get(url);
            if self.bytes > 0 {
                request = request.header("Range", format!("bytes={}-", self.bytes));
            }
            let mut response = match request.call() {
                Ok(response) => response,
                // The server's file ends before ours: another one.
                Err(ureq::Error::StatusCode(416)) => {
                    self.restart().map_err(Failure::Own)?;
                    return Err(Failure::Refused(self.network(url, "the server has a shorter file".into(), target)));
                }
                Err(error @ ureq::Error::StatusCode(_)) => {
                    return Err(Failure::Refused(self.network(url, explain(&error), target)));
                }
                Err(error) => return Err(Failure::Broken(self.network(url, explain(&error), target))),
            };
            let begins = content_range(response.headers().get("content-range").and_then(|range| range.to_str().ok()));
            if self.bytes > 0 && (response.status() != 206 || begins != Some(self.bytes)) {
                // It gives the whole file, whatever was asked for.
                self.restart().map_err(Failure::Own)?;
            }
            // One byte more than expected is enough to see that it is something else.
            let mut body = response.body_mut().as_reader().take(all + 1 - self.bytes);
            let Self { file, hasher, bytes, path, .. } = &mut *self;
            let copied = copy(&mut body, |chunk| {
                file.write_all(chunk)?;
                hasher.update(chunk);
                *bytes += chunk.len() as u64;
                progress(*bytes, all);
                Ok(())
            });
            match copied {
                Err(CopyError::Write(error)) => return Err(Failure::Own(FetchError::io("write", path)(error))),
                Err(CopyError::Read(error)) => {
                    let reason = format!("the connection broke after {} bytes ({error})", self.bytes);
                    return Err(Failure::Broken(self.network(url, reason, target)));
                }
                Ok(()) if self.bytes < all => {
                    let reason = format!("the server ended after {} of {all} bytes", self.bytes);
                    return Err(Failure::Broken(self.network(url, reason, target)));
                }
                Ok(()) => {}
            }
        }
        let found = std::mem::take(&mut self.hasher).finish();
        if found.to_string() == self.dataset.sha256 {
            return Ok(());
        }
        self.restart().map_err(Failure::Own)?;
        let (url, path) = (url.to_owned(), target.to_owned());
        Err(Failure::Refused(FetchError::WrongContent { url, found, expected: self.dataset.sha256, path }))
    }

    /// Forgets what has come.
    fn restart(&mut self) -> Result<(), FetchError> {
        let write = FetchError::io("write", &self.path);
        self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0))).map_err(write)?;
        (self.hasher, self.bytes) = (Hasher::default(), 0);
        Ok(())
    }

    fn delete(&self) -> Result<(), FetchError> {
        fs::remove_file(&self.path).map_err(FetchError::io("delete", &self.path))
    }

    /// Puts the whole file, or what the archive holds, into its place.
    pub(super) fn finish(mut self, target: &Path) -> Result<(), FetchError> {
        let write = FetchError::io("write", target);
        match &self.dataset.member {
            Some(member) => {
                self.file.seek(SeekFrom::Start(0)).map_err(FetchError::io("read", &self.path))?;
                unzip(&mut self.file, &self.path, member, target)?;
                self.delete()?;
            }
            None => {
                self.file.sync_all().map_err(&write)?;
                fs::rename(&self.path, target).map_err(&write)?;
            }
        }
        sync_folder(target.parent().unwrap_or(Path::new("."))).map_err(write)
    }

    fn network(&self, url: &str, reason: String, target: &Path) -> FetchError {
        FetchError::Network { url: url.to_owned(), reason, path: target.to_owned(), kept: self.bytes }
    }
}

/// The first byte of `bytes FIRST-LAST/ALL`.
fn content_range(header: Option<&str>) -> Option<u64> {
    header?.strip_prefix("bytes ")?.split_once('-')?.0.parse().ok()
}

/// The folders that were made for a download, the outermost first.
pub(super) struct MadeFolders(Vec<PathBuf>);

impl MadeFolders {
    /// Makes a folder, and those that it is in.
    pub(super) fn make(folder: &Path) -> std::io::Result<Self> {
        let missing = folder.ancestors().take_while(|path| !path.as_os_str().is_empty() && !path.exists());
        let made = Self(missing.map(Path::to_owned).collect());
        fs::create_dir_all(folder)?;
        Ok(made)
    }

    /// Removes those of them that nothing is in.
    pub(super) fn remove_where_empty(&self) {
        for folder in &self.0 {
            // What somebody else has put something into stays.
            if fs::remove_dir(folder).is_err() {
                return;
            }
        }
    }
}
