//! `--reload`: whether a folder has other weights than those that are served.

use std::{
    path::{Path, PathBuf},
    time::SystemTime,
};

use tinygpt_model::checkpoint::WEIGHTS_FILE;

/// A file of weights as it was seen. Files of a run are put into place whole, so one that has changed is complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightsSeen {
    file: PathBuf,
    /// Its length, and when it was written; none where there is no such file.
    seen: Option<(u64, SystemTime)>,
}

impl WeightsSeen {
    /// Looks at the weights of a model's folder.
    pub fn look(folder: &Path) -> Self {
        let file = folder.join(WEIGHTS_FILE);
        let seen = file.metadata().ok().and_then(|meta| Some((meta.len(), meta.modified().ok()?)));
        Self { file, seen }
    }

    /// What is there now, if it is something else.
    pub fn look_again(&self, folder: &Path) -> Option<Self> {
        let now = Self::look(folder);
        (now.seen.is_some() && now != *self).then_some(now)
    }
}
