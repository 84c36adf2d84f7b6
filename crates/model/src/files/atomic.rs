//! Files that are complete or absent: written under a temporary name, synced, then renamed.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use tempfile::NamedTempFile;

use super::FileError;

const TEMPORARY: &str = ".writing-";

/// Writes a file atomically: after a crash at any moment, `path` holds either its old content or all of `bytes`.
///
/// # Errors
/// When the folder cannot be written to or the disk is full; the old content is still there then.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    write_with(path, |file| file.write_all(bytes))
}

/// As [`write()`], of what a function writes.
///
/// # Errors
/// As [`write()`], and that of the function.
pub fn write_with(path: &Path, content: impl FnOnce(&mut File) -> io::Result<()>) -> Result<(), FileError> {
    let written = || {
        let mut file = NewFile::in_folder(folder_of(path), TEMPORARY, "")?;
        content(file.file())?;
        file.persist(path)
    };
    written().map_err(FileError::io("write", path))?;
    sync_folder(folder_of(path)).map_err(FileError::io("sync", folder_of(path)))
}

/// A file under a temporary name, which gets its own when it is complete; deleted when it is dropped before.
#[derive(Debug)]
pub struct NewFile(NamedTempFile);

impl NewFile {
    /// An empty file in `folder`, whose name begins and ends like this.
    ///
    /// # Errors
    /// When the folder cannot be written to.
    pub fn in_folder(folder: &Path, prefix: &str, suffix: &str) -> io::Result<Self> {
        // Temporary files are private by default; this one will be as readable as any other new file.
        let mut builder = tempfile::Builder::new();
        Ok(Self(builder.prefix(prefix).suffix(suffix).make_in(folder, |path| File::create_new(path))?))
    }

    /// The file to write to. Its errors do not tell the temporary name, which nobody knows.
    pub fn file(&mut self) -> &mut File {
        self.0.as_file_mut()
    }

    /// Waits until the content is on the disk, and then gives it its name, in the place of what had it before.
    ///
    /// # Errors
    /// When the disk is full or the file cannot be renamed.
    pub fn persist(self, path: &Path) -> io::Result<()> {
        self.0.as_file().sync_all()?;
        self.0.persist(path).map(drop).map_err(|e| e.error)
    }
}

/// The folder that a file is in.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes renames inside a folder durable. Platforms that cannot sync a folder do not need it.
///
/// # Errors
/// When the folder cannot be opened or the disk fails.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

/// Deletes what killed processes left in a folder that nobody else writes to.
///
/// # Errors
/// When the folder cannot be read or a file not be deleted.
pub fn delete_abandoned(folder: &Path) -> Result<(), FileError> {
    for entry in fs::read_dir(folder).map_err(FileError::io("read", folder))?.flatten() {
        let path: PathBuf = entry.path();
        if entry.file_name().to_string_lossy().starts_with(TEMPORARY) && path.is_file() {
            fs::remove_file(&path).map_err(FileError::io("delete", &path))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_no_temporary_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        write(&path, b"old and longer").unwrap();
        write(&path, b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_a_killed_process_left_is_deleted_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        for name in [".writing-Ab12", "writing-mine", ".lock"] {
            std::fs::write(dir.path().join(name), "x").unwrap();
        }
        std::fs::create_dir(dir.path().join(".writing-folder")).unwrap();
        delete_abandoned(dir.path()).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
        assert!(!dir.path().join(".writing-Ab12").exists());
    }

    #[test]
    fn a_failed_write_names_the_file_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("missing").join("a.json");
        let message = write(&path, b"x").unwrap_err().to_string();
        assert!(message.starts_with("cannot write ") && message.contains("a.json"), "{message}");
        assert!(!message.contains(".writing-"), "{message}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
