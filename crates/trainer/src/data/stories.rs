//! The built-in corpus as tokens. Drawing the stories, training a tokenizer on them and computing their entropy takes seconds,
//! so the result is kept beside the tokens of texts.
//!
//! A file of the cache is a header of 96 bytes, the ids of both splits and the surprisals of the validation split, and the
//! SHA-256 of all of that. Everything is little-endian.
//!
//! | bytes | content |
//! | --- | --- |
//! | 0..8 | the magic `TGPSTORY` |
//! | 8..12 | format version (u32) |
//! | 12..16 | bytes per id (u32): 2 if the vocabulary has at most 65,536 tokens, else 4 |
//! | 16..48 | SHA-256 of what the stories are made from |
//! | 48..80 | SHA-256 of their text |
//! | 80..88 | number of ids that train (u64) |
//! | 88..96 | number of ids that validate, and of surprisals (u64, f64) |

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use tinygpt_model::Tokenizer;

use super::{Dataset, Split, source};
use crate::{
    Result,
    cache::{self, STORIES, cached_tokenizer},
    config::DataConfig,
    corpus::Corpus,
    digest::{Digest, Hasher},
    preparation::{Preparation, Stage},
    stories::{Grammar, StoryCorpus},
    token_cache::{Width, write_ids},
};

const MAGIC: &[u8; 8] = b"TGPSTORY";
const FORMAT_VERSION: u32 = 1;
const HEADER_BYTES: usize = 96;
const DIGEST_BYTES: usize = 32;

/// Larger corpora are drawn anew: they would fill the disk with what takes a small part of their training to make.
const MOST_BYTES: usize = 1 << 28;

/// What the stories are made from.
struct Recipe<'a> {
    config: &'a DataConfig,
    seed: u64,
    cache_dir: &'a Path,
}

/// The stories as tokens.
#[derive(Debug, PartialEq)]
struct Stories {
    text_hash: Digest,
    train: Vec<u32>,
    val: Vec<u32>,
    /// That of each token of `val`, in nats.
    surprisals: Vec<f64>,
}

/// The built-in corpus, from the cache where it has it. The split falls between two stories, and the held-out text starts with
/// the line break that ends the last training story: that token is given, not predicted, so the information of the held-out
/// stories is exactly what a model has to predict.
pub(super) fn load(
    config: &DataConfig,
    seed: u64,
    tokenizer: Option<Tokenizer>,
    cache_dir: &Path,
    preparation: &Preparation,
    same: impl FnOnce(Digest) -> Result<String>,
) -> Result<Dataset> {
    source::check_builtin(config)?;
    let recipe = Recipe { config, seed, cache_dir };
    let mut drawn = None;
    let draw = || -> Result<StoryCorpus> {
        preparation.begin(Stage::Stories)?;
        Ok(StoryCorpus::synth(Grammar::builtin(), config.stories_bytes, seed))
    };
    let tokenizer = match tokenizer {
        Some(tokenizer) => tokenizer,
        None if !config.tokenizer_path.is_empty() => source::read_tokenizer(Path::new(&config.tokenizer_path))?,
        None => cached_tokenizer(cache_dir, config, false, &[recipe.digest()], || {
            let text = &drawn.insert(draw()?).text;
            preparation.begin(Stage::Tokenizer)?;
            source::train_tokenizer(config, &[&Corpus::from_text(text.as_str())?.followed_by(preparation)])
        })?,
    };
    let (source_hash, stories) = match recipe.read(&tokenizer) {
        Some(stories) => (same(stories.text_hash)?, stories),
        None => {
            let corpus = drawn.map_or_else(draw, Ok)?;
            let source_hash = same(Digest::of(corpus.text.as_bytes()))?;
            let stories = encode(&corpus, config, &tokenizer, preparation)?;
            recipe.keep(&tokenizer, &stories);
            (source_hash, stories)
        }
    };
    let Stories { train, val, surprisals, .. } = stories;
    let (train, val) = (Split::whole(train.into(), None), Split::whole(val.into(), Some(surprisals)));
    Ok(Dataset { tokenizer, train, val, source_hash })
}

fn encode(
    corpus: &StoryCorpus,
    config: &DataConfig,
    tokenizer: &Tokenizer,
    preparation: &Preparation,
) -> Result<Stories> {
    let text = corpus.text.as_str();
    let wanted = (text.len() as f64 * (1.0 - config.val_fraction)) as usize;
    let at = corpus.stories.partition_point(|story| story.end < wanted);
    let boundary = corpus.stories.get(at).map_or(text.len(), |story| story.end);
    let held_out = boundary.saturating_sub(1);
    preparation.begin(Stage::Tokens)?;
    let train = tokenizer.encode(&text[..boundary])?;
    let val = tokenizer.encode(&text[held_out..])?;
    preparation.begin(Stage::Entropy)?;
    let surprisals = surprisal_per_token(&val, tokenizer, &surprisal_per_byte(&text[held_out..])?)?;
    Ok(Stories { text_hash: Digest::of(text.as_bytes()), train, val, surprisals })
}

