//! SHA-256 digests: the names of corpora, tokenizers and downloads.

use std::{
    fmt,
    fs::File,
    io,
    path::{Path, PathBuf},
};

use sha2::Digest as _;

/// A SHA-256 digest; prints as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(sha2::Sha256::digest(bytes).into())
    }

    /// The digest of a file, which is read in pieces.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn of_file(path: &Path) -> io::Result<Self> {
        let mut hasher = Hasher::default();
        hasher.read(&mut File::open(path)?)?;
        Ok(hasher.finish())
    }

    /// The digest of files one behind the other.
    ///
    /// # Errors
    /// That of the first file that cannot be read, with its path.
    pub fn of_files(paths: &[PathBuf]) -> Result<Self, (&Path, io::Error)> {
        let mut hasher = Hasher::default();
        for path in paths {
            let read = File::open(path).and_then(|mut file| hasher.read(&mut file));
            read.map_err(|error| (path.as_path(), error))?;
        }
        Ok(hasher.finish())
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for Digest {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex: String = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        // Honours width and precision, so that `{:.16}` is a short name.
        f.pad(&hex)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A digest of bytes that come in pieces.
#[derive(Clone, Default)]
pub struct Hasher(sha2::Sha256);

impl Hasher {
    /// Adds the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Adds all that is left of a file.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(&mut self, file: &mut File) -> io::Result<()> {
        io::copy(file, &mut self.0).map(|_| ())
    }

    /// The digest of everything that was added.
    pub fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_of_abc_is_the_one_of_the_standard_whole_or_in_pieces() {
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(Digest::of(b"abc").to_string(), expected);
        assert_eq!(format!("{:.4}", Digest::of(b"abc")), "ba78");
        let mut hasher = Hasher::default();
        hasher.update(b"a");
        hasher.update(b"bc");
        assert_eq!(format!("{:?}", hasher.finish()), expected);
    }
}
