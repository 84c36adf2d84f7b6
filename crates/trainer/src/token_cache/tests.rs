use std::time::{Duration, SystemTime};

use super::*;
use crate::cache::ABANDONED_AFTER;

fn setup(text: &str) -> (tempfile::TempDir, Corpus, Digest, Tokenizer) {
    let corpus = Corpus::from_text(text).unwrap();
    let hash = corpus.sha256().unwrap();
    let tokenizer = Tokenizer::train_char(corpus.texts()).unwrap();
    (tempfile::tempdir().unwrap(), corpus, hash, tokenizer)
}

/// The tokens from `start` to `end`.
fn range(store: &TokenStore, start: usize, end: usize) -> Result<Vec<u32>> {
    let mut tokens = vec![0; end - start];
    store.read(start, &mut tokens)?;
    Ok(tokens)
}

fn files(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// A tokenizer whose vocabulary is too large for 16 bits.
fn wide_tokenizer() -> Tokenizer {
    let text: String = ('\u{0}'..='\u{1ffff}').take(70_000).collect();
    Tokenizer::train_char([Ok::<_, TokenizerError>(text)]).unwrap()
}

#[test]
fn tokens_are_made_once_and_then_mapped() {
    let (dir, corpus, hash, tokenizer) = setup("hello wörld");
    let folder = dir.path().join("made/if/missing");
    let ids = tokenizer.encode("hello wörld").unwrap();
    let store = TokenStore::open_or_build(&folder, hash, &tokenizer, &corpus).unwrap();
    assert_eq!(range(&store, 0, store.len()).unwrap(), ids);
    let made = files(&folder);
    assert_eq!(made.len(), 1, "no temporary file is left");
    let written = std::fs::metadata(&made[0]).unwrap().modified().unwrap();

    // Another corpus of the same digest cannot be read: it is not needed any more.
    let again = TokenStore::open_or_build(&folder, hash, &tokenizer, &Corpus::from_text("other").unwrap()).unwrap();
    let mut out = [0; 3];
    again.read(4, &mut out).unwrap();
    assert_eq!(out, ids[4..7]);
    assert_eq!(std::fs::metadata(&made[0]).unwrap().modified().unwrap(), written);
}

#[test]
fn ids_take_two_bytes_up_to_65536_tokens_and_four_beyond() {
    assert_eq!((Width::of(65_536), Width::of(65_537)), (Width::U16, Width::U32));
    let tokenizer = wide_tokenizer();
    let corpus = Corpus::from_text("a\u{11000}b").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let hash = corpus.sha256().unwrap();
    let store = TokenStore::open_or_build(dir.path(), hash, &tokenizer, &corpus).unwrap();
    assert_eq!(range(&store, 0, 3).unwrap(), tokenizer.encode("a\u{11000}b").unwrap());
    assert!(range(&store, 1, 2).unwrap()[0] > 65_535);
    assert_eq!(std::fs::metadata(&files(dir.path())[0]).unwrap().len(), 128 + 3 * 4);
}

#[test]
fn a_damaged_or_foreign_file_is_made_again() {
    let (dir, corpus, hash, tokenizer) = setup("some text to encode");
    let open = || TokenStore::open_or_build(dir.path(), hash, &tokenizer, &corpus).unwrap();
    open();
    let path = files(dir.path()).remove(0);
    let good = std::fs::read(&path).unwrap();
    let mut broken: Vec<Vec<u8>> =
        vec![vec![], b"not ours".to_vec(), good[..good.len() - 1].to_vec(), good[..good.len() - 2].to_vec()];
    broken.push([&good[..], &[0, 0]].concat());
    // Each byte of the header matters.
    broken.extend((0..HEADER_BYTES).map(|at| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        bytes
    }));
    for bytes in broken {
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(open().len(), 19);
        assert_eq!(std::fs::read(&path).unwrap(), good);
    }
}

#[test]
fn an_id_outside_the_vocabulary_is_reported_with_the_file_to_delete() {
    let (dir, corpus, hash, tokenizer) = setup("abc");
    TokenStore::open_or_build(dir.path(), hash, &tokenizer, &corpus).unwrap();
    let path = files(dir.path()).remove(0);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[HEADER_BYTES + 2] = 77;
    std::fs::write(&path, bytes).unwrap();
    let store = TokenStore::open_or_build(dir.path(), hash, &tokenizer, &corpus).unwrap();
    let message = range(&store, 0, 3).unwrap_err().to_string();
    assert!(message.contains("id 77 at index 1") && message.contains("delete this file"), "{message}");
    assert!(range(&store, 2, 3).is_ok());
}

