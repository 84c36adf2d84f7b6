//! From text to tokens: the two splits of a corpus, and windows of them.

mod source;
mod stories;

use std::{ops::Range, path::Path, sync::Arc};

use tinygpt_model::{Tokenizer, tokenizer::TokenizerFamily};
use tinygpt_sampler::{RngDomain, philox_at};

use crate::{
    Result, TrainError,
    cache::cached_tokenizer,
    config::DataConfig,
    corpus::Corpus,
    digest::Digest,
    engine::Batch,
    preparation::{Preparation, Stage},
    token_cache::{self, TokenStore},
};

pub use source::{Source, read_tokenizer};

/// The name of the built-in corpus, as `data.corpus` writes it.
pub const BUILTIN_CORPUS: &str = "stories";

/// A run's tokens: the training split and the held-out split.
#[derive(Debug)]
pub struct Dataset {
    /// How text became tokens.
    pub tokenizer: Tokenizer,
    /// What the model learns from.
    pub train: Split,
    /// What it is judged by.
    pub val: Split,
    /// SHA-256 of the text, or of the tokens, so that a run is resumed on the text it was started on.
    pub source_hash: String,
}

/// A range of a token store, and what is known of its text.
#[derive(Debug)]
pub struct Split {
    store: Arc<TokenStore>,
    start: usize,
    len: usize,
    /// The surprisal of each token given those before it, in nats, where the text's entropy is known.
    surprisals: Option<Vec<f64>>,
}

impl Dataset {
    /// Makes or reads the corpus that the configuration names, trains a tokenizer on it unless one is given or named, and
    /// encodes it.
    ///
    /// # Errors
    /// When the corpus is missing, empty or not UTF-8, or has fewer than two distinct tokens; when it holds tokens and there is
    /// no tokenizer, or they are not its own.
    pub fn load(config: &DataConfig, seed: u64, tokenizer: Option<Tokenizer>, cache_dir: &Path) -> Result<Self> {
        Self::load_same(config, seed, tokenizer, cache_dir, None, &Preparation::default())
    }

    /// A text in memory: `config` says how it becomes tokens and what of it is held out; its `corpus` says nothing here. Nothing is
    /// read from files, and nothing written.
    ///
    /// ```
    /// use tinygpt_trainer::{Dataset, config::DataConfig};
    ///
    /// let data = Dataset::from_text("to be or not to be", &DataConfig { val_fraction: 0.5, ..DataConfig::default() })?;
    /// assert_eq!((data.train.len(), data.val.len()), (9, 9));
    /// # Ok::<(), tinygpt_trainer::TrainError>(())
    /// ```
    ///
    /// # Errors
    /// When the text is empty or has fewer than two distinct tokens; [`TrainError::Config`] where `config` names another file
    /// (`val`, `tokenizer_path`).
    pub fn from_text(text: &str, config: &DataConfig) -> Result<Self> {
        source::check_in_memory(config)?;
        let corpus = Corpus::from_text_with(text, config.corpus_options())?;
        let corpora = if config.val_documents { source::parts(config, corpus)?.into() } else { vec![corpus] };
        let tokenizer = source::train_tokenizer(config, &corpora.iter().collect::<Vec<_>>())?;
        let (mut stores, mut digests) = (Vec::new(), Vec::new());
        for corpus in &corpora {
            let mut tokens = Vec::new();
            digests.push(token_cache::encode(&tokenizer, corpus, |ids| {
                tokens.extend_from_slice(ids);
                Ok::<_, TrainError>(())
            })?);
            stores.push(Arc::new(TokenStore::from(tokens)));
        }
        let (train, val) = splits(&stores, config.val_fraction);
        Self { tokenizer, train, val, source_hash: source::digest_of_all(&digests).to_string() }.checked()
    }

    /// Refuses a vocabulary in which there is nothing to predict.
    fn checked(self) -> Result<Self> {
        match self.tokenizer.vocab_size() {
            vocab @ 0..2 => Err(TrainError::NothingToPredict(vocab)),
            _ => Ok(self),
        }
    }

