use std::path::Path;

use proptest::prelude::*;

use super::*;

fn write(folder: &Path, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn a_file_of_any_name_is_a_corpus() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), "book.dat", "héllo");
    let corpus = Corpus::open(&path).unwrap();
    assert_eq!(corpus.read_to_string().unwrap(), "héllo");
    assert_eq!((corpus.len_bytes(), corpus.files()), (6, &[path][..]));
}

#[test]
fn a_folder_gives_its_txt_and_md_files_at_any_depth_in_order_of_path() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "b.txt", "2");
    write(dir.path(), "a/z.md", "1");
    write(dir.path(), "c.TXT", "3");
    write(dir.path(), "ignored.rs", "x");
    std::fs::create_dir(dir.path().join("d.txt")).unwrap();
    assert_eq!(Corpus::open(dir.path()).unwrap().read_to_string().unwrap(), "123");
}

#[test]
fn a_glob_gives_every_regular_file_it_matches_in_order_of_path() {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in [("2.log", "b"), ("1.log", "a"), ("3.txt", "c"), ("sub/4.log", "d")] {
        write(dir.path(), name, text);
    }
    let text = |glob: &str| Corpus::open(dir.path().join(glob)).unwrap().read_to_string().unwrap();
    assert_eq!(text("*.log"), "ab");
    assert_eq!(text("**/*.log"), "abd");
    assert_eq!(text("*"), "abc");
}

#[test]
fn a_file_whose_name_looks_like_a_glob_is_read_as_that_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), "a[1].txt", "brackets");
    write(dir.path(), "a1.txt", "other");
    assert_eq!(Corpus::open(path).unwrap().read_to_string().unwrap(), "brackets");
}

#[test]
fn what_is_missing_or_empty_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let message = |path: PathBuf| Corpus::open(path).unwrap_err().to_string();
    let missing = message(PathBuf::from("no/such.txt"));
    let here = std::env::current_dir().unwrap();
    assert!(missing.contains("`no/such.txt`") && missing.contains(here.to_str().unwrap()), "{missing}");
    assert!(message(dir.path().to_owned()).contains("no .txt or .md file"));
    assert!(message(dir.path().join("*.csv")).contains("*.csv"));
    assert!(message(dir.path().join("a**b")).contains("glob it is broken"));
    let empty = write(dir.path(), "empty.txt", "");
    assert!(message(empty).contains("is empty"));
    assert!(message(dir.path().to_owned()).contains("is empty"));
    assert!(matches!(Corpus::from_text(""), Err(CorpusError::Empty { .. })));
}

#[cfg(unix)]
#[test]
fn a_device_is_refused_and_a_link_to_the_parent_is_no_loop() {
    assert!(matches!(Corpus::open("/dev/null"), Err(CorpusError::NotAFile { .. })));
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "a.txt", "a");
    std::os::unix::fs::symlink(dir.path(), dir.path().join("loop")).unwrap();
    std::os::unix::fs::symlink(dir.path().join("a.txt"), dir.path().join("b.txt")).unwrap();
    assert_eq!(Corpus::open(dir.path()).unwrap().read_to_string().unwrap(), "aa");
}

#[test]
fn a_file_that_vanished_since_it_was_found_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), "a.txt", "a");
    let corpus = Corpus::open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let message = corpus.sha256().unwrap_err().to_string();
    assert!(message.contains("cannot read") && message.contains("a.txt"), "{message}");
}

#[test]
fn the_first_bad_byte_is_named_wherever_the_chunks_end() {
    // A lone continuation byte, a sequence that is cut short by a letter, one cut short by the end of the file.
    for (bytes, expected) in [(&b"ab\x80cd"[..], 2), (b"abc\xe2\x82zz", 3), (b"\xc3\xa9\xf0\x9f\x98", 2)] {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "1.txt", "good");
        let bad = write(dir.path(), "2.txt", bytes);
        let corpus = Corpus::open(dir.path()).unwrap();
        for chunk in 1..8 {
            let mut pieces = corpus.pieces_of(chunk);
            let error = pieces.by_ref().find_map(Result::err).unwrap();
            let CorpusError::NotUtf8 { path, offset } = &error else { panic!("{error}") };
            assert_eq!((path, *offset), (&bad, expected), "chunks of {chunk}");
            assert!(pieces.next().is_none(), "an error ends the iteration");
        }
    }
}

#[test]
fn the_digest_is_that_of_the_content_however_it_is_spread_over_files() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "1.txt", "héll");
    write(dir.path(), "2.txt", "o");
    let spread = Corpus::open(dir.path()).unwrap().sha256().unwrap();
    assert_eq!(spread, Corpus::from_text("héllo").unwrap().sha256().unwrap());
    assert_eq!(spread, Digest::of("héllo".as_bytes()));
}

proptest! {
    #[test]
    fn pieces_join_to_the_text_for_every_size_of_the_reads(text in "\\PC{1,40}", chunk in 1usize..9) {
        let dir = tempfile::tempdir().unwrap();
        let path = write(dir.path(), "a.txt", &text);
        for corpus in [Corpus::open(path).unwrap(), Corpus::from_text(text.clone()).unwrap()] {
            let pieces: Vec<String> = corpus.pieces_of(chunk).collect::<Result<_, _>>().unwrap();
            prop_assert!(pieces.iter().all(|p| !p.is_empty() && p.len() <= chunk + 3));
            prop_assert_eq!(pieces.concat(), text.clone());
        }
    }
}