impl Recipe<'_> {
    /// The digest of all that the text depends on.
    fn digest(&self) -> Digest {
        let mut hasher = Hasher::default();
        hasher.update(Grammar::builtin_text().as_bytes());
        hasher.update(&(self.config.stories_bytes as u64).to_le_bytes());
        hasher.update(&self.seed.to_le_bytes());
        hasher.finish()
    }

    /// The digest of all that the tokens and their split depend on.
    fn key(&self, tokenizer: &Tokenizer) -> Digest {
        let mut hasher = Hasher::default();
        hasher.update(self.digest().as_bytes());
        hasher.update(&self.config.val_fraction.to_le_bytes());
        hasher.update(Digest::of(tokenizer.json()).as_bytes());
        hasher.finish()
    }

    fn path(&self, key: Digest) -> PathBuf {
        self.cache_dir.join(format!("{STORIES}v{FORMAT_VERSION}-{key:.32}.bin"))
    }

    /// What the cache has; `None` of a file that is missing, damaged or of something else.
    fn read(&self, tokenizer: &Tokenizer) -> Option<Stories> {
        let key = self.key(tokenizer);
        let bytes = fs::read(self.path(key)).ok()?;
        let stories = decode(&bytes, key, tokenizer.vocab_size())?;
        cache::touch(&self.path(key));
        Some(stories)
    }

    /// Keeps the stories. That there is no room for them is no reason to fail: they are drawn anew the next time.
    fn keep(&self, tokenizer: &Tokenizer, stories: &Stories) {
        if self.config.stories_bytes > MOST_BYTES {
            return;
        }
        let key = self.key(tokenizer);
        if let Ok(bytes) = to_bytes(stories, key, Width::of(tokenizer.vocab_size())) {
            let _ = cache::write(self.cache_dir, STORIES, &self.path(key), &bytes);
        }
    }
}

fn to_bytes(stories: &Stories, key: Digest, width: Width) -> io::Result<Vec<u8>> {
    let Stories { text_hash, train, val, surprisals } = stories;
    let mut bytes = Vec::new();
    bytes.extend(MAGIC);
    bytes.extend(FORMAT_VERSION.to_le_bytes());
    bytes.extend((width.bytes() as u32).to_le_bytes());
    bytes.extend(key.as_bytes());
    bytes.extend(text_hash.as_bytes());
    bytes.extend((train.len() as u64).to_le_bytes());
    bytes.extend((val.len() as u64).to_le_bytes());
    write_ids(&mut bytes, width, train)?;
    write_ids(&mut bytes, width, val)?;
    bytes.extend(surprisals.iter().flat_map(|surprisal| surprisal.to_le_bytes()));
    bytes.extend(Digest::of(&bytes).as_bytes());
    Ok(bytes)
}

/// The stories of a file; `None` where it is not a whole one of this key and vocabulary.
fn decode(bytes: &[u8], key: Digest, vocab_size: usize) -> Option<Stories> {
    let (content, digest) = bytes.split_at_checked(bytes.len().checked_sub(DIGEST_BYTES)?)?;
    let (header, body) = content.split_at_checked(HEADER_BYTES)?;
    let width = Width::of(vocab_size);
    let number = |at: usize| Some(u64::from_le_bytes(header.get(at..at + 8)?.try_into().ok()?) as usize);
    let (n_train, n_val) = (number(80)?, number(88)?);
    let known = [MAGIC, &FORMAT_VERSION.to_le_bytes()[..], &(width.bytes() as u32).to_le_bytes(), key.as_bytes()];
    if Digest::of(content).as_bytes() != digest || !header.starts_with(&known.concat()) {
        return None;
    }
    let id_bytes = |n: usize| n.checked_mul(width.bytes());
    let (train, rest) = body.split_at_checked(id_bytes(n_train)?)?;
    let (val, surprisals) = rest.split_at_checked(id_bytes(n_val)?)?;
    let (surprisals, []) = surprisals.as_chunks::<8>() else { return None };
    let ids = |bytes: &[u8]| -> Vec<u32> {
        match width {
            Width::U16 => bytes.as_chunks::<2>().0.iter().map(|id| u16::from_le_bytes(*id).into()).collect(),
            Width::U32 => bytes.as_chunks::<4>().0.iter().map(|id| u32::from_le_bytes(*id)).collect(),
        }
    };
    let (train, val) = (ids(train), ids(val));
    let surprisals: Vec<f64> = surprisals.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect();
    let text_hash = Digest::from(<[u8; DIGEST_BYTES]>::try_from(&header[48..80]).ok()?);
    let is_whole = surprisals.len() == n_val && train.iter().chain(&val).all(|&id| (id as usize) < vocab_size);
    is_whole.then_some(Stories { text_hash, train, val, surprisals })
}