    /// [`Dataset::load`] for a run that exists: refuses a text whose SHA-256 is not `source_hash`, where that is given, a text
    /// of the user's before it is encoded. `preparation` is told how far it is.
    ///
    /// # Errors
    /// As [`Dataset::load`], [`TrainError::CorpusChanged`], and those by which `preparation` ends it.
    pub fn load_same(
        config: &DataConfig,
        seed: u64,
        tokenizer: Option<Tokenizer>,
        cache_dir: &Path,
        source_hash: Option<&str>,
        preparation: &Preparation,
    ) -> Result<Self> {
        let same = |hash: Digest| match source_hash {
            Some(expected) if expected != hash.to_string() => {
                let held_out = if config.val.is_empty() { String::new() } else { format!(" or {}", config.val) };
                Err(TrainError::CorpusChanged { corpus: config.corpus.clone() + &held_out })
            }
            _ => Ok(hash.to_string()),
        };
        let dataset = if config.corpus == BUILTIN_CORPUS {
            stories::load(config, seed, tokenizer, cache_dir, preparation, same)?
        } else {
            Self::text(config, tokenizer, cache_dir, preparation, same)?
        };
        dataset.checked()
    }

    /// Predicted tokens of the validation split for each byte of their text.
    ///
    /// # Errors
    /// When a token is not one of the tokenizer's.
    pub fn val_tokens_per_byte(&self) -> Result<f64> {
        Ok((self.val.len() - 1) as f64 / self.val.predicted_bytes(&self.tokenizer)? as f64)
    }

    /// A text file, folder or glob, or a file of tokens: the first `1 - val_fraction` of the tokens train and the rest
    /// validate, unless `val` is a text or file of its own or `val_documents` takes them from all over the corpus.
    fn text(
        config: &DataConfig,
        tokenizer: Option<Tokenizer>,
        cache_dir: &Path,
        preparation: &Preparation,
        same: impl FnOnce(Digest) -> Result<String>,
    ) -> Result<Self> {
        let (sources, digests) = source::open(config, preparation)?;
        let source_hash = same(source::digest_of_all(&digests))?;
        let has_documents = |source: &Source| matches!(source, Source::Text(corpus) if corpus.has_documents());
        let has_documents = sources.iter().any(has_documents);
        let trained = || {
            preparation.begin(Stage::Tokenizer)?;
            source::tokenizer(config, &sources)
        };
        let tokenizer = match tokenizer {
            Some(tokenizer) => tokenizer,
            None if config.tokenizer_path.is_empty() => {
                cached_tokenizer(cache_dir, config, has_documents, &digests, trained)?
            }
            None => trained()?,
        };
        if has_documents && tokenizer.end_of_text().is_none() {
            return Err(TrainError::NoEndOfText { corpus: config.corpus.clone() });
        }
        let with_digests = sources.into_iter().zip(digests);
        let stores = with_digests.map(|(source, digest)| source.tokens(digest, &tokenizer, cache_dir).map(Arc::new));
        let stores: Vec<Arc<TokenStore>> = stores.collect::<Result<_>>()?;
        let (train, val) = splits(&stores, config.val_fraction);
        Ok(Self { tokenizer, train, val, source_hash })
    }
}

/// What trains and what is held out: a store each, or the end of the only one.
fn splits(stores: &[Arc<TokenStore>], val_fraction: f64) -> (Split, Split) {
    let n = stores[0].len();
    let n_train = (n as f64 * (1.0 - val_fraction)) as usize;
    match stores.get(1) {
        Some(held_out) => (Split::of(&stores[0], 0..n), Split::of(held_out, 0..held_out.len())),
        None => (Split::of(&stores[0], 0..n_train), Split::of(&stores[0], n_train..n)),
    }
}

impl Split {
    /// All tokens of a store; `surprisals` has that of each of them in nats, where it is known.
    pub fn whole(store: TokenStore, surprisals: Option<Vec<f64>>) -> Self {
        Self { start: 0, len: store.len(), store: Arc::new(store), surprisals }
    }

    /// The number of tokens.
    #[expect(clippy::len_without_is_empty, reason = "a split is checked to hold a window before it is used")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The summed surprisal of some tokens in nats, where it is known: no model that predicts them has a smaller summed
    /// loss, in expectation.
    pub fn surprisal(&self, tokens: Range<usize>) -> Option<f64> {
        Some(self.surprisals.as_ref()?.get(tokens)?.iter().sum())
    }

    /// Refuses a split that does not hold one whole window and its last target.
    ///
    /// # Errors
    /// [`TrainError::SplitTooShort`].
    pub fn check(&self, split: &'static str, needed: usize) -> Result<()> {
        if self.len < needed {
            return Err(TrainError::SplitTooShort { split, tokens: self.len, needed });
        }
        Ok(())
    }

