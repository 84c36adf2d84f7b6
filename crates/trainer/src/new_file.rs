//! New files that get their name when they are complete.

use std::path::Path;

use tempfile::NamedTempFile;

/// A file under a temporary name in `folder`, removed when it is dropped before it is persisted.
pub(crate) fn in_folder(folder: &Path, prefix: &str, suffix: &str) -> std::io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(prefix).suffix(suffix);
    #[cfg(unix)]
    {
        // Temporary files are private by default; this one will be as readable as any other new file.
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(folder)
}
