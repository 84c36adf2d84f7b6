use super::*;

fn llm_c(numbers: [i32; 3], ids: &[u8]) -> Vec<u8> {
    let mut bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    bytes.resize(HEADER_BYTES, 0);
    bytes.extend(ids);
    bytes
}

fn opened(bytes: &[u8]) -> Result<TokenFile> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.bin");
    std::fs::write(&path, bytes).unwrap();
    TokenFile::open(&path)
}

fn tokens(file: TokenFile, vocab_size: usize) -> Vec<u32> {
    let store = file.into_store(vocab_size).unwrap();
    let mut tokens = vec![0; store.len()];
    store.read(0, &mut tokens).unwrap();
    tokens
}

#[test]
fn all_three_files_are_told_apart_and_read() {
    assert_eq!(tokens(opened(&[1, 0, 0, 2]).unwrap(), 513), [1, 512]);
    assert_eq!(tokens(opened(&llm_c([20240520, 1, 2], &[1, 0, 0, 2])).unwrap(), 513), [1, 512]);
    assert_eq!(tokens(opened(&llm_c([20240801, 7, 1], &[1, 0, 2, 0])).unwrap(), 200_000), [131_073]);
}

#[test]
fn what_is_no_token_file_is_refused_and_says_why() {
    for (bytes, reason) in [
        (vec![], "it is empty"),
        (vec![1, 2, 3], "3 bytes are no whole number"),
        (llm_c([20240520, 1, 3], &[1, 0, 0, 2]), "counts 3 ids of 2 bytes, but 4 bytes follow"),
        (llm_c([20240520, 1, 1], &[1, 0, 0, 2]), "counts 1 ids of 2 bytes, but 4 bytes follow"),
        (llm_c([20240801, 7, 2], &[1, 0, 0, 2]), "counts 2 ids of 4 bytes"),
        (llm_c([20240520, 1, -1], &[1, 0]), "counts -1 ids"),
        (llm_c([20240520, 1, i32::MAX], &[1, 0]), "counts 2147483647 ids"),
        (llm_c([20240520, 1, 0], &[]), "counts 0 ids"),
        (llm_c([20240520, 2, 1], &[1, 0]), "version 2, and this program knows 1"),
        (llm_c([20240326, 3, 1], &[1, 0]), "another file of llm.c"),
        (llm_c([20240520, 1, 1], &[1, 0])[..100].to_vec(), "ends inside of its header"),
        (20240520i32.to_le_bytes().to_vec(), "ends inside of its header"),
        (b"PK\x03\x04....".to_vec(), "PyTorch pickle"),
        (b"\x93NUMPY..".to_vec(), "NumPy"),
        (b"TGPTOKEN".to_vec(), "token cache"),
    ] {
        let message = opened(&bytes).unwrap_err().to_string();
        assert!(message.contains("a.bin` is no token file") && message.contains(reason), "{message}");
    }
    assert!(TokenFile::open(Path::new("none.bin")).unwrap_err().to_string().contains("cannot read `none.bin`"));
}

#[test]
fn an_id_outside_the_vocabulary_is_named() {
    let message = opened(&[1, 0, 0, 2]).unwrap().into_store(512).unwrap_err().to_string();
    assert!(message.contains("id 512 at index 1 is not in the vocabulary of 512"), "{message}");
}

#[test]
fn no_change_of_a_byte_and_no_cut_makes_more_of_a_file_than_an_error_or_its_tokens() {
    for good in [llm_c([20240520, 1, 3], &[1, 0, 2, 0, 3, 0]), llm_c([20240801, 7, 1], &[1, 0, 0, 0])] {
        let mut headers = 0;
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bytes = good.clone();
                bytes[at] ^= 1 << bit;
                if let Ok((start, len, width)) = layout(&bytes[..HEADER_BYTES], bytes.len() as u64) {
                    assert!(start + len * width.bytes() <= bytes.len(), "byte {at}, bit {bit}");
                    headers += 1;
                }
            }
        }
        assert!(headers > 0, "the zeros of the header are not looked at");
        for cut in 0..good.len() {
            if let Ok((start, len, width)) = layout(&good[..cut.min(HEADER_BYTES)], cut as u64) {
                assert!(start + len * width.bytes() <= cut, "cut at {cut}");
                assert!(cut % 2 == 0 && cut < 4, "a file of llm.c that is cut short is refused: {cut}");
            }
        }
    }
}

#[test]
fn what_is_written_is_read_again_with_the_same_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let corpus = Corpus::from_text("hello wörld").unwrap();
    let small = Tokenizer::train_char(corpus.texts()).unwrap();
    let wide: String = ('\u{0}'..='\u{1ffff}').take(70_000).collect();
    let wide = Tokenizer::train_char([Ok::<_, TokenizerError>(wide)]).unwrap();
    for (name, format, tokenizer, bytes) in [
        ("a.bin", TokenFileFormat::NanoGpt, &small, 22),
        ("b.bin", TokenFileFormat::LlmC, &small, HEADER_BYTES + 22),
        ("c.bin", TokenFileFormat::LlmC, &wide, HEADER_BYTES + 44),
    ] {
        let path = dir.path().join(name);
        assert_eq!(write(&path, format, tokenizer, &corpus).unwrap(), 11);
        assert_eq!(std::fs::metadata(&path).unwrap().len() as usize, bytes);
        let file = TokenFile::open(&path).unwrap();
        assert_eq!(tokens(file, tokenizer.vocab_size()), tokenizer.encode("hello wörld").unwrap());
    }
    let message = write(&dir.path().join("d.bin"), TokenFileFormat::NanoGpt, &wide, &corpus).unwrap_err();
    assert!(message.to_string().contains("--format llm.c"), "{message}");
    let other = Corpus::from_text("xyz").unwrap();
    let error = write(&dir.path().join("e.bin"), TokenFileFormat::NanoGpt, &small, &other).unwrap_err();
    assert!(matches!(error, TokenFileError::Tokenizer(_)), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3, "a file that failed is not left");
}
