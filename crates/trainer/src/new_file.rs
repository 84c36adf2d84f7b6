//! New files that get their name when they are complete.

use std::{fs::File, path::Path};

use tempfile::NamedTempFile;

/// A file under a temporary name in `folder`, removed when it is dropped before it is persisted. Write to its
/// [`NamedTempFile::as_file_mut`]: errors of the file itself do not tell the temporary name, which nobody knows.
pub(crate) fn in_folder(folder: &Path, prefix: &str, suffix: &str) -> std::io::Result<NamedTempFile> {
    // Temporary files are private by default; this one will be as readable as any other new file.
    tempfile::Builder::new().prefix(prefix).suffix(suffix).make_in(folder, |path| File::create_new(path))
}
