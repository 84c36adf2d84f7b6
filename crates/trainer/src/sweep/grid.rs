//! The grid of a sweep: every combination of the values of some keys, with some seeds.

use crate::config::ConfigError;

/// A key and the values it takes.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Setting {
    /// The key of the configuration, such as `train.lr`.
    pub key: String,
    /// Its values as they are written in TOML.
    pub values: Vec<String>,
}

/// All combinations of settings, each with every seed.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Grid {
    /// The settings, in the order in which they were given.
    pub settings: Vec<Setting>,
    /// The seeds.
    pub seeds: Vec<u64>,
}

/// A run of a grid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Point {
    /// A value for each setting of more than one value.
    pub values: Vec<(String, String)>,
    /// All values, as overrides `KEY=VALUE`.
    pub overrides: Vec<String>,
    /// The seed.
    pub seed: u64,
}

impl Grid {
    /// Reads settings `KEY=VALUE[,VALUE...]`. A comma inside brackets or quotes separates nothing.
    ///
    /// # Errors
    /// [`ConfigError::Override`] for an item without a key, without a value or with an empty one;
    /// [`ConfigError::SweptTwice`] for a key or a value that is there twice. Whether a key exists and takes its values is
    /// for the configuration to say.
    pub fn parse(items: &[String], seeds: Vec<u64>) -> Result<Self, ConfigError> {
        let mut settings: Vec<Setting> = Vec::new();
        for item in items {
            let (key, text) = item.split_once('=').ok_or_else(|| ConfigError::Override(item.clone()))?;
            let (key, values) = (key.trim().to_owned(), split_values(text));
            if key.is_empty() || values.iter().any(String::is_empty) {
                return Err(ConfigError::Override(item.clone()));
            }
            let twice =
                values.iter().enumerate().find(|(n, value)| values[..*n].contains(value)).map(|(_, value)| value);
            if let Some(value) = twice {
                return Err(ConfigError::SweptTwice { what: format!("{key} = {value}") });
            }
            if settings.iter().any(|setting| setting.key == key) {
                return Err(ConfigError::SweptTwice { what: key });
            }
            settings.push(Setting { key, values });
        }
        Ok(Self { settings, seeds })
    }

    /// The settings that take more than one value.
    pub fn varied(&self) -> impl Iterator<Item = &Setting> {
        self.settings.iter().filter(|setting| setting.values.len() > 1)
    }

    /// The number of runs; `usize::MAX` where it is larger.
    pub fn len(&self) -> usize {
        let values = self.settings.iter().map(|setting| setting.values.len());
        values.fold(self.seeds.len(), usize::saturating_mul)
    }

    /// Whether there is no run.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The runs: the last setting varies fastest but for the seed, so that the seeds of a combination follow each other.
    pub fn points(&self) -> Vec<Point> {
        let mut combinations: Vec<Vec<&str>> = vec![Vec::new()];
        for setting in &self.settings {
            combinations = combinations
                .iter()
                .flat_map(|before| setting.values.iter().map(move |value| [&before[..], &[value]].concat()))
                .collect();
        }
        let mut points = Vec::with_capacity(self.len());
        for values in &combinations {
            let pairs = || self.settings.iter().zip(values);
            let varied = pairs().filter(|(setting, _)| setting.values.len() > 1);
            let point = Point {
                values: varied.map(|(setting, value)| (setting.key.clone(), value.to_string())).collect(),
                overrides: pairs().map(|(setting, value)| format!("{}={value}", setting.key)).collect(),
                seed: 0,
            };
            points.extend(self.seeds.iter().map(|&seed| Point { seed, ..point.clone() }));
        }
        points
    }
}

