//! `--reload`: whether a folder has other weights than those that are served.

use std::{
    fs::Metadata,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use tinygpt_model::checkpoint::WEIGHTS_FILE;

/// The first pause before weights that could not be opened are tried again, and the longest: each is twice the one before.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

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

/// When weights that could not be opened are tried again: what is missing beside them may come, yet each attempt reads all of them.
#[derive(Debug, Default)]
pub struct Attempts {
    failed: Option<Failed>,
}

#[derive(Debug)]
struct Failed {
    weights: WeightsSeen,
    pause: Duration,
    again: Instant,
}

impl Attempts {
    /// Whether the weights that are there may be tried now. Others than those that failed may be at once.
    pub fn is_due(&self, weights: &WeightsSeen, now: Instant) -> bool {
        self.failed.as_ref().is_none_or(|failed| failed.weights != *weights || failed.again <= now)
    }

    /// Takes down how an attempt went.
    pub fn made(&mut self, went_well: bool, weights: WeightsSeen, now: Instant) {
        let before = self.failed.take().filter(|failed| failed.weights == weights);
        if !went_well {
            let pause = before.map_or(FIRST_PAUSE, |failed| (2 * failed.pause).min(LONGEST_PAUSE));
            self.failed = Some(Failed { weights, pause, again: now + pause });
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "test code")]
mod tests {
    use super::*;

    #[test]
    fn weights_that_fail_are_tried_again_after_growing_pauses_and_others_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let write = |bytes: &str| {
            std::fs::write(folder.path().join(WEIGHTS_FILE), bytes).unwrap();
            WeightsSeen::look(folder.path())
        };
        let start = Instant::now();
        let after = |seconds: u64| start + Duration::from_secs(seconds);
        let mut attempts = Attempts::default();
        let first = write("1");
        assert!(attempts.is_due(&first, start));
        let mut now = 0;
        for pause in [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300] {
            attempts.made(false, first.clone(), after(now));
            now += pause;
            assert!(!attempts.is_due(&first, after(now) - Duration::from_millis(1)), "{pause}");
            assert!(attempts.is_due(&first, after(now)), "{pause}");
        }
        attempts.made(false, first.clone(), after(now));
        let other = write("22");
        assert!(attempts.is_due(&other, after(now)));
        attempts.made(false, other.clone(), after(now));
        assert!(attempts.is_due(&other, after(now + 1)), "its pauses begin anew");
        attempts.made(true, other.clone(), after(now + 1));
        assert!(attempts.is_due(&other, after(now + 1)));
    }
}