/// The surprisal of every byte of some stories, in nats. The end of a line is certain, and has none.
fn surprisal_per_byte(stories: &str) -> Result<Vec<f64>> {
    let mut surprisals = Vec::with_capacity(stories.len());
    for line in stories.split_inclusive('\n') {
        match line.trim_end_matches('\n') {
            "" => {}
            story => surprisals.extend(Grammar::builtin().surprisal_per_byte(story)?),
        }
        surprisals.push(0.0);
    }
    Ok(surprisals)
}

/// The surprisal of each token, in nats: the sum over its bytes.
fn surprisal_per_token(tokens: &[u32], tokenizer: &Tokenizer, mut bytes: &[f64]) -> Result<Vec<f64>> {
    let mut surprisals = Vec::with_capacity(tokens.len());
    for &token in tokens {
        let (own, rest) = bytes.split_at(tokenizer.token_bytes(token)?.min(bytes.len()));
        surprisals.push(own.iter().sum());
        bytes = rest;
    }
    Ok(surprisals)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stories() -> Stories {
        let text_hash = Digest::of(b"text");
        Stories { text_hash, train: vec![1, 2, 299, 0], val: vec![3, 299], surprisals: vec![0.5, 1.25] }
    }

    #[test]
    fn what_is_kept_comes_back_for_either_width_of_ids() {
        let key = Digest::of(b"key");
        for vocab_size in [300, 70_000] {
            let bytes = to_bytes(&stories(), key, Width::of(vocab_size)).unwrap();
            assert_eq!(decode(&bytes, key, vocab_size), Some(stories()));
        }
    }

    #[test]
    fn a_damaged_file_or_one_of_something_else_is_not_believed() {
        let (key, vocab_size) = (Digest::of(b"key"), 300);
        let bytes = to_bytes(&stories(), key, Width::of(vocab_size)).unwrap();
        for cut in 0..bytes.len() {
            assert_eq!(decode(&bytes[..cut], key, vocab_size), None, "{cut}");
            let mut damaged = bytes.clone();
            damaged[cut] ^= 1;
            assert_eq!(decode(&damaged, key, vocab_size), None, "{cut}");
        }
        assert_eq!(decode(&bytes, Digest::of(b"other"), vocab_size), None);
        assert_eq!(decode(&bytes, key, 70_000), None, "of a vocabulary whose ids are wider");
        assert_eq!(decode(&bytes, key, 299), None, "an id beyond the vocabulary");
    }

    #[test]
    fn the_second_time_nothing_is_drawn_and_all_is_the_same() {
        use std::{
            ops::ControlFlow,
            sync::{Arc, Mutex},
        };
        let dir = tempfile::tempdir().unwrap();
        let config = DataConfig { stories_bytes: 20_000, ..DataConfig::default() };
        let load = |tokenizer| {
            let seen = Arc::new(Mutex::new(Vec::new()));
            let told = Arc::clone(&seen);
            let preparation = Preparation::new(move |progress| {
                if progress.done == 0 {
                    told.lock().unwrap().push(progress.stage);
                }
                ControlFlow::Continue(())
            });
            let same = |digest: Digest| Ok(digest.to_string());
            let data = super::load(&config, 7, tokenizer, dir.path(), &preparation, same).unwrap();
            let stages = seen.lock().unwrap().clone();
            let surprisal = data.val.surprisal(0..data.val.len()).unwrap();
            (
                (data.train.tokens().unwrap(), data.val.tokens().unwrap(), surprisal, data.source_hash),
                stages,
                data.tokenizer,
            )
        };
        let (drawn, stages, tokenizer) = load(None);
        assert_eq!(stages, [Stage::Stories, Stage::Tokenizer, Stage::Tokens, Stage::Entropy]);
        let (kept, stages, _) = load(None);
        assert_eq!((stages, &kept), (Vec::new(), &drawn));
        // A run that goes on has its tokenizer.
        let (kept, stages, _) = load(Some(tokenizer));
        assert_eq!((stages, &kept), (Vec::new(), &drawn));
    }
}
