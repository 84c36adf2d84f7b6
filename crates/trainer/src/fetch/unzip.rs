//! The only file in a zip archive whose digest was checked.

use std::{
    io::{Read, Write},
    path::Path,
};

use flate2::read::DeflateDecoder;
use tinygpt_model::files::atomic::NewFile;

use super::{CopyError, FetchError, Member, copy};
use crate::digest::Hasher;

/// The bytes of the header of a file in an archive (APPNOTE.TXT 4.3.7), before its name.
const HEADER_BYTES: usize = 30;

/// Writes the first file of an archive to `target`, whole or not at all. `path` names the archive in errors.
pub(super) fn unzip(archive: &mut impl Read, path: &Path, member: &Member, target: &Path) -> Result<(), FetchError> {
    let broken = |reason: String| FetchError::Archive { path: path.to_owned(), reason };
    let read = |error: std::io::Error| broken(error.to_string());
    let mut header = [0; HEADER_BYTES];
    archive.read_exact(&mut header).map_err(read)?;
    let number = |place: usize| u16::from_le_bytes([header[place], header[place + 1]]);
    if !header.starts_with(b"PK\x03\x04") || number(8) != 8 {
        return Err(broken("it does not begin with a deflated file".into()));
    }
    let names = u64::from(number(26)) + u64::from(number(28));
    let skipped = std::io::copy(&mut archive.by_ref().take(names), &mut std::io::sink()).map_err(read)?;
    if skipped != names {
        return Err(broken("it ends inside of its header".into()));
    }
    let write = FetchError::io("write", target);
    let mut file = NewFile::in_folder(target.parent().unwrap_or(Path::new(".")), ".fetching-", "").map_err(&write)?;
    let mut hasher = Hasher::default();
    // One byte more than expected is enough to see that it is something else.
    let copied = copy(&mut DeflateDecoder::new(archive).take(member.bytes + 1), |bytes| {
        hasher.update(bytes);
        file.file().write_all(bytes)
    });
    copied.map_err(|error| match error {
        CopyError::Read(error) => read(error),
        CopyError::Write(error) => write(error),
    })?;
    let found = hasher.finish();
    if found.to_string() != member.sha256 {
        return Err(broken(format!("the SHA-256 of what is in it is {found}, not {}", member.sha256)));
    }
    file.persist(target).map_err(write)
}
