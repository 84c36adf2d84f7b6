//! `--reload`: whether a folder has other weights than those that are served.

use std::{
    fs::Metadata,
    path::{Path, PathBuf},
    time::SystemTime,
};

use tinygpt_model::checkpoint::WEIGHTS_FILE;

/// A file of weights as it was seen. Files of a run are put into place whole, so one that has changed is complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightsSeen {
    file: PathBuf,
    /// None where there is no such file.
    seen: Option<Seen>,
}

/// What tells a file from the one that was there before.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    len: u64,
    modified: SystemTime,
    /// Device and inode: a file that was moved into place is another, whatever its time.
    #[cfg(unix)]
    inode: (u64, u64),
}

impl Seen {
    fn of(meta: &Metadata) -> Option<Self> {
        #[cfg(unix)]
        use std::os::unix::fs::MetadataExt;
        Some(Self {
            len: meta.len(),
            modified: meta.modified().ok()?,
            #[cfg(unix)]
            inode: (meta.dev(), meta.ino()),
        })
    }
}

impl WeightsSeen {
    /// Looks at the weights of a model's folder.
    pub fn look(folder: &Path) -> Self {
        let file = folder.join(WEIGHTS_FILE);
        let seen = file.metadata().ok().and_then(|meta| Seen::of(&meta));
        Self { file, seen }
    }

    /// What is there now, if it is something else.
    pub fn look_again(&self, folder: &Path) -> Option<Self> {
        let now = Self::look(folder);
        (now.seen.is_some() && now != *self).then_some(now)
    }
}
