//! The lock of a run's folder: one process at a time writes to it.

use std::{
    fs::{self, File, TryLockError},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use crate::{Result, TrainError};

/// The file that is locked.
pub(super) const LOCK_FILE: &str = ".lock";
/// How long a lock is waited for: whoever asks [`is_held`] holds it for a moment.
const PATIENCE: Duration = Duration::from_millis(500);
const BETWEEN_TRIES: Duration = Duration::from_millis(5);

/// The lock of a run, held until this value is dropped.
#[derive(Debug)]
pub(super) struct RunLock(File);

impl RunLock {
    /// Locks a run; none on a file system without locks, where two processes on one run are the user's care.
    ///
    /// # Errors
    /// [`TrainError::Busy`], where another process has the lock, or when the file cannot be made.
    pub(super) fn acquire(run: &Path) -> Result<Option<Self>> {
        let path = run.join(LOCK_FILE);
        let file = File::create(&path).map_err(TrainError::io("create", &path))?;
        let begun = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Some(Self(file))),
                Err(TryLockError::WouldBlock) if begun.elapsed() < PATIENCE => thread::sleep(BETWEEN_TRIES),
                Err(TryLockError::WouldBlock) => return Err(TrainError::Busy { path: run.to_owned() }),
                Err(TryLockError::Error(_)) => return Ok(None),
            }
        }
    }
}

impl Drop for RunLock {
    fn drop(&mut self) {
        // Unlocked, not only closed: the lock belongs to the open file, of which a child process that another thread has just
        // forked has a copy until it executes its program, close-on-exec or not. What cannot be unlocked is closed still.
        let _ = self.0.unlock();
    }
}

/// Whether a process holds the lock of a run. It is asked by taking a shared lock for a moment.
pub(super) fn is_held(run: &Path) -> bool {
    let Ok(file) = fs::OpenOptions::new().read(true).open(run.join(LOCK_FILE)) else { return false };
    match file.try_lock_shared() {
        Ok(()) => {
            drop(RunLock(file));
            false
        }
        Err(TryLockError::WouldBlock) => true,
        Err(TryLockError::Error(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_gone_when_it_is_dropped_although_a_forked_process_has_a_copy_of_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let lock = RunLock::acquire(dir.path()).unwrap().unwrap();
        // What a fork leaves in the child: another descriptor of the same open file.
        let copy = lock.0.try_clone().unwrap();
        assert!(is_held(dir.path()));
        assert!(matches!(RunLock::acquire(dir.path()), Err(TrainError::Busy { .. })));
        drop(lock);
        assert!(!is_held(dir.path()));
        assert!(RunLock::acquire(dir.path()).is_ok());
        drop(copy);
    }

    #[test]
    fn who_asks_whether_a_run_is_locked_keeps_nobody_from_locking_it() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_held(dir.path()), "there is no lock yet");
        drop(RunLock::acquire(dir.path()).unwrap());
        thread::scope(|scope| {
            let asker = scope.spawn(|| (0..300).filter(|_| is_held(dir.path())).count());
            while !asker.is_finished() {
                drop(RunLock::acquire(dir.path()).unwrap());
            }
        });
    }
}
