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
    assert!(message(dir.path().to_owned()).contains("no .txt, .md, .jsonl or .parquet file"));
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

fn options(documents: Documents, text_key: &str) -> CorpusOptions {
    CorpusOptions { documents, text_key: text_key.into(), ..CorpusOptions::default() }
}

/// The documents of a corpus, each of which must end; of reads of few bytes and of the usual ones.
fn documents(path: impl AsRef<Path>, options: CorpusOptions) -> Result<Vec<String>, CorpusError> {
    let corpus = Corpus::open_with(path, options)?;
    let read = |chunk| {
        let (mut ended, mut open) = (Vec::new(), String::new());
        for piece in corpus.pieces_of(chunk) {
            let Piece { text, ends_document } = piece?;
            open += &text;
            if ends_document {
                ended.push(std::mem::take(&mut open));
            }
        }
        assert_eq!(open, "");
        Ok(ended)
    };
    let documents = read(CHUNK_BYTES)?;
    assert_eq!(read(3)?, documents);
    Ok(documents)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    std::io::Write::write_all(&mut encoder, bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ::zstd::encode_all(bytes, 3).unwrap()
}

/// A table of the columns `id` and `body`, in groups of two rows.
fn table(texts: &[Option<&str>], compression: ::parquet::basic::Compression) -> Vec<u8> {
    use ::parquet::{
        data_type::{ByteArray, ByteArrayType, Int64Type},
        file::{properties::WriterProperties, writer::SerializedFileWriter},
        schema::parser::parse_message_type,
    };
    let schema = parse_message_type("message m { required int64 id; optional binary body (UTF8); }").unwrap();
    let properties = WriterProperties::builder().set_compression(compression).build();
    let mut writer = SerializedFileWriter::new(Vec::new(), Arc::new(schema), Arc::new(properties)).unwrap();
    for (number, rows) in texts.chunks(2).enumerate() {
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let ids: Vec<i64> = (0..rows.len()).map(|row| (2 * number + row) as i64).collect();
        column.typed::<Int64Type>().write_batch(&ids, None, None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let values: Vec<ByteArray> = rows.iter().flatten().map(|&text| ByteArray::from(text)).collect();
        let levels: Vec<i16> = rows.iter().map(|row| i16::from(row.is_some())).collect();
        column.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    writer.into_inner().unwrap()
}

#[test]
fn a_mark_of_byte_order_is_left_out_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "1.txt", "\u{feff}a\u{feff}");
    write(dir.path(), "2.txt", "\u{feff}");
    write(dir.path(), "3.txt", "b");
    let corpus = Corpus::open(dir.path()).unwrap();
    for chunk in 1..9 {
        let text: String = corpus.pieces_of(chunk).map(|piece| piece.unwrap().text).collect();
        assert_eq!(text, "a\u{feff}b");
    }
    assert_eq!(corpus.sha256().unwrap(), Digest::of("a\u{feff}b".as_bytes()));
}

#[test]
fn compressed_text_is_the_text_and_its_digest_that_of_the_text() {
    let dir = tempfile::tempdir().unwrap();
    let text = "héllo ".repeat(1000);
    // A second member of gzip goes on with the first, as `cat` makes of two files.
    let two = [gzip(&text.as_bytes()[..1000]), gzip(&text.as_bytes()[1000..])].concat();
    for (name, bytes) in [("a.txt.gz", gzip(text.as_bytes())), ("a.md.zst", zstd(text.as_bytes())), ("b.gz", two)] {
        let corpus = Corpus::open(write(dir.path(), name, bytes)).unwrap();
        assert_eq!(corpus.sha256().unwrap(), Digest::of(text.as_bytes()), "{name}");
        assert!(!corpus.has_documents());
    }
    assert_eq!(Corpus::open(dir.path()).unwrap().files().len(), 2, "a folder gives what has a known ending inside");
}

#[test]
fn a_compressed_file_that_is_cut_short_or_none_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let text = "some text to compress, and more of it";
    for (name, bytes) in [("a.txt.gz", gzip(text.as_bytes())), ("a.txt.zst", zstd(text.as_bytes()))] {
        for bytes in [&bytes[..bytes.len() - 6], &bytes[..3], text.as_bytes()] {
            let path = write(dir.path(), name, bytes);
            let message = Corpus::open(path).unwrap().sha256().unwrap_err().to_string();
            assert!(message.contains("cannot read") && message.contains(name), "{message}");
        }
    }
}

