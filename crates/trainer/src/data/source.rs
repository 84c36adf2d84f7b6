//! What `data.corpus` and `data.val` name: a text, or tokens that another program made of one.

use std::path::Path;

use tinygpt_model::{ModelFolder, Tokenizer};

use crate::{
    Result, TrainError,
    config::{ConfigError, DataConfig, TokenizerKind},
    corpus::{Corpus, CorpusOptions, Documents, Part},
    digest::{Digest, Hasher},
    hub::{Hub, HubModel},
    preparation::{Preparation, Stage},
    token_cache::TokenStore,
    token_files::{TokenFile, TokenFileError},
};

/// A text, or tokens of one.
pub enum Source {
    /// Text, which a tokenizer encodes.
    Text(Corpus),
    /// Tokens, which belong to a tokenizer.
    Tokens(TokenFile),
}

impl Source {
    /// Opens a token file where the path is that of a file `.bin`, and a corpus otherwise.
    ///
    /// # Errors
    /// When there is none, or it is damaged.
    pub fn open(path: &str, options: &CorpusOptions) -> Result<Self> {
        if TokenFile::is_named_by(Path::new(path)) {
            return Ok(Self::Tokens(TokenFile::open(Path::new(path))?));
        }
        let corpus = Corpus::open_with(path, options.clone())?;
        match corpus.files().iter().find(|file| TokenFile::is_named_by(file)) {
            Some(file) => Err(TokenFileError::NotAlone { path: file.clone() }.into()),
            None => Ok(Self::Text(corpus)),
        }
    }

    /// The same, of whose text `preparation` is told how far it was read.
    pub fn followed_by(self, preparation: &Preparation) -> Self {
        match self {
            Self::Text(corpus) => Self::Text(corpus.followed_by(preparation)),
            tokens => tokens,
        }
    }

    /// The digest of the text or of the file of tokens. Of a text this is [`Stage::Reading`].
    ///
    /// # Errors
    /// When the text cannot be read.
    pub fn sha256(&self) -> Result<Digest> {
        match self {
            Self::Text(corpus) => {
                corpus.preparation().begin(Stage::Reading)?;
                Ok(corpus.sha256()?)
            }
            Self::Tokens(file) => Ok(file.sha256()),
        }
    }

    /// The tokens; those of a text are kept in `cache_dir`, and making them is [`Stage::Tokens`]. `digest` is that of
    /// [`Source::sha256`].
    ///
    /// # Errors
    /// When the text cannot be encoded or kept, or a token is not one of the tokenizer's.
    pub fn tokens(self, digest: Digest, tokenizer: &Tokenizer, cache_dir: &Path) -> Result<TokenStore> {
        match self {
            Self::Text(corpus) => {
                corpus.preparation().begin(Stage::Tokens)?;
                Ok(TokenStore::open_or_build(cache_dir, digest, tokenizer, &corpus)?)
            }
            Self::Tokens(file) => Ok(file.into_store(tokenizer.vocab_size())?),
        }
    }
}

/// What a configuration trains on, and behind it what it validates with where that is something of its own; and their digests.
pub(super) fn open(config: &DataConfig, preparation: &Preparation) -> Result<(Vec<Source>, Vec<Digest>)> {
    let open = |path: &String| Ok(Source::open(path, &config.corpus_options())?.followed_by(preparation));
    let sources = if config.val_documents {
        let corpus = match open(&config.corpus)? {
            Source::Text(corpus) => corpus,
            Source::Tokens(_) => return Err(val_documents("has no meaning for a file of tokens")),
        };
        parts(config, corpus)?.map(Source::Text).into()
    } else {
        let paths = [&config.corpus, &config.val].into_iter().filter(|path| !path.is_empty());
        paths.map(open).collect::<Result<Vec<_>>>()?
    };
    let digests = sources.iter().map(Source::sha256).collect::<Result<_>>()?;
    Ok((sources, digests))
}

