//! What text is generated from: a network, or an n-gram model.

use std::path::Path;

use tinygpt_model::{
    Checkpoint, Decoder, Tokenizer,
    cpu::{DecodeFormats, KvCacheFormat, WeightFormat},
    ngram::{NgramModel, is_ngram_folder, open_with_tokenizer},
};

#[cfg(feature = "serve")]
use tinygpt_model::{BatchDecoder, GenerationDefaults, batch_decode::LoneDecoders};

use crate::{
    args::OpeningArgs,
    device::{DeviceChoice, Work},
    hub,
    output::Usage,
};

/// A model that was opened to generate from.
pub enum Generator {
    /// A run, or a folder of Hugging Face.
    Network(Checkpoint),
    /// An n-gram model, as `baseline --save` leaves it.
    Ngrams(NgramModel, Tokenizer),
}

impl Generator {
    /// Opens the model of a folder, with an adapter of its weights if one is given.
    pub fn open(folder: &Path, adapter: Option<&Path>) -> anyhow::Result<Self> {
        if let Some(adapter) = adapter {
            return Ok(Self::Network(Checkpoint::open(folder)?.with_adapter(&hub::folder(adapter)?)?));
        }
        if is_ngram_folder(folder) {
            let (model, tokenizer) = open_with_tokenizer(folder)?;
            return Ok(Self::Ngrams(model, tokenizer));
        }
        Ok(Self::Network(Checkpoint::open(folder)?))
    }

    /// From text to tokens and back.
    pub fn tokenizer(&self) -> &Tokenizer {
        match self {
            Self::Network(checkpoint) => checkpoint.tokenizer(),
            Self::Ngrams(_, tokenizer) => tokenizer,
        }
    }

    /// Whether this is the same network, of other weights perhaps, with the same tokenizer.
    #[cfg(feature = "serve")]
    pub fn is_same_but_for_weights(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Network(a), Self::Network(b)) => a.config() == b.config() && a.tokenizer().is_same(b.tokenizer()),
            _ => false,
        }
    }

    /// The number of tokens in the vocabulary.
    pub fn vocab_size(&self) -> usize {
        match self {
            Self::Network(checkpoint) => checkpoint.config().vocab_size,
            Self::Ngrams(model, _) => model.vocab_size(),
        }
    }

    /// How text is generated where nobody says otherwise.
    #[cfg(feature = "serve")]
    pub fn defaults(&self) -> GenerationDefaults {
        match self {
            Self::Network(checkpoint) => checkpoint.defaults().clone(),
            Self::Ngrams(..) => GenerationDefaults::default(),
        }
    }

    /// The most tokens that a prediction sees; of an n-gram model there is no such limit on prompts.
    pub fn block_size(&self) -> Option<usize> {
        match self {
            Self::Network(checkpoint) => Some(checkpoint.config().block_size),
            Self::Ngrams(..) => None,
        }
    }

    /// The decoder that the flags ask for, of at most `rows` texts at a time.
    pub fn decoder(&self, opening: &OpeningArgs, rows: usize) -> anyhow::Result<Box<dyn Decoder + '_>> {
        let (formats, device) = (opening.formats(), opening.device);
        match self {
            Self::Network(checkpoint) => {
                let work = || Ok(Work::generation(checkpoint.config(), formats, rows));
                let device = device.open_for(work)?;
                Ok(checkpoint.decoder(opening.window.into(), formats, &device)?)
            }
            Self::Ngrams(model, _) => {
                expect_none_for_ngrams(formats, device)?;
                Ok(Box::new(model.decoder()))
            }
        }
    }

    /// The decoder that the flags ask for, of texts that begin and end at any time, at most `slots` of them side by side.
    #[cfg(feature = "serve")]
    pub fn batch_decoder(&self, opening: &OpeningArgs, slots: usize) -> anyhow::Result<Box<dyn BatchDecoder + '_>> {
        let (formats, device) = (opening.formats(), opening.device);
        match self {
            Self::Network(checkpoint) => {
                let work = || Ok(Work::generation(checkpoint.config(), formats, slots));
                let device = device.open_for(work)?;
                Ok(checkpoint.batch_decoder(opening.window.into(), formats, &device, slots)?)
            }
            Self::Ngrams(model, _) => {
                expect_none_for_ngrams(formats, device)?;
                let open = || Ok(Box::new(model.decoder()) as Box<dyn Decoder>);
                Ok(Box::new(LoneDecoders::new(model.vocab_size(), slots, Box::new(open))))
            }
        }
    }
}

/// Refuses flags that are for networks.
fn expect_none_for_ngrams(formats: DecodeFormats, device: DeviceChoice) -> anyhow::Result<()> {
    device.expect_cpu_for_ngrams()?;
    if formats.weights != WeightFormat::F32 {
        return Err(Usage("an n-gram model has counts and no weights: leave --weights out".into()).into());
    }
    if formats.kv_cache != KvCacheFormat::F32 {
        return Err(Usage("an n-gram model has no key-value cache: leave --kv-cache out".into()).into());
    }
    Ok(())
}