#[test]
fn tokens_beyond_the_end_are_refused_in_memory_and_mapped() {
    let (dir, corpus, hash, tokenizer) = setup("abc");
    let mapped = TokenStore::open_or_build(dir.path(), hash, &tokenizer, &corpus).unwrap();
    for store in [mapped, TokenStore::from(vec![0, 1, 2])] {
        assert_eq!((store.len(), store.is_empty()), (3, false));
        assert_eq!(range(&store, 0, 3).unwrap(), [0, 1, 2]);
        assert_eq!(range(&store, 3, 3).unwrap(), [0; 0]);
        assert!(matches!(range(&store, 2, 4), Err(TokenCacheError::OutOfRange { start: 2, end: 4, len: 3 })));
        assert!(range(&store, usize::MAX, usize::MAX).is_err());
        assert!(store.read(usize::MAX, &mut [0; 2]).is_err());
    }
}

#[test]
fn a_corpus_that_changed_since_its_digest_leaves_no_file() {
    let (dir, _, hash, tokenizer) = setup("abc");
    let changed = Corpus::from_text("abca").unwrap();
    let error = TokenStore::open_or_build(dir.path(), hash, &tokenizer, &changed).unwrap_err();
    assert!(matches!(error, TokenCacheError::SourceChanged));
    assert_eq!(files(dir.path()).len(), 0);
}

#[test]
fn an_unknown_character_leaves_no_file() {
    let (dir, _, _, tokenizer) = setup("abc");
    let other = Corpus::from_text("abz").unwrap();
    let error = TokenStore::open_or_build(dir.path(), other.sha256().unwrap(), &tokenizer, &other).unwrap_err();
    assert!(matches!(error, TokenCacheError::Tokenizer(_)));
    assert_eq!(files(dir.path()).len(), 0);
}

#[test]
fn a_folder_that_cannot_be_written_is_named_together_with_the_variable() {
    let (dir, corpus, hash, tokenizer) = setup("abc");
    let file = dir.path().join("a-file");
    std::fs::write(&file, "x").unwrap();
    let message = TokenStore::open_or_build(&file, hash, &tokenizer, &corpus).unwrap_err().to_string();
    assert!(message.contains("a-file") && message.contains("TINYGPT_CACHE"), "{message}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_reported_as_such() {
    let mut full = File::options().write(true).open("/dev/full").unwrap();
    let mut writer = BufWriter::new(&mut full);
    write_ids(&mut writer, Width::U16, &[1, 2, 3]).unwrap();
    let source = writer.flush().unwrap_err();
    let message = TokenCacheError::Unwritable { folder: PathBuf::from("/cache"), source }.to_string();
    assert!(message.contains("/cache") && message.contains("No space left"), "{message}");
}

#[test]
fn many_builders_at_once_all_get_the_tokens_and_leave_one_file() {
    let (dir, corpus, hash, tokenizer) = setup(&"many words, one file. ".repeat(2000));
    let expected = tokenizer.encode(&corpus.read_to_string().unwrap()).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let store = TokenStore::open_or_build(dir.path(), hash, &tokenizer, &corpus).unwrap();
                assert_eq!(range(&store, 0, store.len()).unwrap(), expected);
            });
        }
    });
    assert_eq!(files(dir.path()).len(), 1);
}

#[test]
fn what_a_killed_build_left_is_removed_after_a_day() {
    let (dir, corpus, hash, tokenizer) = setup("abc");
    for (name, age) in [("tokens-old.partial", ABANDONED_AFTER * 2), ("tokens-new.partial", Duration::ZERO)] {
        let file = File::create(dir.path().join(name)).unwrap();
        file.set_modified(SystemTime::now() - age).unwrap();
    }
    TokenStore::open_or_build(dir.path(), hash, &tokenizer, &corpus).unwrap();
    assert!(!dir.path().join("tokens-old.partial").exists());
    assert!(dir.path().join("tokens-new.partial").exists(), "another process may be writing it");
}

#[test]
fn the_cache_folder_follows_the_environment_and_empty_variables_are_unset() {
    let folder = |set: &[(&str, &str)]| {
        cache_dir_from(|name| set.iter().find(|(n, _)| *n == name).map(|(_, value)| OsString::from(value)))
    };
    let all = [("TINYGPT_CACHE", "/t"), ("XDG_CACHE_HOME", "/x"), ("HOME", "/h")];
    assert_eq!(folder(&all), Path::new("/t"));
    assert_eq!(folder(&all[1..]), Path::new("/x/tinygpt"));
    assert_eq!(folder(&all[2..]), Path::new("/h/.cache/tinygpt"));
    assert_eq!(folder(&[("TINYGPT_CACHE", ""), ("HOME", "/h")]), Path::new("/h/.cache/tinygpt"));
    assert_eq!(folder(&[]), Path::new(".tinygpt-cache"));
}
