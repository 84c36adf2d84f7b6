//! Models of the Hugging Face hub, downloaded into the cache that its Python libraries use too.
//!
//! `hf:openai-community/gpt2` stands for the branch `main`, `hf:openai-community/gpt2@REVISION` for a branch, a tag or a
//! commit. What is in the cache is used without asking the server, so a name stands for the same weights until the cache is
//! emptied. The environment variables are those of Python's `huggingface_hub`: `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_CACHE`,
//! `HF_TOKEN`, `HF_TOKEN_PATH` and `HF_HUB_OFFLINE`.

mod download;

use std::{
    env,
    fmt::Display,
    fs,
    path::{Path, PathBuf},
    str::FromStr,
};

use hf_hub::{
    Cache, Repo, RepoType,
    api::sync::{ApiBuilder, ApiError},
};
use tinygpt_model::files::read_json;

use self::download::Download;

/// What a model of the hub begins with, where a folder may stand as well.
pub const HUB_PREFIX: &str = "hf:";

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
const DEFAULT_REVISION: &str = "main";

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const WEIGHTS_INDEX: &str = "model.safetensors.index.json";
const TOKENIZER: &str = "tokenizer.json";
const GPT2_TOKENIZER: [&str; 2] = ["vocab.json", "merges.txt"];
const ADAPTER_CONFIG: &str = "adapter_config.json";
const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";
/// What belongs to a model beside its weights, as far as it has them. The tokenizer comes last, so where it is all else is.
const DESCRIPTION: &[&str] = &[
    CONFIG,
    ADAPTER_CONFIG,
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    TOKENIZER,
    GPT2_TOKENIZER[0],
    GPT2_TOKENIZER[1],
];

/// What can go wrong with a model of the hub.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// This is no name of a model.
    #[error("`{HUB_PREFIX}{name}` is no model of the hub: {reason}; it is hf:OWNER/NAME or hf:OWNER/NAME@REVISION")]
    Name {
        /// What was given.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// There is no place for the cache.
    #[error("there is no home folder to keep models of the hub in: set HF_HOME to a folder")]
    NoCache,
    /// The network may not be used, and the cache has not got the model.
    #[error(
        "{model} is not in the cache {} and HF_HUB_OFFLINE forbids to download it: unset that, or copy the model's folder \
         and give its path", cache.display()
    )]
    Offline {
        /// The model.
        model: HubModel,
        /// The cache.
        cache: PathBuf,
    },
    /// The server has no such model, or does not show it.
    #[error(
        "{endpoint} does not give {model}: {reason}. Is the name right? A private or gated model needs a token in HF_TOKEN"
    )]
    Refused {
        /// The server.
        endpoint: String,
        /// The model.
        model: HubModel,
        /// Its answer.
        reason: String,
    },
    /// The model has no weights that this program reads.
    #[error("{model} on {endpoint} has no {needed}: {found}")]
    NoWeights {
        /// The server.
        endpoint: String,
        /// The model.
        model: HubModel,
        /// What it should have.
        needed: &'static str,
        /// What it has in its place.
        found: String,
    },
    /// The server could not be reached, or broke off again and again.
    #[error(
        "cannot download {model} from {endpoint}: {reason}. Not in the cache {} either. Check the network; HF_ENDPOINT names \
         a mirror; or download the model's folder elsewhere and give its path. What has come is kept, and the next try goes \
         on from there", cache.display()
    )]
    Network {
        /// The server.
        endpoint: String,
        /// The model.
        model: HubModel,
        /// What happened, and how often it was tried.
        reason: String,
        /// The cache.
        cache: PathBuf,
    },
    /// What came is not what the server announced.
    #[error("{endpoint} gave another {file} of {model} than it announced: {reason}; nothing of it was kept, try again")]
    WrongContent {
        /// The server.
        endpoint: String,
        /// The model.
        model: HubModel,
        /// The file.
        file: String,
        /// What differs.
        reason: String,
    },
    /// The cache cannot be written.
    #[error("cannot use the cache {}: {reason}", path.display())]
    Cache {
        /// The file or folder.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
}

/// A model of the hub, at a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubModel {
    name: String,
    revision: String,
}

impl HubModel {
    /// The model that a text names, where it begins with [`HUB_PREFIX`]; `None` where it is a path.
    ///
    /// # Errors
    /// [`HubError::Name`].
    pub fn named(text: &str) -> Option<Result<Self, HubError>> {
        text.strip_prefix(HUB_PREFIX).map(str::parse)
    }
}

