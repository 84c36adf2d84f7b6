//! What is done with a tokenizer that was read.

use tinygpt_model::Tokenizer;

/// Encodes a text, whole and in pieces, and decodes tokens. Each may have an error.
pub fn use_it(tokenizer: &Tokenizer) {
    let text = "One day a fox, 3 bears\tand\u{a0}an owl's ü😀\r\n\nmet<|endoftext|>";
    let encoded = tokenizer.encode(text);
    if let Ok(ids) = &encoded {
        let _ = tokenizer.decode(ids);
        let mut pieces = Vec::new();
        let mut corpus = tokenizer.corpus_encoder();
        let (begin, end) = text.split_at(10);
        if corpus.push(begin, &mut pieces).is_ok() && corpus.push(end, &mut pieces).is_ok() && corpus.finish(&mut pieces).is_ok() {
            assert_eq!(&pieces, ids, "the ids of pieces are those of the whole");
        }
    }
    for id in (0..tokenizer.vocab_size().min(50) as u32).chain([tokenizer.start_token(), u32::MAX]) {
        let _ = (tokenizer.decode(&[id]), tokenizer.token_bytes(id), tokenizer.token_text(id));
    }
    let _ = (tokenizer.kind(), tokenizer.end_of_text(), tokenizer.tokenizer_config(8));
}
