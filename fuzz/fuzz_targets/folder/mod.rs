//! The folder of a small GPT-2, one file of which is fuzzed.

use std::{cell::OnceCell, fs, path::Path};

use tempfile::TempDir;
use tinygpt_model::ModelFolder;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/transformers");

thread_local! {
    /// In memory where the machine has such a folder, since it is written for each input.
    static FOLDER: OnceCell<TempDir> = const { OnceCell::new() };
}

fn new_folder(fuzzed: &str) -> TempDir {
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.expect("a folder");
    // An index is read only where the weights are in shards.
    let fixture = if fuzzed.ends_with("index.json") { "gpt2-shards" } else { "gpt2-gelu-new" };
    for entry in fs::read_dir(Path::new(FIXTURES).join(fixture)).expect("the fixtures").flatten() {
        fs::copy(entry.path(), folder.path().join(entry.file_name())).expect("a copy");
    }
    folder
}

/// Opens the folder with this content of a file.
pub fn open_with(name: &str, content: &[u8]) {
    FOLDER.with(|folder| {
        let folder = folder.get_or_init(|| new_folder(name));
        // A new file, since one that is mapped is not overwritten.
        let path = folder.path().join(name);
        fs::remove_file(&path).expect("the file before");
        fs::write(&path, content).expect("room");
        match ModelFolder::new(folder.path()).map() {
            Ok((config, weights)) => assert_eq!(weights.slices().iter().map(|values| values.len()).sum::<usize>(), config.n_params()),
            Err(error) => assert!(error.to_string().contains(&*folder.path().to_string_lossy()), "{error}"),
        }
    });
}
