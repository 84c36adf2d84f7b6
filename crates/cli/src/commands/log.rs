//! `tinygpt log`, and the logs of `tinygpt train --log`.

use serde_json::json;
use tinygpt_trainer::{
    Run, RunDir,
    tensorboard::{EventLog, TENSORBOARD_FOLDER},
    train::Event,
};

use crate::{
    args::{LogArgs, LogFormat},
    measured::newest_run,
    output::{print_json, print_stdout},
};

pub fn run(args: &LogArgs) -> anyhow::Result<()> {
    let path = match &args.run {
        Some(path) => path.clone(),
        None => newest_run()?,
    };
    let LogFormat::Tensorboard = args.format;
    // What a process that trains there writes as well is left to it.
    let run = if args.out.is_some() { RunDir::open(&path)? } else { RunDir::open_for_writing(&path)? };
    let folder = args.out.clone().unwrap_or_else(|| path.join(TENSORBOARD_FOLDER));
    EventLog::new(&path, &run.last().read_state()?, &folder).catch_up()?;
    let folder = folder.display().to_string();
    if args.json { print_json(&json!({ "tensorboard": folder })) } else { Ok(print_stdout(&format!("{folder}\n"))?) }
}

/// The logs that are asked for, and those that a resumed run has already.
pub fn open_for(run: &Run, formats: &[LogFormat]) -> Logs {
    let folder = run.path().join(TENSORBOARD_FOLDER);
    let wanted = formats.contains(&LogFormat::Tensorboard) || EventLog::is_in(&folder);
    Logs(wanted.then(|| EventLog::new(run.path(), run.state(), &folder)))
}

/// What is written beside the metrics while a run trains.
pub struct Logs(Option<EventLog>);

impl Logs {
    /// Writes what an event has added to the metrics; the line of an update is added behind its event.
    pub fn on(&mut self, event: Event<'_>) {
        if !matches!(event, Event::Step { logged: false, .. }) {
            self.catch_up();
        }
    }

    /// Writes what is not yet written. A log that cannot be written is given up, since it must not end hours of training;
    /// `tinygpt log` makes it of the metrics later.
    pub fn catch_up(&mut self) {
        if let Some(log) = &mut self.0
            && let Err(error) = log.catch_up()
        {
            notice!("the log for TensorBoard is given up: {error}; `tinygpt log tensorboard` writes it later");
            self.0 = None;
        }
    }
}
