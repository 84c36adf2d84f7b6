//! The vector instructions that a process computes with: the best of its processor, or those that it was told to.

use super::SimdLevel;
use std::{str::FromStr, sync::OnceLock};

/// What a name may be; `auto` is the best level of the processor.
const NAMES: [&str; 5] = ["auto", "avx512", "avx2", "neon", "scalar"];

/// The level of this process, once it was asked for or chosen.
static OF_PROCESS: OnceLock<SimdLevel> = OnceLock::new();

/// Why vector instructions cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SimdError {
    /// A name that stands for none.
    #[error("`{name}` names no vector instructions; {} do", NAMES.join(", "))]
    Unknown {
        /// The name.
        name: String,
    },
    /// Instructions that this processor lacks.
    #[error("this processor has no {name}; it has {}", present.join(", "))]
    Missing {
        /// The name of the level.
        name: String,
        /// The names of the levels that it has.
        present: Vec<&'static str>,
    },
    /// A choice that comes too late: something was computed with others.
    #[error("this process computes with {in_use} already, and cannot change to {asked}")]
    InUse {
        /// The level of the process.
        in_use: &'static str,
        /// The one that was asked for.
        asked: &'static str,
    },
}

impl SimdLevel {
    /// The level of this process: the best of its processor, unless another was [chosen](SimdLevel::choose).
    pub fn detect() -> Self {
        *OF_PROCESS.get_or_init(Self::best)
    }

    /// Makes this the level of the process, for tests and measurements: results are the same with any, and so what is
    /// faster is never chosen by hand. It is the first thing that a process does.
    ///
    /// # Errors
    /// [`SimdError::InUse`] where the process has another level already.
    pub fn choose(self) -> Result<(), SimdError> {
        match *OF_PROCESS.get_or_init(|| self) {
            level if level == self => Ok(()),
            level => Err(SimdError::InUse { in_use: level.name(), asked: self.name() }),
        }
    }

    /// The best level of this processor.
    fn best() -> Self {
        Self::available()[0]
    }
}

/// The level of a name: `auto` is the best of this processor, and [`SimdLevel::name`] has the others.
impl FromStr for SimdLevel {
    type Err = SimdError;

    /// # Errors
    /// [`SimdError::Unknown`] and [`SimdError::Missing`].
    fn from_str(name: &str) -> Result<Self, SimdError> {
        if name == "auto" {
            return Ok(Self::best());
        }
        let available = Self::available();
        available.iter().copied().find(|level| level.name() == name).ok_or_else(|| {
            if NAMES.contains(&name) {
                let present = available.iter().map(|level| level.name()).collect();
                SimdError::Missing { name: name.to_owned(), present }
            } else {
                SimdError::Unknown { name: name.to_owned() }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_of_the_processor_has_a_name_and_auto_is_the_first() {
        for level in SimdLevel::available() {
            assert_eq!(level.name().parse(), Ok(level));
            assert!(NAMES.contains(&level.name()));
        }
        assert_eq!("auto".parse(), Ok(SimdLevel::available()[0]));
    }

    #[test]
    fn names_of_nothing_and_of_what_the_processor_lacks_are_refused() {
        let refused = |name: &str| name.parse::<SimdLevel>().unwrap_err().to_string();
        for name in ["AVX2", "sse2", ""] {
            assert_eq!(
                refused(name),
                format!("`{name}` names no vector instructions; auto, avx512, avx2, neon, scalar do")
            );
        }
        let foreign = if cfg!(target_arch = "aarch64") { "avx2" } else { "neon" };
        assert!(refused(foreign).starts_with(&format!("this processor has no {foreign}; it has ")));
        assert!(refused(foreign).ends_with("scalar"));
    }

    #[test]
    fn the_level_of_a_process_does_not_change_once_it_is_in_use() {
        let in_use = SimdLevel::detect();
        for level in SimdLevel::available() {
            let chosen = level.choose();
            assert_eq!(chosen.is_ok(), level == in_use, "{level:?}");
            assert_eq!(SimdLevel::detect(), in_use);
        }
    }
}
