//! `GET /api/runs` and below: the runs of a folder, as they grow.

use std::{
    collections::{HashMap, HashSet},
    ops::RangeInclusive,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    extract::{Query, State, rejection::QueryRejection},
    http::StatusCode,
    response::Response,
};
use serde::Deserialize;
use serde_json::{Value, json};
use tinygpt_trainer::{
    TrainError,
    json_lines::{IndexedLines, Line, ReadLines},
    metrics::Metrics,
    run::{ListedRun, RunLister, RunStatus, TRAIN_TOML},
    samples::{SAMPLES_FILE, Sample},
    train::METRICS_FILE,
};

use super::{Served, read, thinned::thinned};
use crate::{
    commands::serve::http::{error::ApiError, name::Name, texts::RequestTime},
    units::seconds_since_1970,
};

/// Requests that come so soon after another one are told what that one has found.
const LIST_AGAIN: Duration = Duration::from_millis(500);
/// The most bytes of lines that are read at a time; who wants more goes on behind them.
const ANSWER_BYTES: usize = 4 << 20;
/// How many lines may be asked for at most where they are thinned.
pub const MOST: RangeInclusive<usize> = 100..=20_000;
/// So many times as many lines as are asked for are thinned, before more are read.
const THIN_ABOVE: usize = 16;

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

    /// Some lines of a file of a run, from one on.
    fn lines<T: Line>(
        &self,
        name: &str,
        file: &str,
        indexes: fn(&mut Known) -> &mut HashMap<PathBuf, IndexedLines<T>>,
        from: usize,
    ) -> Result<ReadLines<T>, ApiError> {
        let mut known = self.known();
        let folder = known.folder(name)?;
        let index = indexes(&mut known).entry(folder);
        let lines = index.or_insert_with_key(|folder| IndexedLines::new(folder.join(file)));
        lines.read(from, ANSWER_BYTES).map_err(ApiError::internal)
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
pub async fn runs(State(served): State<Arc<Served>>, time: RequestTime) -> Result<Response, ApiError> {
    read(&served, time, |served| {
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

/// Which lines are asked for, as the address has it.
#[derive(Deserialize)]
pub struct Asked {
    from: Option<String>,
    most: Option<String>,
}

type AskedOf = Result<Query<Asked>, QueryRejection>;

/// The first line, and how many there may be at most.
fn lines_of(asked: AskedOf) -> Result<(usize, Option<usize>), ApiError> {
    let Query(Asked { from, most }) = asked.map_err(|rejection| ApiError::bad_request(rejection.body_text()))?;
    let whole = |key: &str, value: Option<String>| {
        let parse = |value: String| value.parse::<usize>().map_err(|error| ApiError::bad_param(key, error));
        value.map(parse).transpose()
    };
    let (from, most) = (whole("from", from)?.unwrap_or(0), whole("most", most)?);
    match most {
        Some(n) if !MOST.contains(&n) => {
            let (min, max) = (MOST.start(), MOST.end());
            Err(ApiError::bad_param("most", format!("is {n}, but must be between {min} and {max}")))
        }
        _ => Ok((from, most)),
    }
}

/// `{"records": [...], "next": M}`: the lines of `metrics.jsonl` from one on; with `most` all of them, thinned to so many.
pub async fn metrics(
    State(served): State<Arc<Served>>,
    time: RequestTime,
    Name(name): Name,
    asked: AskedOf,
) -> Result<Response, ApiError> {
    let (from, most) = lines_of(asked)?;
    read(&served, time, move |served| {
        let part = |from| served.page.runs.lines(&name, METRICS_FILE, |known| &mut known.metrics, from);
        let ReadLines { mut rows, mut next } = part(from)?;
        if let Some(most) = most {
            let mut before = from;
            while next > before {
                before = next;
                let more = part(next)?;
                // A file that was replaced meanwhile by a shorter one ends the answer, and is seen by who asks again. One that
                // has as many lines already goes on with its own.
                if more.next > next {
                    next = more.next;
                    rows.extend(more.rows);
                }
                if rows.len() > THIN_ABOVE * most {
                    rows = thinned(rows, most);
                }
            }
            rows = thinned(rows, most);
        }
        Ok(json!({ "records": rows, "next": next }))
    })
    .await
}

/// `{"records": [...], "next": M}`: the lines of `samples.jsonl` from one on.
pub async fn samples(
    State(served): State<Arc<Served>>,
    time: RequestTime,
    Name(name): Name,
    asked: AskedOf,
) -> Result<Response, ApiError> {
    let (from, most) = lines_of(asked)?;
    if most.is_some() {
        return Err(ApiError::bad_param("most", "is for metrics: each sample is a text of its own"));
    }
    read(&served, time, move |served| {
        let read = served.page.runs.lines(&name, SAMPLES_FILE, |known| &mut known.samples, from)?;
        Ok(json!({ "records": read.rows, "next": read.next }))
    })
    .await
}

/// `{"toml": "..."}`: the configuration of a run.
pub async fn config(
    State(served): State<Arc<Served>>,
    time: RequestTime,
    Name(name): Name,
) -> Result<Response, ApiError> {
    read(&served, time, move |served| {
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
