//! The documents name what is there: files that they link to or quote, test targets, and a reading path that is short.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The most lines of the reading path.
const READING_LINES: usize = 2500;

/// Folders of the workspace, below which a quoted path is one of ours; those of the crates go without `crates/` too.
const FOLDERS: [&str; 8] = [".ci", "configs", "crates", "data", "docs", "fuzz", "scripts", "tests"];
const CRATES: [&str; 4] = ["cli", "model", "sampler", "trainer"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The documents, by their paths below the root.
fn documents() -> Vec<(String, String)> {
    let mut names: Vec<String> = ["README.md", "CHANGELOG.md"].map(String::from).into();
    names.extend(crate::common::names(&root().join("docs")).iter().map(|name| format!("docs/{name}")));
    names.extend(CRATES.map(|name| format!("crates/{name}/README.md")));
    names.retain(|name| name.ends_with(".md") && root().join(name).exists());
    assert!(names.len() > 5, "{names:?}");
    names.into_iter().map(|name| (name.clone(), text(&root().join(&name)))).collect()
}

/// What stands between two marks, each time.
fn between<'a>(text: &'a str, open: &'a str, close: char) -> impl Iterator<Item = &'a str> {
    text.split(open).skip(1).filter_map(move |rest| rest.split_once(close).map(|(inside, _)| inside))
}

/// What is quoted as code, outside of blocks of it.
fn quoted(text: &str) -> Vec<String> {
    let prose: String = text.split("```").step_by(2).collect();
    prose.split('`').skip(1).step_by(2).map(|code| code.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

#[test]
fn no_figure_of_the_documents_is_still_to_be_filled_in() {
    for (name, text) in documents() {
        assert!(!text.contains("@@"), "{name} has a placeholder");
    }
}

#[test]
fn every_relative_link_of_the_documents_leads_to_a_file() {
    for (name, text) in documents() {
        let folder = root().join(&name).parent().unwrap().to_owned();
        for link in between(&text, "](", ')').filter(|link| !link.starts_with("http") && !link.starts_with('#')) {
            let path = link.split('#').next().unwrap();
            assert!(folder.join(path).exists(), "{name}: {link}");
        }
    }
}

/// The anchors of a document's headings, as GitHub makes them: small letters and digits, hyphens for spaces, nothing else.
fn anchors(text: &str) -> Vec<String> {
    let prose: String = text.split("```").step_by(2).collect();
    let headings = prose.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let kept = |c: char| c.is_alphanumeric() || "-_ ".contains(c);
    headings
        .map(|heading| heading.to_lowercase().chars().filter(|&c| kept(c)).collect::<String>().replace(' ', "-"))
        .collect()
}

#[test]
fn every_anchor_of_a_link_is_that_of_a_heading() {
    let mut found = 0;
    for (name, text) in documents() {
        let file = root().join(&name);
        for link in between(&text, "](", ')').filter(|link| !link.starts_with("http")) {
            let Some((path, anchor)) = link.split_once('#') else { continue };
            let target = if path.is_empty() { file.clone() } else { file.parent().unwrap().join(path) };
            assert!(anchors(&self::text(&target)).iter().any(|there| there == anchor), "{name}: {link}");
            found += 1;
        }
    }
    assert!(found > 10, "{found}");
}

/// `model/src/plan.rs` in prose is `crates/model/src/plan.rs`.
#[test]
fn every_path_of_the_workspace_that_the_documents_quote_is_there() {
    let mut found = 0;
    for (name, text) in documents() {
        // What was there once is history.
        for code in quoted(&text).iter().filter(|_| name != "CHANGELOG.md") {
            let path = code.split(' ').next().unwrap();
            let Some((first, rest)) = path.split_once('/') else { continue };
            let base = match first {
                _ if path.contains(['*', '<', '{']) => continue,
                _ if FOLDERS.contains(&first) => root(),
                _ if CRATES.contains(&first)
                    && ["src", "tests", "examples"].iter().any(|dir| rest.starts_with(dir)) =>
                {
                    root().join("crates")
                }
                _ => continue,
            };
            assert!(base.join(path).exists(), "{name}: {path}");
            found += 1;
        }
    }
    assert!(found > 40, "{found}");
}

/// Of `cargo test -p PACKAGE --test TARGET MODULE::`, whether there is such a target and a file of that module.
#[test]
fn every_test_command_of_the_documents_names_a_target_and_a_module() {
    let mut found = 0;
    for (name, text) in documents() {
        for code in quoted(&text) {
            let Some(arguments) = code.strip_prefix("cargo test -p tinygpt-") else { continue };
            let mut words = arguments.split(' ');
            let package = words.next().unwrap();
            let folder =
                if package == "cli" { root().join("tests") } else { root().join(format!("crates/{package}/tests")) };
            let manifest = self::text(&root().join(format!("crates/{package}/Cargo.toml")));
            if words.next() == Some("--test") {
                let target = words.next().unwrap();
                assert!(manifest.contains(&format!("name = \"{target}\"")), "{name}: {code}");
                if let Some(module) = words.next().and_then(|filter| filter.strip_suffix("::")) {
                    assert!(folder.join(format!("{module}.rs")).exists(), "{name}: {code}");
                }
                found += 1;
            }
        }
    }
    assert!(found > 10, "{found}");
}

/// An entry of the reading path: a file, and between which of its lines it is on the path.
struct Entry {
    path: PathBuf,
    from: Option<String>,
    up_to: Option<String>,
}

impl Entry {
    /// Reads "[`NAME`](PATH) from `LINE` up to `LINE`: why", where either mark may be missing.
    fn parse(item: &str) -> Option<Self> {
        let (_, link) = item.strip_prefix("[`")?.split_once("`](")?;
        let (path, mut rest) = link.split_once(')')?;
        let mut mark = |word: &str| {
            let (mark, behind) = rest.strip_prefix(&format!(" {word} `"))?.split_once('`')?;
            rest = behind;
            Some(mark.to_owned())
        };
        let (from, up_to) = (mark("from"), mark("up to"));
        assert!(rest.starts_with(':'), "what follows the file is not understood: {item}");
        Some(Self { path: root().join("docs").join(path), from, up_to })
    }

    fn lines(&self) -> usize {
        let text = text(&self.path);
        let place = |mark: &str, behind: usize| {
            let mut lines = text.lines().enumerate().skip(behind);
            let found = lines.find(|(_, line)| line.contains(mark));
            found.unwrap_or_else(|| panic!("{} has no line with `{mark}`", self.path.display())).0
        };
        let from = self.from.as_ref().map_or(0, |mark| place(mark, 0));
        self.up_to.as_ref().map_or(text.lines().count(), |mark| place(mark, from + 1)) - from
    }
}

/// The path is what has a number and begins with a file.
#[test]
fn the_reading_path_is_at_most_2500_lines() {
    let text = text(&root().join("docs/reading.md"));
    let mut items: Vec<String> = Vec::new();
    for line in text.lines() {
        match line.split_once(". ") {
            Some((number, item)) if number.parse::<u32>().is_ok() => items.push(item.to_owned()),
            _ if line.starts_with("   ") => items.iter_mut().last().unwrap().push_str(&format!(" {}", line.trim())),
            _ => {}
        }
    }
    let entries: Vec<Entry> = items.iter().filter_map(|item| Entry::parse(item)).collect();
    assert!(entries.len() > 20, "{}", entries.len());
    let lines: usize = entries.iter().map(Entry::lines).sum();
    assert!(lines <= READING_LINES, "the reading path has grown to {lines} lines");
}
