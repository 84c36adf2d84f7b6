//! Event files for TensorBoard, made from what a run writes down: `metrics.jsonl` and `samples.jsonl` stay the source.
//!
//! An [`EventLog`] reads these as they grow and writes what is new. It begins with a new file, which has all that the run still
//! knows, and deletes the file before it: after a resumption no step is lost, and none is there twice. The tag of a number is the
//! kind of its line and its key, `train/loss`.

mod event;

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde_json::Value;

use crate::{
    Result, TrainError,
    json_lines::Tail,
    metrics::Metrics,
    run::{LoopState, Part},
    samples::{SAMPLES_FILE, Sample},
    train::METRICS_FILE,
};

/// The folder of the event files in a run.
pub const TENSORBOARD_FOLDER: &str = "tensorboard";
/// What the names of our files begin and end with, around the seconds since 1970. TensorBoard reads a folder's files in the
/// order of their names.
const PREFIX: &str = "events.out.tfevents.";
const SUFFIX: &str = ".tinygpt";
/// What is no figure of a line of the metrics.
const NO_FIGURES: [&str; 4] = ["kind", "format", "step", "seconds"];
/// The tag of the samples.
const SAMPLE_TAG: &str = "sample/text";

/// Event files that follow a run.
#[derive(Debug)]
pub struct EventLog {
    folder: PathBuf,
    metrics: Tail<Metrics>,
    samples: Tail<Sample>,
    parts: Vec<Part>,
    file: Option<EventFile>,
    /// The files of earlier logs: to be deleted once the new one has all that still holds.
    replaced: Vec<PathBuf>,
    /// The time of the last event.
    wall_time: f64,
}

#[derive(Debug)]
struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventLog {
    /// A log of a run in a folder. Nothing is written before [`EventLog::catch_up`].
    pub fn new(run: &Path, state: &LoopState, folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            metrics: Tail::new(run.join(METRICS_FILE)),
            samples: Tail::new(run.join(SAMPLES_FILE)),
            parts: state.parts.clone(),
            file: None,
            replaced: Vec::new(),
            wall_time: 0.0,
        }
    }

    /// Whether a folder has event files that a log can go on with.
    pub fn is_in(folder: &Path) -> bool {
        !event_files(folder).is_empty()
    }

    /// Writes what the run has written down since the last call; the first one begins the file.
    ///
    /// # Errors
    /// When a file of the run is damaged, or the disk is full.
    pub fn catch_up(&mut self) -> Result<()> {
        let (rows, samples) = (self.metrics.read_new()?, self.samples.read_new()?);
        if self.file.is_none() {
            self.begin(&rows)?;
        }
        let mut new = Vec::new();
        let mut samples = samples.into_iter().peekable();
        for row in rows {
            // A sample is taken after the evaluation of its step.
            while let Some(sample) = samples.next_if(|sample| sample.step < row.step) {
                new.extend(self.sample(&sample));
            }
            self.wall_time = wall_time(&self.parts, row.seconds);
            new.extend(event::scalars(self.wall_time, row.step, &figures(&row)?));
        }
        for sample in samples {
            new.extend(self.sample(&sample));
        }
        if let Some(EventFile { path, file }) = &mut self.file {
            file.write_all(&new).map_err(TrainError::io("write", path))?;
        }
        for path in self.replaced.drain(..) {
            fs::remove_file(&path).map_err(TrainError::io("delete", &path))?;
        }
        Ok(())
    }

    /// Opens a file behind those that are there, for a run with these lines.
    fn begin(&mut self, rows: &[Metrics]) -> Result<()> {
        if self.parts.is_empty() {
            self.parts.push(self.only_part(rows));
        }
        fs::create_dir_all(&self.folder).map_err(TrainError::io("create", &self.folder))?;
        let now = Part::now(0, 0.0).began;
        let others = event_files(&self.folder);
        let after_others = others.last().map_or(0, |(seconds, _)| seconds + 1);
        let name = format!("{PREFIX}{:010}{SUFFIX}", after_others.max(now as u64));
        let path = self.folder.join(name);
        let mut file = File::create_new(&path).map_err(TrainError::io("create", &path))?;
        self.wall_time = self.parts[0].began;
        let head = [event::version(self.wall_time), event::session_start(self.wall_time, 0)].concat();
        file.write_all(&head).map_err(TrainError::io("write", &path))?;
        self.file = Some(EventFile { path, file });
        self.replaced = others.into_iter().map(|(_, path)| path).collect();
        Ok(())
    }

    /// The one part of a run of which no state tells when it was trained: it ended when its metrics were written last.
    fn only_part(&self, rows: &[Metrics]) -> Part {
        let modified = fs::metadata(self.metrics.path()).and_then(|metadata| metadata.modified());
        let ended = modified.ok().and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
        let seconds = rows.last().map_or(0.0, |row| row.seconds);
        let began = ended.map_or(0.0, |time| time.as_secs_f64()) - seconds;
        Part { step: 0, seconds: 0.0, began, changes: Vec::new() }
    }

    fn sample(&self, Sample { step, prompt, text, .. }: &Sample) -> Vec<u8> {
        // An indented line is code in Markdown, whatever it says.
        let code: Vec<String> = format!("{prompt}{text}").split('\n').map(|line| format!("    {line}")).collect();
        event::text(self.wall_time, *step, SAMPLE_TAG, &code.join("\n"))
    }
}

