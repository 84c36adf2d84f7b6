//! Kernels that CUDA's driver has compiled for the card and keeps, as CUDA's programming guide describes its cache.

use std::{ffi::OsString, fs, path::PathBuf};

/// Whether the driver has kept none yet, of whatever program, and will keep those that it compiles now: a first run takes longer.
/// `variable` looks up an environment variable.
pub fn are_to_be_made(variable: impl Fn(&str) -> Option<OsString>, home: Option<PathBuf>) -> bool {
    if variable("CUDA_CACHE_DISABLE").is_some_and(|value| value == "1") {
        return false;
    }
    let folder =
        variable("CUDA_CACHE_PATH").map(PathBuf::from).or_else(|| home.map(|home| home.join(".nv/ComputeCache")));
    folder.is_some_and(|folder| fs::read_dir(folder).ok().is_none_or(|mut kept| kept.next().is_none()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_that_keeps_nothing_yet_compiles_and_one_that_may_not_keep_is_not_spoken_of() {
        let home = tempfile::tempdir().unwrap();
        let set = |name: &'static str, value: OsString| move |asked: &str| (asked == name).then(|| value.clone());
        let cache = home.path().join(".nv/ComputeCache");
        let of_home = || are_to_be_made(|_| None, Some(home.path().into()));
        assert!(of_home(), "there is no folder");
        fs::create_dir_all(&cache).unwrap();
        assert!(of_home(), "the folder is empty");
        let other = home.path().join("other");
        fs::create_dir(&other).unwrap();
        fs::write(cache.join("kernel"), "kernel").unwrap();
        assert!(!of_home());
        assert!(are_to_be_made(set("CUDA_CACHE_PATH", other.into()), Some(home.path().into())));
        assert!(!are_to_be_made(set("CUDA_CACHE_DISABLE", "1".into()), None));
        assert!(!are_to_be_made(|_| None, None), "nobody knows where");
    }
}
