//! Where two configurations differ.

use serde::{Deserialize, Serialize};
use toml::Value;

use super::{
    RunConfig,
    schema::{ConfigError, fields, lookup, to_table},
};

/// A key that has another value than it had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The key, dotted.
    pub key: String,
    /// Its value before, as TOML writes it.
    pub from: String,
    /// Its value since.
    pub to: String,
}

/// As in `train.lr = 0.0003 (was 0.001)`.
impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { key, from, to } = self;
        write!(f, "{key} = {to} (was {from})")
    }
}

impl RunConfig {
    /// The keys that have another value here than in `before`, in the order of the file.
    ///
    /// # Errors
    /// Never for configurations made by [`load()`](super::load()).
    pub fn changes_since(&self, before: &Self) -> Result<Vec<Change>, ConfigError> {
        let (old, new) = (to_table(before)?, to_table(self)?);
        let written = |table, key| lookup(table, key).map(Value::to_string).unwrap_or_default();
        let changes = fields().map(|field| field.key).map(|key| Change {
            key: key.into(),
            from: written(&old, key),
            to: written(&new, key),
        });
        Ok(changes.filter(|change| change.from != change.to).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_told_in_the_order_of_the_file_as_toml_writes_it() {
        let before = RunConfig::default();
        let mut after = before.clone();
        after.train.lr = 3e-4;
        after.model.dropout = 0.1;
        let told: Vec<_> = after.changes_since(&before).unwrap().iter().map(Change::to_string).collect();
        assert_eq!(told, ["model.dropout = 0.1 (was 0.0)", "train.lr = 0.0003 (was 0.001)"]);
        assert_eq!(before.changes_since(&before), Ok(Vec::new()));
    }
}