/// The event files that this program has written to a folder, with the seconds of their names, in their order.
fn event_files(folder: &Path) -> Vec<(u64, PathBuf)> {
    let paths = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files: Vec<(u64, PathBuf)> = paths
        .filter_map(|path| {
            let seconds = path.file_name()?.to_str()?.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?.parse().ok()?;
            Some((seconds, path))
        })
        .collect();
    files.sort();
    files
}

/// The time after `seconds` of training, in seconds since 1970. What came before the first part that is known was as if
/// without a pause before it.
fn wall_time(parts: &[Part], seconds: f64) -> f64 {
    let part = parts.iter().rev().find(|part| part.seconds < seconds).or(parts.first());
    part.map_or(0.0, |part| part.began + (seconds - part.seconds))
}

/// The numbers of a line, by tag.
fn figures(row: &Metrics) -> Result<Vec<(String, f64)>> {
    let line = serde_json::to_value(row).map_err(|e| TrainError::bad_file(Path::new(METRICS_FILE), e))?;
    let kind = line["kind"].as_str().unwrap_or_default();
    let keys = line.as_object().into_iter().flatten().filter(|(key, _)| !NO_FIGURES.contains(&key.as_str()));
    Ok(keys.filter_map(|(key, value)| Some((format!("{kind}/{key}"), Value::as_f64(value)?))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        json_lines::JsonLines,
        metrics::{MetricsFile, RowKind},
        samples::SAMPLES_FORMAT,
    };

    fn train(step: u64, loss: f64) -> Metrics {
        Metrics { loss: Some(loss), seconds: step as f64, ..Metrics::new(RowKind::Train, step) }
    }

    fn state(parts: Vec<Part>) -> LoopState {
        LoopState { parts, ..LoopState::fresh(String::new()) }
    }

    /// What the one event file of a folder holds behind its first two records.
    fn written(folder: &Path) -> Vec<u8> {
        let files = event_files(folder);
        assert_eq!(files.len(), 1, "{files:?}");
        let bytes = fs::read(&files[0].1).unwrap();
        let head = event::version(0.0).len() + event::session_start(0.0, 0).len();
        bytes[head..].to_vec()
    }

    #[test]
    fn what_is_appended_is_written_once_and_a_resumed_run_has_neither_lost_nor_double_steps() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("tensorboard");
        let part = |step: u64, began: f64| Part { step, seconds: step as f64, began, changes: Vec::new() };
        let scalar = |wall_time, step, loss| event::scalars(wall_time, step, &[("train/loss".into(), loss)]);
        let metrics = dir.path().join(METRICS_FILE);
        let mut rows = MetricsFile::create(&metrics, Vec::new()).unwrap();
        let mut log = EventLog::new(dir.path(), &state(vec![part(0, 1000.0)]), &folder);
        log.catch_up().unwrap();
        assert!(written(&folder).is_empty());
        for step in 1..=3 {
            rows.append(train(step, 4.0)).unwrap();
            log.catch_up().unwrap();
        }
        log.catch_up().unwrap();
        let mut sample = JsonLines::create(&dir.path().join(SAMPLES_FILE), Vec::new()).unwrap();
        let (prompt, text) = ("Once".to_owned(), " there\nwas".to_owned());
        sample.append(Sample { format: SAMPLES_FORMAT, step: 3, prompt, text, seed: 1 }).unwrap();
        log.catch_up().unwrap();
        let text = event::text(1003.0, 3, "sample/text", "    Once there\n    was");
        let first = [scalar(1001.0, 1, 4.0), scalar(1002.0, 2, 4.0), scalar(1003.0, 3, 4.0), text].concat();
        assert_eq!(written(&folder), first);

        // It goes on from step 2, an hour later; step 3 is made again.
        drop(log);
        let mut rows = MetricsFile::create(&metrics, vec![train(1, 4.0), train(2, 4.0)]).unwrap();
        JsonLines::<Sample>::create(&dir.path().join(SAMPLES_FILE), Vec::new()).unwrap();
        assert!(EventLog::is_in(&folder));
        let mut log = EventLog::new(dir.path(), &state(vec![part(0, 1000.0), part(2, 4602.0)]), &folder);
        rows.append(train(3, 3.0)).unwrap();
        log.catch_up().unwrap();
        let second = [scalar(1001.0, 1, 4.0), scalar(1002.0, 2, 4.0), scalar(4603.0, 3, 3.0)].concat();
        assert_eq!(written(&folder), second);
    }

    #[test]
    fn a_run_of_an_earlier_version_ended_when_its_metrics_were_written() {
        let dir = tempfile::tempdir().unwrap();
        let metrics = dir.path().join(METRICS_FILE);
        MetricsFile::create(&metrics, vec![train(1, 4.0), train(8, 4.0)]).unwrap();
        let written = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(5000);
        File::options().append(true).open(&metrics).unwrap().set_modified(written).unwrap();
        let mut log = EventLog::new(dir.path(), &state(Vec::new()), &dir.path().join("log"));
        log.catch_up().unwrap();
        assert_eq!((log.parts[0].began, log.wall_time), (4992.0, 5000.0));
    }

    #[test]
    fn every_figure_of_a_line_has_a_tag_and_nothing_else_has() {
        let row = Metrics { val_loss: Some(2.0), perplexity: Some(7.4), ..Metrics::new(RowKind::Eval, 3) };
        assert_eq!(figures(&row).unwrap(), [("eval/val_loss".into(), 2.0), ("eval/perplexity".into(), 7.4)]);
    }

    #[test]
    fn a_damaged_line_stops_the_log_with_its_number() {
        let dir = tempfile::tempdir().unwrap();
        let mut rows = MetricsFile::create(&dir.path().join(METRICS_FILE), vec![train(1, 4.0)]).unwrap();
        let mut log = EventLog::new(dir.path(), &state(Vec::new()), &dir.path().join("log"));
        log.catch_up().unwrap();
        rows.append(train(2, 4.0)).unwrap();
        let text = fs::read_to_string(dir.path().join(METRICS_FILE)).unwrap() + "no line\n{\"torn";
        fs::write(dir.path().join(METRICS_FILE), text).unwrap();
        let message = log.catch_up().unwrap_err().to_string();
        assert!(message.contains("line 3 is not one of its lines"), "{message}");
        assert!(message.ends_with("delete that line, on which nothing but plots and logs depends"), "{message}");
    }
}