impl Point {
    /// The name of the run's folder: its values and its seed. Keys without their section, which names no two of them.
    pub fn name(&self) -> String {
        let short = |key: &str| key.rsplit_once('.').map_or(key, |(_, name)| name).to_owned();
        let text: Vec<String> = self
            .values
            .iter()
            .map(|(key, value)| format!("{}={value}", short(key)))
            .chain([format!("seed={}", self.seed)])
            .collect();
        let allowed = |c: char| if c.is_alphanumeric() || "-_.=,+".contains(c) { c } else { '-' };
        text.join(",").chars().map(allowed).collect()
    }
}

/// The parts of a list between the commas that are in no bracket and no quotes.
fn split_values(text: &str) -> Vec<String> {
    let (mut values, mut depth, mut quote) = (vec![String::new()], 0i32, None);
    for c in text.chars() {
        match (quote, c) {
            (Some(open), _) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(c),
            (None, '[' | '{') => depth += 1,
            (None, ']' | '}') => depth -= 1,
            (None, ',') if depth <= 0 => {
                values.push(String::new());
                continue;
            }
            (None, _) => {}
        }
        if let Some(value) = values.last_mut() {
            value.push(c);
        }
    }
    values.iter().map(|value| value.trim().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid(items: &[&str], seeds: &[u64]) -> Result<Grid, ConfigError> {
        Grid::parse(&items.iter().map(|item| item.to_string()).collect::<Vec<_>>(), seeds.to_vec())
    }

    #[test]
    fn every_combination_comes_once_with_every_seed() {
        let grid = grid(&["train.lr=1e-3, 3e-3", "model.bias=false", "model.n_layer=1,2,4"], &[1, 2]).unwrap();
        let points = grid.points();
        assert_eq!((grid.len(), points.len()), (12, 12));
        let names: Vec<String> = points.iter().map(Point::name).collect();
        assert_eq!(names[..3], ["lr=1e-3,n_layer=1,seed=1", "lr=1e-3,n_layer=1,seed=2", "lr=1e-3,n_layer=2,seed=1"]);
        assert_eq!(points[11].overrides, ["train.lr=3e-3", "model.bias=false", "model.n_layer=4"]);
        let distinct: std::collections::HashSet<_> = names.iter().collect();
        assert_eq!(distinct.len(), 12);
    }

    #[test]
    fn more_runs_than_can_be_counted_are_the_largest_number() {
        let setting = |n: usize| Setting { key: format!("key_{n}"), values: vec![String::new(); 1 << 16] };
        let grid = |settings: usize| Grid { settings: (0..settings).map(setting).collect(), seeds: vec![1, 2, 3] };
        assert_eq!((grid(1).len(), grid(5).len()), (3 << 16, usize::MAX));
    }

    #[test]
    fn without_settings_the_seeds_remain() {
        let names: Vec<String> = grid(&[], &[7, 8]).unwrap().points().iter().map(Point::name).collect();
        assert_eq!(names, ["seed=7", "seed=8"]);
    }

    #[test]
    fn commas_in_brackets_and_quotes_are_part_of_a_value() {
        assert_eq!(split_values("[0.9, 0.95],[0.9, 0.99]"), ["[0.9, 0.95]", "[0.9, 0.99]"]);
        assert_eq!(split_values("\"a,b\",'c,d'"), ["\"a,b\"", "'c,d'"]);
    }

    #[test]
    fn a_name_is_that_of_a_folder() {
        let point = Point { values: vec![("data.corpus".into(), "../a b.txt".into())], overrides: vec![], seed: 1 };
        assert_eq!(point.name(), "corpus=..-a-b.txt,seed=1");
    }

    #[test]
    fn what_is_no_setting_is_refused() {
        for items in [&["train.lr"][..], &["=1"], &["train.lr=1,,2"], &["train.lr="]] {
            assert!(matches!(grid(items, &[1]), Err(ConfigError::Override(_))), "{items:?}");
        }
        for items in [&["train.lr=1,1"][..], &["train.lr=1", "train.lr=2"]] {
            assert!(matches!(grid(items, &[1]), Err(ConfigError::SweptTwice { .. })), "{items:?}");
        }
    }
}