/// The documents of a corpus that train, and those that are held out.
pub(super) fn parts(config: &DataConfig, corpus: Corpus) -> Result<[Corpus; 2]> {
    if !config.val.is_empty() {
        return Err(val_documents("and data.val both say what is held out: take one"));
    }
    if !corpus.has_documents() {
        return Err(val_documents("needs documents: set data.documents to \"file\", \"line\" or \"marker\""));
    }
    Ok([Part::Training, Part::HeldOut].map(|part| corpus.clone().with_part(part(config.val_fraction))))
}

fn val_documents(reason: &str) -> TrainError {
    ConfigError::Range { key: "data.val_documents".into(), value: "true".into(), reason: reason.into() }.into()
}

/// Refuses files beside a text in memory.
pub(super) fn check_in_memory(config: &DataConfig) -> Result<()> {
    let held_out = "a text in memory holds out a part of its own (data.val_fraction)";
    let tokenizer = "a text in memory trains a tokenizer of its own (data.tokenizer)";
    for (key, value, reason) in
        [("data.val", &config.val, held_out), ("data.tokenizer_path", &config.tokenizer_path, tokenizer)]
    {
        if !value.is_empty() {
            let (key, value, reason) = (key.into(), value.clone(), reason.into());
            return Err(ConfigError::Range { key, value, reason }.into());
        }
    }
    Ok(())
}

/// Refuses keys that mean nothing to the built-in corpus.
pub(super) fn check_builtin(config: &DataConfig) -> Result<()> {
    let refused = |key: &str, value: String, reason: &str| {
        Err(ConfigError::Range { key: key.into(), value, reason: reason.into() }.into())
    };
    if !config.val.is_empty() {
        let reason = "the built-in corpus holds out stories of its own (data.val_fraction)";
        return refused("data.val", config.val.clone(), reason);
    }
    if config.val_documents {
        return refused("data.val_documents", "true".into(), "the built-in corpus holds out whole stories in any case");
    }
    if config.documents != Documents::None {
        let value = format!("{:?}", config.documents).to_lowercase();
        return refused("data.documents", value, "the built-in corpus has none");
    }
    Ok(())
}

/// The digest of some sources: that of a single one is its own.
pub(super) fn digest_of_all(digests: &[Digest]) -> Digest {
    match digests {
        [only] => *only,
        all => {
            let mut hasher = Hasher::default();
            all.iter().for_each(|digest| hasher.update(digest.as_bytes()));
            hasher.finish()
        }
    }
}

/// The tokenizer of a configuration: the one that it names, or one that is trained on all of its texts.
pub(super) fn tokenizer(config: &DataConfig, sources: &[Source]) -> Result<Tokenizer> {
    if !config.tokenizer_path.is_empty() {
        return read_tokenizer(Path::new(&config.tokenizer_path));
    }
    let mut corpora = Vec::new();
    for source in sources {
        match source {
            Source::Text(corpus) => corpora.push(corpus),
            Source::Tokens(file) => return Err(needs_tokenizer(&file.path)),
        }
    }
    train_tokenizer(config, &corpora)
}

/// Reads a `tokenizer.json`, or that of a model's folder, or of a model of the hub (`hf:NAME`), which may be downloaded first.
///
/// # Errors
/// When there is none, it is a pickle, or the hub cannot be reached.
pub fn read_tokenizer(path: &Path) -> Result<Tokenizer> {
    if let Some(model) = path.to_str().and_then(HubModel::named) {
        let folder = Hub::from_env()?.tokenizer_folder(&model?, |_, _, _| {})?;
        return Ok(ModelFolder::new(&folder).read_tokenizer()?);
    }
    if path.extension().is_some_and(|extension| extension == "pkl") {
        return Err(TrainError::PickledTokenizer { path: path.to_owned() });
    }
    if path.is_dir() { Ok(ModelFolder::new(path).read_tokenizer()?) } else { Ok(Tokenizer::from_file(path)?) }
}

