//! What the name of a file says of its content.

use std::{
    fs::File,
    io::{BufReader, Read},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use flate2::read::MultiGzDecoder;

use super::CorpusError;

/// What a file holds, once it is decompressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// UTF-8 text.
    Text,
    /// A JSON object a line, of which one value is the text of a document.
    JsonLines,
    /// A table, of which one column holds the texts of documents.
    Parquet,
}

/// How a file is compressed as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Gzip,
    Zstd,
}

/// The format of a file, and whether its ending is one that a folder is searched for. A file of an unknown ending is text.
fn described(path: &Path) -> (Format, Compression, bool) {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let (name, compression) = match (name.strip_suffix(".gz"), name.strip_suffix(".zst")) {
        (Some(inner), _) => (inner, Compression::Gzip),
        (_, Some(inner)) => (inner, Compression::Zstd),
        (None, None) => (name.as_str(), Compression::None),
    };
    let (format, is_known) = match name.rsplit_once('.').map(|(_, extension)| extension) {
        Some("txt" | "md") => (Format::Text, true),
        Some("jsonl" | "ndjson") => (Format::JsonLines, true),
        // Columns are compressed one by one, so that parts of the file can be read.
        Some("parquet") => (Format::Parquet, compression == Compression::None),
        _ => (Format::Text, false),
    };
    (format, compression, is_known)
}

impl Format {
    pub(super) fn of(path: &Path) -> Self {
        described(path).0
    }

    /// Whether the file is read where it lies in a folder.
    pub(super) fn is_known(path: &Path) -> bool {
        described(path).2
    }
}

/// The decompressed bytes of a file; `position` counts those that are read from the disk.
pub(super) fn open(path: &Path, position: Arc<AtomicU64>) -> Result<Box<dyn Read + Send>, CorpusError> {
    let file = CountedFile { file: File::open(path).map_err(CorpusError::unreadable(path))?, position };
    Ok(match described(path).1 {
        Compression::None => Box::new(file),
        Compression::Gzip => Box::new(MultiGzDecoder::new(BufReader::new(file))),
        Compression::Zstd => Box::new(zstd::Decoder::new(file).map_err(CorpusError::unreadable(path))?),
    })
}

/// Whether a file is compressed as a whole.
pub(super) fn is_compressed(path: &Path) -> bool {
    described(path).1 != Compression::None
}

struct CountedFile {
    file: File,
    position: Arc<AtomicU64>,
}

impl Read for CountedFile {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.position.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ending_says_what_a_file_holds_in_any_case() {
        for (name, expected) in [
            ("a.txt", (Format::Text, Compression::None, true)),
            ("a.MD.GZ", (Format::Text, Compression::Gzip, true)),
            ("a.b.jsonl.zst", (Format::JsonLines, Compression::Zstd, true)),
            ("a.parquet", (Format::Parquet, Compression::None, true)),
            ("a.parquet.gz", (Format::Parquet, Compression::Gzip, false)),
            ("a.dat.gz", (Format::Text, Compression::Gzip, false)),
            ("jsonl", (Format::Text, Compression::None, false)),
        ] {
            assert_eq!(described(&Path::new("x.jsonl").join(name)), expected, "{name}");
        }
    }
}
