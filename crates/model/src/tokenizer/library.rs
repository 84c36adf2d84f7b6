//! Tokenizers that run through the `tokenizers` crate.

use std::borrow::Cow;

use tokenizers::{DecoderWrapper, ModelWrapper, PreTokenizerWrapper};

use super::{Result, TokenizerError, byte_level};

/// A tokenizer of the `tokenizers` crate, and what is known about it.
#[derive(Clone)]
pub(super) struct Library {
    tokenizer: tokenizers::Tokenizer,
    byte_level: bool,
    vocab_size: usize,
}

impl Library {
    pub(super) fn new(mut tokenizer: tokenizers::Tokenizer) -> Result<Self> {
        // Some files carry the limits of the model they were made for, which would cut a corpus short.
        tokenizer.with_truncation(None).map_err(TokenizerError::library)?;
        tokenizer.with_padding(None);
        let vocab_size = tokenizer.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        Ok(Self { byte_level: is_byte_level(&tokenizer), tokenizer, vocab_size })
    }

    pub(super) fn inner(&self) -> &tokenizers::Tokenizer {
        &self.tokenizer
    }

    pub(super) fn is_byte_level(&self) -> bool {
        self.byte_level
    }

    pub(super) fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    pub(super) fn to_json(&self) -> Result<Vec<u8>> {
        let json = self.tokenizer.to_string(true).map_err(TokenizerError::library)?;
        Ok(json.into_bytes())
    }

    /// The same tokenizer, to which special tokens that a text spells out are text.
    pub(super) fn ordinary(&self) -> Cow<'_, Self> {
        if !self.tokenizer.get_added_tokens_decoder().values().any(|token| token.special) {
            return Cow::Borrowed(self);
        }
        let mut ordinary = self.clone();
        ordinary.tokenizer.set_encode_special_tokens(true);
        Cow::Owned(ordinary)
    }

    pub(super) fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.tokenizer.encode_fast(text, false).map_err(TokenizerError::library)?;
        Ok(encoding.get_ids().to_owned())
    }

    pub(super) fn decode(&self, ids: &[u32]) -> Result<String> {
        // The crate leaves unknown ids out without a word.
        ids.iter().try_for_each(|&id| self.token(id).map(drop))?;
        self.tokenizer.decode(ids, false).map_err(TokenizerError::library)
    }

    /// The token as it stands in the vocabulary.
    pub(super) fn token(&self, id: u32) -> Result<String> {
        self.tokenizer.id_to_token(id).ok_or(TokenizerError::UnknownId { id, vocab_size: self.vocab_size })
    }

    pub(super) fn token_bytes(&self, id: u32) -> Result<usize> {
        let token = self.token(id)?;
        if self.is_added(id) {
            return Ok(token.len());
        }
        if self.byte_level {
            // Each character of the byte-level alphabet is one byte.
            return Ok(token.chars().count());
        }
        if byte_fallback(&token).is_some() {
            return Ok(1);
        }
        Ok(self.added_text(id)?.len())
    }

    pub(super) fn token_text(&self, id: u32) -> Result<String> {
        let token = self.token(id)?;
        if self.is_added(id) {
            return Ok(token);
        }
        if self.byte_level {
            let bytes: Option<Vec<u8>> = token.chars().map(byte_level::byte_of).collect();
            return Ok(bytes.map_or(token, |bytes| byte_level::text_of(&bytes)));
        }
        match byte_fallback(&token) {
            Some(byte) => Ok(byte_level::text_of(&[byte])),
            None => self.added_text(id),
        }
    }

    /// The bytes of a token that a text may contain.
    pub(super) fn token_content(&self, id: u32) -> Option<Vec<u8>> {
        let token = self.token(id).ok()?;
        if self.is_added(id) {
            let is_special = self.tokenizer.get_added_vocabulary().is_special_token(&token);
            return (!is_special).then(|| token.into_bytes());
        }
        if self.byte_level {
            return token.chars().map(byte_level::byte_of).collect();
        }
        match byte_fallback(&token) {
            Some(byte) => Some(vec![byte]),
            None => Some(self.added_text(id).ok()?.into_bytes()),
        }
    }

    fn is_added(&self, id: u32) -> bool {
        self.tokenizer.get_added_vocabulary().get_added_tokens_decoder().contains_key(&id)
    }

    /// What a second token adds to the text of a first one: decoders treat the first in their own way (a leading space is
    /// dropped).
    fn added_text(&self, id: u32) -> Result<String> {
        let (one, two) = (self.decode(&[id])?, self.decode(&[id, id])?);
        Ok(two.get(one.len()..).unwrap_or_default().to_owned())
    }

    pub(super) fn id_of(&self, text: &str) -> Option<u32> {
        self.special_id(text).or_else(|| match self.encode(text).ok()?[..] {
            [only] => Some(only),
            _ => None,
        })
    }

    pub(super) fn special_id(&self, token: &str) -> Option<u32> {
        let vocabulary = self.tokenizer.get_added_vocabulary();
        vocabulary.is_special_token(token).then(|| self.tokenizer.token_to_id(token)).flatten()
    }
}

/// Whether the tokenizer is a byte-level BPE with GPT-2's pattern, so that [`super::segment`] applies to it.
fn is_byte_level(tokenizer: &tokenizers::Tokenizer) -> bool {
    let gpt2_words = matches!(
        tokenizer.get_pre_tokenizer(),
        Some(PreTokenizerWrapper::ByteLevel(level)) if !level.add_prefix_space && level.use_regex
    );
    let bytes_back = matches!(tokenizer.get_decoder(), Some(DecoderWrapper::ByteLevel(_)));
    // Dropout draws merges at random.
    let plain_bpe = matches!(tokenizer.get_model(), ModelWrapper::BPE(bpe) if bpe.dropout.is_none());
    // Added tokens are found before the text is split into words; one that reaches over white space could be cut.
    let added_tokens_uncut = tokenizer.get_added_tokens_decoder().values().all(|token| {
        !token.lstrip && !token.rstrip && !token.single_word && !token.content.contains(char::is_whitespace)
    });
    gpt2_words && bytes_back && plain_bpe && added_tokens_uncut && tokenizer.get_normalizer().is_none()
}

/// The byte that a token of a vocabulary of characters stands for, where it is one that these fall back to, as `<0xE2>`.
fn byte_fallback(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'))?;
    // `from_str_radix` takes a sign too.
    let is_byte = hex.len() == 2 && hex.bytes().all(|b| b.is_ascii_hexdigit());
    is_byte.then(|| u8::from_str_radix(hex, 16).ok()).flatten()
}