impl FromStr for HubModel {
    type Err = HubError;

    /// Of `OWNER/NAME`, or `NAME` as the oldest models have it, and maybe `@REVISION`.
    fn from_str(text: &str) -> Result<Self, HubError> {
        let refused = |reason| Err(HubError::Name { name: text.to_owned(), reason });
        let (name, revision) = text.split_once('@').unwrap_or((text, DEFAULT_REVISION));
        // Both become names of folders, and parts of an address.
        let is_part = |part: &str| {
            !part.is_empty()
                && !part.starts_with('.')
                && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        };
        if !name.split('/').all(is_part) {
            return refused("a name has letters, digits, `-`, `_` and `.`");
        }
        if name.split('/').count() > 2 {
            return refused("a name has one `/` at most");
        }
        if !revision.split('/').all(is_part) {
            return refused("a revision has letters, digits, `-`, `_`, `.` and `/`");
        }
        Ok(Self { name: name.to_owned(), revision: revision.to_owned() })
    }
}

impl Display for HubModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{HUB_PREFIX}{}", self.name)?;
        if self.revision != DEFAULT_REVISION {
            write!(f, "@{}", self.revision)?;
        }
        Ok(())
    }
}

/// Where models come from, and where they are kept.
#[derive(Clone, PartialEq, Eq)]
pub struct Hub {
    /// The server.
    pub endpoint: String,
    /// The folder of the cache, in the hub's layout.
    pub cache: PathBuf,
    /// What the server knows the user by.
    pub token: Option<String>,
    /// Whether the network may not be used.
    pub offline: bool,
}

impl std::fmt::Debug for Hub {
    /// Without the token and a password, which are secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { endpoint: _, cache, token, offline } = self;
        f.debug_struct("Hub")
            .field("endpoint", &self.shown_endpoint())
            .field("cache", cache)
            .field("has_token", &token.is_some())
            .field("offline", offline)
            .finish()
    }
}

