//! `GET /api/runs` and below: the runs of a folder, as they grow.

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    extract::{Query, State, rejection::QueryRejection},
    http::StatusCode,
    response::Response,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tinygpt_trainer::{
    TrainError,
    json_lines::{IndexedLines, Line},
    metrics::Metrics,
    run::{ListedRun, RunLister, RunStatus, TRAIN_TOML},
    samples::{SAMPLES_FILE, Sample},
    train::METRICS_FILE,
};

use super::{Served, read};
use crate::{
    commands::serve::http::{error::ApiError, name::Name},
    units::seconds_since_1970,
};

/// Requests that come so soon after another one are told what that one has found.
const LIST_AGAIN: Duration = Duration::from_millis(500);
/// The most bytes of lines in an answer; who wants more goes on behind them.
const ANSWER_BYTES: usize = 4 << 20;

/// The runs of a folder.
pub struct Runs {
    known: Mutex<Known>,
}

struct Known {
    lister: RunLister,
    listed: Vec<ListedRun>,
    /// When they were listed.
    at: Option<Instant>,
    metrics: HashMap<PathBuf, IndexedLines<Metrics>>,
    samples: HashMap<PathBuf, IndexedLines<Sample>>,
}

impl Runs {
    /// The runs below a folder, which need not be there yet.
    pub fn new(folder: PathBuf) -> Self {
        let lister = RunLister::new(folder);
        let (metrics, samples) = (HashMap::new(), HashMap::new());
        Self { known: Mutex::new(Known { lister, listed: Vec::new(), at: None, metrics, samples }) }
    }

    /// What is known: a request that failed midway has left nothing half done.
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// Looks at the folder, unless that was done a moment ago.
    fn list(&mut self) -> Result<&[ListedRun], ApiError> {
        if self.at.is_none_or(|at| at.elapsed() >= LIST_AGAIN) {
            self.listed = match self.lister.list() {
                Ok(runs) => runs,
                // There is no folder before the first run.
                Err(TrainError::NoRun { .. }) => Vec::new(),
                Err(error) => return Err(ApiError::internal(error)),
            };
            self.at = Some(Instant::now());
            let paths: HashSet<&PathBuf> = self.listed.iter().map(|run| &run.path).collect();
            self.metrics.retain(|path, _| paths.contains(path));
            self.samples.retain(|path, _| paths.contains(path));
        }
        Ok(&self.listed)
    }

    /// The folder of a run that was listed: a name is looked up, and is never a path.
    fn folder(&mut self, name: &str) -> Result<PathBuf, ApiError> {
        let of = |runs: &[ListedRun]| runs.iter().find(|run| run.name == name).map(|run| run.path.clone());
        let found = of(&self.listed);
        let found = if found.is_some() { found } else { of(self.list()?) };
        found.ok_or_else(|| {
            ApiError::new(StatusCode::NOT_FOUND, format!("no run is named `{name}`"))
                .with_param("name")
                .with_code("run_not_found")
        })
    }
}

/// `{"runs": [...]}`.
pub async fn runs(State(served): State<Arc<Served>>) -> Result<Response, ApiError> {
    read(&served, |served| {
        let mut known = served.page.runs.known();
        Ok(json!({ "runs": known.list()?.iter().map(described).collect::<Vec<_>>() }))
    })
    .await
}

fn described(run: &ListedRun) -> Value {
    let (state, reason) = match &run.status {
        RunStatus::Running => ("running", None),
        RunStatus::Finished(reason) => ("finished", Some(json!(reason))),
        RunStatus::Interrupted => ("interrupted", None),
        RunStatus::Damaged(reason) => ("damaged", Some(json!(reason))),
    };
    let figures = run.figures.as_ref();
    json!({
        "name": run.name,
        "state": state,
        "reason": reason,
        "step": figures.map_or(0, |figures| figures.step),
        "max_steps": figures.map(|figures| figures.max_steps),
        "best_loss": figures.and_then(|figures| figures.best).map(|best| best.val_loss),
        "bytes": run.bytes,
        "saved": run.saved.map(seconds_since_1970),
    })
}

/// The first line that is asked for.
#[derive(Deserialize)]
pub struct Start {
    #[serde(default)]
    from: usize,
}

type FromOf = Result<Query<Start>, QueryRejection>;

/// `{"records": [...], "next": M}`: the lines of `metrics.jsonl` from one on.
pub async fn metrics(State(served): State<Arc<Served>>, Name(name): Name, from: FromOf) -> Result<Response, ApiError> {
    lines(served, name, from, METRICS_FILE, |known| &mut known.metrics).await
}

/// `{"records": [...], "next": M}`: the lines of `samples.jsonl` from one on.
pub async fn samples(State(served): State<Arc<Served>>, Name(name): Name, from: FromOf) -> Result<Response, ApiError> {
    lines(served, name, from, SAMPLES_FILE, |known| &mut known.samples).await
}

async fn lines<T: Line + Serialize + 'static>(
    served: Arc<Served>,
    name: String,
    from: FromOf,
    file: &'static str,
    indexes: fn(&mut Known) -> &mut HashMap<PathBuf, IndexedLines<T>>,
) -> Result<Response, ApiError> {
    let Query(Start { from }) = from.map_err(|rejection| ApiError::bad_param("from", rejection.body_text()))?;
    read(&served, move |served| {
        let mut known = served.page.runs.known();
        let folder = known.folder(&name)?;
        let index = indexes(&mut known).entry(folder);
        let lines = index.or_insert_with_key(|folder| IndexedLines::new(folder.join(file)));
        let read = lines.read(from, ANSWER_BYTES).map_err(ApiError::internal)?;
        Ok(json!({ "records": read.rows, "next": read.next }))
    })
    .await
}

/// `{"toml": "..."}`: the configuration of a run.
pub async fn config(State(served): State<Arc<Served>>, Name(name): Name) -> Result<Response, ApiError> {
    read(&served, move |served| {
        let path = served.page.runs.known().folder(&name)?.join(TRAIN_TOML);
        let toml = std::fs::read_to_string(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                ApiError::new(StatusCode::NOT_FOUND, format!("the run `{name}` has no {TRAIN_TOML}"))
            }
            _ => ApiError::internal(error),
        })?;
        Ok(json!({ "toml": toml }))
    })
    .await
}
