//! `tinygpt sweep`.

mod plot;
mod table;

use std::{
    path::Path,
    sync::{Mutex, PoisonError, atomic::Ordering},
    time::Instant,
};

use serde_json::json;
use tinygpt_trainer::{
    chart,
    corpus::STANDARD_INPUT,
    sweep::{Grid, Point, Sweep, SweepEvent, SweepResult, summaries},
};

use super::train::stop_on_signals;
use crate::{
    args::{SweepArgs, TOML_MAX},
    config_file,
    device::Work,
    output::{Interrupted, Usage, print_json, print_stdout},
    progress::{Progress, human_time},
};

/// The folder of sweeps.
const SWEEPS: &str = "sweeps";
/// More runs than this are a mistake.
const MAX_RUNS: usize = 10_000;

pub fn run(args: &SweepArgs) -> anyhow::Result<()> {
    let base = config_file::read(&args.config, Vec::new())?;
    // A list of more seeds than runs may be is not even made.
    check_number_of_runs(args.seeds.get())?;
    let seeds: Vec<u64> = (0..args.seeds.get() as u64).map(|n| base.seed.saturating_add(n)).collect();
    if seeds.last().is_some_and(|&last| last > TOML_MAX) {
        return Err(Usage(format!("--seeds: from seed = {} on there are not that many", base.seed)).into());
    }
    let grid = Grid::parse(&args.settings, seeds).map_err(|error| Usage(error.to_string()))?;
    if grid.settings.iter().any(|setting| setting.key == "seed") {
        return Err(
            Usage("the seeds of a sweep are given by --seeds N: those from the configuration's on".into()).into()
        );
    }
    check_number_of_runs(grid.len())?;
    let dir = args.out.clone().unwrap_or_else(|| Path::new(SWEEPS).join(&base.name));
    let plot_file = args.plot.clone().unwrap_or_else(|| dir.join("sweep.svg"));
    let sweep = Sweep::open(&dir, points(args, &grid)?)?;
    let first = sweep.points().first().map(|(_, config)| config);
    let device = args.device.open_for(|| {
        let config = first.ok_or_else(|| Usage("the grid has no run".into()))?;
        Ok(Work::training(config, &super::bench::without_a_text(config)))
    })?;
    if args.jobs.get() > 1 && !device.is_cpu() {
        return Err(Usage("--jobs is for --device cpu: a GPU trains one run at a time".into()).into());
    }

    let stop = stop_on_signals()?;
    let shown = Shown::new(&sweep, args.jobs.get());
    let done = sweep.train(args.jobs.get(), &device, &stop, &|event| {
        shown.on(event);
        Ok(())
    });
    shown.finish();
    let done = done?;
    let results = sweep.results();
    let summaries = summaries(&results);
    if !results.is_empty() {
        chart::write(&plot_file, &plot::figure(&grid, &results, &summaries))?;
    }
    if !done && stop.load(Ordering::Relaxed) {
        let (ended, all) = (results.len(), sweep.points().len());
        let message = format!("interrupted after {ended} of {all} runs; saved. The same command goes on");
        return Err(Interrupted(message).into());
    }
    if args.json {
        return print_json(&json!({ "sweep": dir, "plot": plot_file, "runs": results, "summaries": summaries }));
    }
    let text = table::table(&grid, &summaries) + &format!("{}\n{}\n", dir.display(), plot_file.display());
    Ok(print_stdout(&text)?)
}

fn check_number_of_runs(runs: usize) -> Result<(), Usage> {
    if runs > MAX_RUNS {
        return Err(Usage(format!("the grid has {runs} runs, and a sweep at most {MAX_RUNS}")));
    }
    Ok(())
}

/// Every run with its configuration: what is wrong with any of them is said before the first is trained.
fn points(args: &SweepArgs, grid: &Grid) -> anyhow::Result<Vec<(Point, tinygpt_trainer::RunConfig)>> {
    if args.data.iter().any(|path| path == STANDARD_INPUT) {
        return Err(Usage(
            "--data - can be read once, and a sweep reads its text for each run: save it to a file".into(),
        )
        .into());
    }
    let with_config = |point: Point| {
        let mut config = config_file::read(&args.config, point.overrides.clone())?;
        if !args.data.is_empty() {
            config.data.corpus = args.data.join("\n");
        }
        Ok((point, config))
    };
    grid.points().into_iter().map(with_config).collect()
}

/// What is shown while a sweep trains: a line for each run, and between them the progress of a single one.
struct Shown<'a> {
    sweep: &'a Sweep,
    jobs: usize,
    started: Instant,
    state: Mutex<State>,
}

struct State {
    /// The runs of the grid that had ended before, or have since.
    ended: usize,
    /// How many had ended before.
    before: usize,
    progress: Option<Progress>,
}

impl<'a> Shown<'a> {
    fn new(sweep: &'a Sweep, jobs: usize) -> Self {
        let before = sweep.results().len();
        if before > 0 {
            notice!("{before} of {} runs have ended before", sweep.points().len());
        }
        let state = Mutex::new(State { ended: before, before, progress: None });
        Self { sweep, jobs, started: Instant::now(), state }
    }

    fn on(&self, event: SweepEvent<'_>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let all = self.sweep.points().len();
        match event {
            SweepEvent::Start { place, run } => {
                let (name, step) = (self.sweep.points()[place].0.name(), run.state().step);
                let goes_on = if step > 0 { format!(", goes on after step {step}") } else { String::new() };
                notice!("run {} of {all}: {name}, {} parameters{goes_on}", place + 1, run.gpt().n_params());
                // Bars of several runs would overwrite each other.
                state.progress = if self.jobs == 1 { Progress::new(run.config(), step).ok() } else { None };
            }
            SweepEvent::Train { event, .. } => {
                if let Some(progress) = &mut state.progress {
                    progress.on(event);
                }
            }
            SweepEvent::End { place, result } => {
                if let Some(mut progress) = state.progress.take() {
                    progress.finish();
                }
                state.ended += 1;
                let (now, left) = (state.ended - state.before, all - state.ended);
                let left = self.started.elapsed().as_secs_f64() * left as f64 / now as f64;
                let left = if state.ended < all { format!(", {} left", human_time(left)) } else { String::new() };
                notice!("run {} of {all}: {}{left}", place + 1, outcome(result));
            }
        }
    }

    fn finish(&self) {
        if let Some(mut progress) = self.state.lock().unwrap_or_else(PoisonError::into_inner).progress.take() {
            progress.finish();
        }
    }
}

/// What a run came to, in a line.
fn outcome(result: &SweepResult) -> String {
    match (&result.report, &result.diverged) {
        (Some(report), _) => {
            format!("validation loss {:.4} after {} steps in {}", report.loss, result.step, human_time(result.seconds))
        }
        (None, Some(why)) => format!("diverged: {why}"),
        (None, None) => "no loss".into(),
    }
}