fn needs_tokenizer(path: &Path) -> TrainError {
    let pickle = path.with_file_name("meta.pkl");
    if pickle.is_file() {
        return TrainError::PickledTokenizer { path: pickle };
    }
    TrainError::NeedsTokenizer { path: path.to_owned() }
}

/// Trains a tokenizer on texts. One of documents has a token that ends a text.
pub(super) fn train_tokenizer(config: &DataConfig, corpora: &[&Corpus]) -> Result<Tokenizer> {
    let pieces = corpora.iter().flat_map(|corpus| corpus.pieces()).map(|piece| piece.map_err(TrainError::from));
    let texts = || corpora.iter().flat_map(|corpus| corpus.texts()).map(|text| text.map_err(TrainError::from));
    let preparation = corpora.first().map(|corpus| corpus.preparation().clone()).unwrap_or_default();
    match (config.tokenizer, corpora.iter().any(|corpus| corpus.has_documents())) {
        (TokenizerKind::Char, false) => Tokenizer::train_char(texts()),
        (TokenizerKind::Char, true) => Tokenizer::train_char_on_documents(pieces),
        (TokenizerKind::Bpe, false) => Tokenizer::train_bpe(then_merging(texts(), preparation), config.vocab_size),
        (TokenizerKind::Bpe, true) => {
            Tokenizer::train_bpe_on_documents(then_merging(pieces, preparation), config.vocab_size)
        }
    }
}

/// The parts of a text. Behind the last of them [`Stage::Merging`] begins, which gives an error where that ends the preparation.
fn then_merging<T>(
    parts: impl Iterator<Item = Result<T>>,
    preparation: Preparation,
) -> impl Iterator<Item = Result<T>> {
    let begun = std::iter::once_with(move || preparation.begin(Stage::Merging));
    parts.chain(begun.filter_map(|begun| begun.err().map(Err)))
}

#[cfg(test)]
mod tests {
    use std::{
        ops::ControlFlow,
        sync::{Arc, Mutex},
    };

    use super::*;

    #[test]
    fn what_is_told_of_a_source_is_the_stage_that_it_is_in() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        std::fs::write(&path, "to be or not to be").unwrap();
        let told = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&told);
        let preparation = Preparation::new(move |progress| {
            told.lock().unwrap().push(progress.stage);
            ControlFlow::Continue(())
        });
        let source = Source::open(path.to_str().unwrap(), &CorpusOptions::default()).unwrap().followed_by(&preparation);
        let tokenizer = Tokenizer::train_char([Ok::<_, TrainError>("to be or not to be")]).unwrap();
        let digest = source.sha256().unwrap();
        assert!(seen.lock().unwrap().drain(..).all(|stage| stage == Stage::Reading));
        let bpe = DataConfig { tokenizer: TokenizerKind::Bpe, vocab_size: 257, ..DataConfig::default() };
        super::tokenizer(&bpe, std::slice::from_ref(&source)).unwrap();
        let stages: Vec<Stage> = seen.lock().unwrap().drain(..).collect();
        assert_eq!(stages.last(), Some(&Stage::Merging), "{stages:?}");
        assert_eq!(stages.iter().filter(|&&stage| stage == Stage::Merging).count(), 1, "{stages:?}");
        source.tokens(digest, &tokenizer, &dir.path().join("cache")).unwrap();
        let stages = seen.lock().unwrap().clone();
        assert!(!stages.is_empty() && stages.iter().all(|&stage| stage == Stage::Tokens), "{stages:?}");
    }

    #[test]
    fn a_preparation_that_ends_before_pairs_are_merged_merges_none() {
        let preparation = Preparation::new(|progress| match progress.stage {
            Stage::Merging => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        });
        let corpus = Corpus::from_text("to be or not to be").unwrap().followed_by(&preparation);
        let bpe = DataConfig { tokenizer: TokenizerKind::Bpe, vocab_size: 257, ..DataConfig::default() };
        assert!(matches!(train_tokenizer(&bpe, &[&corpus]), Err(TrainError::Interrupted)));
    }
}