#[test]
fn each_line_of_json_is_a_document() {
    let dir = tempfile::tempdir().unwrap();
    let lines = "\u{feff}{\"id\": 1, \"text\": \"one\\ntwo \\u00e9\"}\n\n{\"text\": null}\r\n{\"text\":\"\"}\n\
                 {\"text\": \"three\", \"meta\": {\"text\": 7}}";
    let expected = ["one\ntwo é", "three"];
    for (name, bytes) in
        [("a.jsonl", lines.into()), ("a.ndjson.gz", gzip(lines.as_bytes())), ("a.jsonl.zst", zstd(lines.as_bytes()))]
    {
        let path = write(dir.path(), name, bytes);
        assert_eq!(documents(&path, CorpusOptions::default()).unwrap(), expected, "{name}");
        assert!(Corpus::open(&path).unwrap().has_documents());
    }
    let path = write(dir.path(), "other.jsonl", "{\"content\": \"four\"}\n");
    assert_eq!(documents(path, options(Documents::None, "content")).unwrap(), ["four"]);
}

#[test]
fn a_line_without_a_text_is_named_by_its_number() {
    let dir = tempfile::tempdir().unwrap();
    for (line, reason) in [
        ("{\"id\": 1, \"body\": \"x\"}", "line 2 of `PATH`: it has no \"text\", but \"id\", \"body\"; name the key"),
        ("{}", "it has no \"text\"; name the key of the text by --text-key"),
        ("{\"text\": [1]}", "its \"text\" is an array, not a string"),
        ("[\"text\"]", "it is no JSON object"),
        ("{\"text\": \"a\"", "it is no JSON object"),
        ("{\"text\": \"a\"} {}", "it is no JSON object"),
        ("{\"text\": \"\\ud800\"}", "it is no JSON object"),
        ("plain text", "it is no JSON object"),
    ] {
        let path = write(dir.path(), "a.jsonl", format!("{{\"text\": \"good\"}}\n{line}\n"));
        let message = documents(&path, CorpusOptions::default()).unwrap_err().to_string();
        let reason = reason.replace("PATH", path.to_str().unwrap());
        assert!(message.contains("line 2 of `") && message.contains(&reason), "{message}");
    }
    let path = write(dir.path(), "b.jsonl", b"{\"text\": \"\xff\"}");
    assert!(documents(path, CorpusOptions::default()).unwrap_err().to_string().contains("line 1 of"));
}

#[test]
fn each_row_of_a_column_is_a_document_in_any_compression() {
    use ::parquet::basic::{Compression, GzipLevel, ZstdLevel};
    let dir = tempfile::tempdir().unwrap();
    let rows = [Some("one"), None, Some(""), Some("twö"), Some("three")];
    for compression in [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(GzipLevel::default()),
        Compression::ZSTD(ZstdLevel::default()),
    ] {
        let path = write(dir.path(), "a.parquet", table(&rows, compression));
        assert_eq!(documents(&path, options(Documents::None, "body")).unwrap(), ["one", "twö", "three"]);
        let corpus = Corpus::open_with(&path, options(Documents::None, "body")).unwrap();
        let mut pieces = corpus.pieces();
        assert!(pieces.by_ref().all(|piece| piece.is_ok()) && pieces.bytes_read() > 0);
    }
}

#[test]
fn a_table_without_the_column_is_refused_and_names_those_that_it_has() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = table(&[Some("a")], ::parquet::basic::Compression::UNCOMPRESSED);
    let path = write(dir.path(), "a.parquet", &bytes);
    let message = |path: &Path, key: &str| documents(path, options(Documents::None, key)).unwrap_err().to_string();
    let missing = message(&path, "text");
    assert!(missing.contains("it has no column \"text\", but \"id\", \"body\"; name the column"), "{missing}");
    assert!(message(&path, "id").contains("its column \"id\" holds INT64, not text"));
    let packed = write(dir.path(), "a.parquet.gz", gzip(&bytes));
    assert!(message(&packed, "body").contains("decompress it"));
    for bad in [&b"PAR1"[..], b"no table at all", &bytes[..bytes.len() - 1]] {
        let path = write(dir.path(), "b.parquet", bad);
        assert!(message(&path, "body").contains("it cannot be read as Parquet"));
    }
}

