//! Files that are complete or absent: written under a temporary name, synced, then renamed.

use std::{io::Write, path::Path};

use crate::{Result, TrainError, new_file};

const TEMPORARY: &str = ".writing-";

/// Writes a file atomically: after a crash at any moment, `path` holds either its old content or all of `bytes`.
///
/// # Errors
/// When the folder cannot be written to or the disk is full; the old content is still there then.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let error = || TrainError::io("write", path);
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = new_file::in_folder(folder, TEMPORARY, "").map_err(error())?;
    file.as_file_mut().write_all(bytes).map_err(error())?;
    file.as_file().sync_all().map_err(error())?;
    file.persist(path).map_err(|e| error()(e.error))?;
    sync_folder(folder)
}

/// Deletes what killed processes left in a folder that nobody else writes to.
pub(crate) fn delete_abandoned(folder: &Path) -> Result<()> {
    for entry in std::fs::read_dir(folder).map_err(TrainError::io("read", folder))?.flatten() {
        let path = entry.path();
        if entry.file_name().to_string_lossy().starts_with(TEMPORARY) && path.is_file() {
            std::fs::remove_file(&path).map_err(TrainError::io("delete", &path))?;
        }
    }
    Ok(())
}

/// Makes renames inside a folder durable. Platforms that cannot sync a folder do not need it.
pub(crate) fn sync_folder(folder: &Path) -> Result<()> {
    if cfg!(unix) {
        std::fs::File::open(folder).and_then(|f| f.sync_all()).map_err(TrainError::io("sync", folder))?;
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
