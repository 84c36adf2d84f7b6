//! `tinygpt runs`.

use serde_json::{Value, json};
use tinygpt_trainer::run::{Best, ListedRun, RunFigures, RunStatus, list};

use crate::{
    args::RunsArgs,
    output::{print_json, print_stdout},
    progress::in_thousands,
    units::{human_bytes, seconds_since_1970, utc},
};

pub fn run(args: &RunsArgs) -> anyhow::Result<()> {
    let runs = list(&args.dir)?;
    if args.json {
        return print_json(&json!({ "runs": runs.iter().map(to_json).collect::<Vec<_>>() }));
    }
    if runs.is_empty() {
        notice!("there is no run in {}", args.dir.display());
    }
    // Line by line, so that `| head` ends it.
    table(&runs).iter().try_for_each(|line| Ok(print_stdout(line)?))
}

fn to_json(run: &ListedRun) -> Value {
    let (state, ending, damage) = match &run.status {
        RunStatus::Running => ("running", None, None),
        RunStatus::Finished(reason) => ("finished", Some(reason), None),
        RunStatus::Interrupted => ("interrupted", None, None),
        RunStatus::Damaged(reason) => ("damaged", None, Some(reason)),
    };
    let figures = run.figures.as_ref();
    let best = figures.and_then(|figures| figures.best);
    json!({
        "name": run.name,
        "path": run.path.display().to_string(),
        "state": state,
        "ending": ending,
        "damage": damage,
        "step": figures.map(|figures| figures.step),
        "max_steps": figures.map(|figures| figures.max_steps),
        "best_val_loss": best.map(|best| best.val_loss),
        "best_step": best.map(|best| best.step),
        "parameters": figures.map(|figures| figures.parameters),
        "bytes": run.bytes,
        "saved": run.saved.map(seconds_since_1970),
    })
}

/// A head and a line for each run.
fn table(runs: &[ListedRun]) -> Vec<String> {
    const HEAD: [&str; 7] = ["name", "step", "best loss", "parameters", "size", "saved (UTC)", "state"];
    let mut rows: Vec<[String; 7]> = Vec::new();
    for ListedRun { name, status, figures, bytes, saved, .. } in runs {
        let cell = |text: Option<String>| text.unwrap_or_else(|| "-".into());
        let best = figures.and_then(|figures| figures.best);
        rows.push([
            name.clone(),
            cell(figures.map(|RunFigures { step, max_steps, .. }| format!("{step}/{max_steps}"))),
            cell(best.map(|Best { val_loss, .. }| format!("{val_loss:.4}"))),
            cell(figures.map(|figures| in_thousands(figures.parameters))),
            human_bytes(*bytes as f64),
            cell(saved.map(|time| utc(seconds_since_1970(time)))),
            match status {
                RunStatus::Running => "running".into(),
                RunStatus::Finished(_) => "finished".into(),
                RunStatus::Interrupted => "interrupted".into(),
                RunStatus::Damaged(reason) => format!("damaged: {}", reason.replace('\n', " ")),
            },
        ]);
    }
    if rows.is_empty() {
        return Vec::new();
    }
    rows.insert(0, HEAD.map(Into::into));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 7] = std::array::from_fn(width);
    rows.iter()
        .map(|[name, step, best, parameters, size, saved, state]| {
            let [w0, w1, w2, w3, w4, w5, _] = widths;
            format!("{name:<w0$}  {step:>w1$}  {best:>w2$}  {parameters:>w3$}  {size:>w4$}  {saved:<w5$}  {state}\n")
        })
        .collect()
}