#[test]
fn a_damaged_table_gives_an_error_or_documents_and_never_takes_the_program_down() {
    let dir = tempfile::tempdir().unwrap();
    let good = table(&[Some("one"), Some("two"), Some("three")], ::parquet::basic::Compression::SNAPPY);
    let mut errors = 0;
    for at in 0..good.len() {
        for changed in [good[at] ^ 1, good[at] ^ 0x80, 0xff] {
            let mut bytes = good.clone();
            bytes[at] = changed;
            let path = write(dir.path(), "a.parquet", bytes);
            let corpus = Corpus::open_with(path, options(Documents::None, "body")).unwrap();
            errors += usize::from(corpus.texts().take(100).any(|text| text.is_err()));
        }
    }
    assert!(errors > good.len(), "{errors} of {}", 3 * good.len());
}

#[test]
fn files_lines_and_marks_end_documents() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "1.txt", "a\nb<|endoftext|>");
    write(dir.path(), "2.txt", "");
    write(dir.path(), "3.txt", "c\r\n\r\nd\n");
    for (by, expected) in [
        (Documents::File, &["a\nb<|endoftext|>", "c\r\n\r\nd\n"][..]),
        (Documents::Line, &["a", "b<|endoftext|>", "c", "d"]),
        (Documents::Marker, &["a\nb", "c\r\n\r\nd\n"]),
    ] {
        assert_eq!(documents(dir.path(), options(by, "text")).unwrap(), expected, "{by:?}");
    }
}

#[test]
fn where_documents_end_is_part_of_the_digest() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), "a.txt", "ab\ncd\n");
    let other = write(dir.path(), "b.txt", "a\nbcd\n");
    let digest = |path: &Path, by| Corpus::open_with(path, options(by, "text")).unwrap().sha256().unwrap();
    assert_eq!(digest(&path, Documents::None), Digest::of(b"ab\ncd\n"));
    let digests = [
        digest(&path, Documents::None),
        digest(&path, Documents::File),
        digest(&path, Documents::Line),
        digest(&other, Documents::Line),
    ];
    assert!((0..4).all(|at| !digests[..at].contains(&digests[at])));
    // The same documents are the same corpus, whatever file they come from.
    let lines = write(dir.path(), "a.jsonl", "{\"text\": \"ab\"}\n{\"text\": \"cd\"}\n");
    assert_eq!(digest(&lines, Documents::None), digest(&path, Documents::Line));
}

#[test]
fn what_is_copied_is_read_as_often_as_needed_and_deleted_with_the_corpus() {
    let corpus = Corpus::copied(&b"once"[..], CorpusOptions::default()).unwrap();
    let copy = corpus.clone();
    drop(corpus);
    assert_eq!((copy.read_to_string().unwrap(), copy.read_to_string().unwrap()), ("once".into(), "once".into()));
    let file = copy.files()[0].clone();
    drop(copy);
    assert!(!file.exists());
    assert!(matches!(Corpus::copied(&b""[..], CorpusOptions::default()), Err(CorpusError::Empty { .. })));
}

#[test]
fn some_paths_are_read_in_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let (b, a) = (write(dir.path(), "b.txt", "b"), write(dir.path(), "sub/a.txt", "a"));
    let both = format!("{}\n{}", b.display(), a.parent().unwrap().display());
    assert_eq!(Corpus::open(&both).unwrap().read_to_string().unwrap(), "ba");
    let message = Corpus::open(format!("{both}\nnone.txt")).unwrap_err().to_string();
    assert!(message.contains("there is no corpus at `none.txt`"), "{message}");
}

proptest! {
    #[test]
    fn pieces_join_to_the_text_for_every_size_of_the_reads(text in "\\PC{1,40}", chunk in 1usize..9) {
        let dir = tempfile::tempdir().unwrap();
        let path = write(dir.path(), "a.txt", &text);
        for corpus in [Corpus::open(path).unwrap(), Corpus::from_text(text.clone()).unwrap()] {
            let pieces = corpus.pieces_of(chunk).map(|piece| piece.map(|piece| piece.text));
            let pieces: Vec<String> = pieces.collect::<Result<_, _>>().unwrap();
            prop_assert!(pieces.iter().all(|p| !p.is_empty() && p.len() <= chunk + 3));
            prop_assert_eq!(pieces.concat(), text.clone());
        }
    }
}