impl Hub {
    /// As the environment says, and its files.
    ///
    /// # Errors
    /// [`HubError::NoCache`], where neither the environment nor the system names a home.
    pub fn from_env() -> Result<Self, HubError> {
        let text = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        let path = |name: &str| text(name).map(PathBuf::from);
        let home = path("HF_HOME")
            .or_else(|| path("XDG_CACHE_HOME").map(|cache| cache.join("huggingface")))
            .or_else(|| Some(env::home_dir()?.join(".cache/huggingface")))
            .ok_or(HubError::NoCache)?;
        let token_file = path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
        let token = text("HF_TOKEN").or_else(|| fs::read_to_string(token_file).ok());
        let token = token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty());
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned());
        let offline = text("HF_HUB_OFFLINE")
            .is_some_and(|value| ["1", "on", "yes", "true"].contains(&value.to_ascii_lowercase().as_str()));
        Ok(Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            cache: path("HF_HUB_CACHE").unwrap_or_else(|| home.join("hub")),
            token,
            offline,
        })
    }

    /// The folder of a model, as far as it is in the cache.
    #[must_use]
    pub fn cached(&self, model: &HubModel) -> Option<PathBuf> {
        // Weights come last, so where they are all else is.
        let has = |file: &str| self.cached_file(model, file);
        let folder = |file: PathBuf| file.parent().map(Path::to_owned);
        if let Some(adapter) = has(ADAPTER_WEIGHTS) {
            return folder(adapter);
        }
        has(CONFIG)?;
        // Another program may have downloaded a part of the model.
        self.cached_tokenizer(model)?;
        if let Some(weights) = has(WEIGHTS) {
            return folder(weights);
        }
        let index = has(WEIGHTS_INDEX)?;
        shards(&index).ok()?.iter().all(|shard| has(shard).is_some()).then(|| folder(index))?
    }

    /// The folder of a model in the cache, where its tokenizer is there.
    fn cached_tokenizer(&self, model: &HubModel) -> Option<PathBuf> {
        let has = |file: &str| self.cached_file(model, file);
        let [vocabulary, merges] = GPT2_TOKENIZER;
        let file = has(TOKENIZER).or_else(|| has(vocabulary).filter(|_| has(merges).is_some()))?;
        file.parent().map(Path::to_owned)
    }

    /// A file of a model, where it is in the cache under the name of its revision or commit.
    fn cached_file(&self, model: &HubModel, file: &str) -> Option<PathBuf> {
        let cache = Cache::new(self.cache.clone()).repo(repo(model));
        let by_commit = cache.pointer_path(&model.revision).join(file);
        cache.get(file).or_else(|| Some(by_commit).filter(|path| path.exists()))
    }

    /// The folder of a model: that of the cache, or else it is downloaded first. `progress` is told of a file, how many bytes
    /// of it have come, and how many it has.
    ///
    /// # Errors
    /// When the name is wrong, the server cannot be reached, or what it has is not what this program reads.
    pub fn folder(&self, model: &HubModel, mut progress: impl FnMut(&str, u64, u64)) -> Result<PathBuf, HubError> {
        match self.cached(model) {
            Some(folder) => Ok(folder),
            None => self.download(model)?.run(&mut progress),
        }
    }

    /// The folder of a model's tokenizer: that of the cache, or else what describes the model, and no weights, is downloaded first.
    ///
    /// # Errors
    /// As [`Hub::folder`].
    pub fn tokenizer_folder(
        &self,
        model: &HubModel,
        mut progress: impl FnMut(&str, u64, u64),
    ) -> Result<PathBuf, HubError> {
        match self.cached_tokenizer(model) {
            Some(folder) => Ok(folder),
            None => self.download(model)?.run_for_tokenizer(&mut progress),
        }
    }

    fn download<'a>(&'a self, model: &'a HubModel) -> Result<Download<'a>, HubError> {
        if self.offline {
            return Err(HubError::Offline { model: model.clone(), cache: self.cache.clone() });
        }
        let api = ApiBuilder::from_cache(Cache::new(self.cache.clone()))
            .with_endpoint(self.endpoint.clone())
            .with_token(self.token.clone())
            .with_user_agent("tinygpt", env!("CARGO_PKG_VERSION"))
            .with_progress(false)
            .build()
            .map_err(|error| self.error(model, &error, 1))?;
        Ok(Download { hub: self, model, repo: api.repo(repo(model)), api })
    }

    /// The server, without the password that its address may have.
    #[must_use]
    pub fn shown_endpoint(&self) -> String {
        match self.endpoint.split_once("://") {
            Some((scheme, rest)) => {
                let (host, path) = rest.split_once('/').map_or((rest, ""), |(host, _)| (host, &rest[host.len()..]));
                let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
                format!("{scheme}://{host}{path}")
            }
            None => self.endpoint.clone(),
        }
    }

    fn error(&self, model: &HubModel, error: &ApiError, tries: u32) -> HubError {
        let (endpoint, model) = (self.shown_endpoint(), model.clone());
        if let ApiError::RequestError(request) = error
            && let ureq::Error::StatusCode(status @ (401 | 403 | 404)) = **request
        {
            return HubError::Refused { endpoint, model, reason: format!("status {status}") };
        }
        match error {
            ApiError::IoError(io) if io.kind() != std::io::ErrorKind::UnexpectedEof && is_of_the_disk(io) => {
                HubError::Cache { path: self.cache.clone(), reason: io.to_string() }
            }
            ApiError::LockAcquisition(lock) => {
                HubError::Cache { path: lock.clone(), reason: "another process downloads this file".into() }
            }
            error => HubError::Network {
                endpoint,
                model,
                reason: format!("{error} (tried {tries} {})", if tries == 1 { "time" } else { "times" }),
                cache: self.cache.clone(),
            },
        }
    }
}

/// Whether the cache is to blame and not the network: both fail as input and output.
fn is_of_the_disk(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{NotADirectory, NotFound, PermissionDenied, ReadOnlyFilesystem, StorageFull};
    matches!(error.kind(), NotADirectory | NotFound | PermissionDenied | ReadOnlyFilesystem | StorageFull)
}

fn repo(model: &HubModel) -> Repo {
    Repo::with_revision(model.name.clone(), RepoType::Model, model.revision.clone())
}

/// The names of the files that an index of weights is of, each once. They become addresses, and names in the cache.
fn shards(index: &Path) -> Result<Vec<String>, String> {
    let value: serde_json::Value = read_json(index).map_err(|e| e.to_string())?;
    let map = value["weight_map"].as_object().ok_or("the index has no weight_map")?;
    let mut names: Vec<String> = map.values().filter_map(|name| name.as_str().map(str::to_owned)).collect();
    names.sort();
    names.dedup();
    match names.iter().find(|name| name.contains(['/', '\\']) || name.starts_with('.')) {
        Some(name) => Err(format!("the index names `{name}`, which is no file beside it")),
        None => Ok(names),
    }
}