    /// Copies the tokens from index `at` on, as many as `tokens` holds.
    ///
    /// # Errors
    /// When there are not that many, or the token cache cannot be read.
    pub(crate) fn read(&self, at: usize, tokens: &mut [u32]) -> Result<()> {
        Ok(self.store.read(self.start + at, tokens)?)
    }

    /// `rows` windows of `cols` tokens at random places, drawn with replacement: a pure function of the seed and of
    /// `micro_step`, the number of the batch among all of the run.
    ///
    /// # Errors
    /// When the split is shorter than a window, or its token cache cannot be read.
    pub fn random_batch(&self, rows: usize, cols: usize, seed: u64, micro_step: u64) -> Result<Batch> {
        self.check("training", cols + 1)?;
        let places = (self.len - cols) as u64;
        self.batch(
            cols,
            (0..rows).map(|row| {
                let [w0, w1, _, _] = philox_at(seed, RngDomain::Windows, micro_step, row as u32);
                let bits = u64::from(w1) << 32 | u64::from(w0);
                // The high half of a 64 x 64 bit product is uniform over the places to within 2^-64 * places.
                ((u128::from(bits) * u128::from(places)) >> 64) as usize
            }),
        )
    }

    /// The windows that start at the given places.
    ///
    /// # Errors
    /// When a window reaches past the end, or the token cache cannot be read.
    pub fn batch(&self, cols: usize, starts: impl Iterator<Item = usize>) -> Result<Batch> {
        let (mut ids, mut targets, mut rows) = (Vec::new(), Vec::new(), 0);
        let mut window = vec![0; cols + 1];
        for start in starts {
            self.read(start, &mut window)?;
            ids.extend_from_slice(&window[..cols]);
            targets.extend_from_slice(&window[1..]);
            rows += 1;
        }
        Ok(Batch { ids, targets, rows, cols })
    }

    /// The number of UTF-8 bytes that all tokens but the first stand for. The end of a document is none.
    ///
    /// # Errors
    /// When a token is not one of the tokenizer's.
    pub fn predicted_bytes(&self, tokenizer: &Tokenizer) -> Result<u64> {
        let (mut bytes, end_of_text) = (0, tokenizer.end_of_text());
        self.each_predicted(|id| {
            if Some(id) != end_of_text {
                bytes += tokenizer.token_bytes(id)? as u64;
            }
            Ok(())
        })?;
        Ok(bytes)
    }

    /// The number of characters of the text of all tokens but the first. A part of a character at either end is one, and the
    /// end of a document none.
    ///
    /// # Errors
    /// When a token is not one of the tokenizer's.
    pub fn predicted_chars(&self, tokenizer: &Tokenizer) -> Result<u64> {
        let end_of_text = tokenizer.end_of_text();
        if tokenizer.kind() == TokenizerFamily::Char && end_of_text.is_none() {
            return Ok(self.len.saturating_sub(1) as u64);
        }
        let (mut chars, mut text) = (0, tokenizer.text_stream());
        self.each_predicted(|id| {
            if Some(id) != end_of_text {
                chars += text.push(id)?.chars().count() as u64;
            }
            Ok(())
        })?;
        Ok(chars + text.finish()?.chars().count() as u64)
    }

    /// A range of a store, of whose text nothing is known.
    fn of(store: &Arc<TokenStore>, range: Range<usize>) -> Self {
        Self { store: Arc::clone(store), start: range.start, len: range.len(), surprisals: None }
    }

    /// All tokens, in memory.
    ///
    /// # Errors
    /// When the token cache cannot be read.
    pub fn tokens(&self) -> Result<Vec<u32>> {
        let mut tokens = vec![0; self.len];
        self.read(0, &mut tokens)?;
        Ok(tokens)
    }

    /// Calls `f` with all tokens but the first, in order.
    fn each_predicted(&self, mut f: impl FnMut(u32) -> Result<()>) -> Result<()> {
        let mut chunk = vec![0; 1 << 16];
        let mut at = 1;
        while at < self.len {
            let n = chunk.len().min(self.len - at);
            self.read(at, &mut chunk[..n])?;
            chunk[..n].iter().try_for_each(|&id| f(id))?;
            at += n;
        }
        Ok(())
    }
}
