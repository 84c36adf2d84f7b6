//! `tinygpt report`: one page with all that is known of a run.

mod attention;
mod charts;
mod figures;
mod gather;
mod generalization;
mod page;

use std::path::Path;

use serde::Serialize;
use tinygpt_model::files::atomic;
use tinygpt_trainer::RunDir;

use self::{
    figures::{CalibrationPart, Figures, Part, Summary},
    generalization::Generalization,
};
use super::baseline::Row;
use crate::{
    args::ReportArgs,
    measured::newest_run,
    output::{print_json, print_stdout},
};

/// The name of a page in its run.
const PAGE: &str = "report.html";

/// What `--json` prints.
#[derive(Serialize)]
struct ReportJson<'a> {
    page: String,
    run: &'a str,
    summary: &'a Summary,
    generalization: Option<&'a Generalization>,
    baselines: Option<&'a [Row]>,
    calibration: Option<&'a CalibrationPart>,
    /// Why parts are not on the page.
    left_out: Vec<&'a str>,
}

pub fn run(args: &ReportArgs) -> anyhow::Result<()> {
    let path = match &args.run {
        Some(path) => path.clone(),
        None => newest_run()?,
    };
    let run = RunDir::open(&path)?;
    let figures = gather::gather(&run, args)?;
    let page = page::html(&figures)?;
    let out = args.out.clone().unwrap_or_else(|| path.join(PAGE));
    atomic::write(&out, page.as_bytes())?;
    if args.json {
        return print_json(&report_json(&out, &figures));
    }
    Ok(print_stdout(&describe(&out, &figures))?)
}

fn report_json<'a>(out: &Path, figures: &'a Figures) -> ReportJson<'a> {
    let Figures { run, summary, generalization, baselines, attention, calibration, .. } = figures;
    let mut left_out: Vec<&str> = Vec::new();
    for reason in [reason(generalization), reason(baselines), reason(attention), reason(calibration)] {
        // Several parts may lack the same.
        left_out.extend(reason.filter(|reason| !left_out.contains(reason)));
    }
    ReportJson {
        page: out.display().to_string(),
        run,
        summary,
        generalization: generalization.as_ref().ok(),
        baselines: baselines.as_deref().ok(),
        calibration: calibration.as_ref().ok(),
        left_out,
    }
}

fn reason<T>(part: &Part<T>) -> Option<&str> {
    part.as_ref().err().map(String::as_str)
}

/// The lines for people: what is left out, the loss, and where the page is.
fn describe(out: &Path, figures: &Figures) -> String {
    let json = report_json(out, figures);
    let mut text: String = json.left_out.iter().map(|reason| format!("left out: {reason}\n")).collect();
    if let Some(report) = &json.summary.validation {
        text += &super::eval::describe(report, Some(report.tokens));
    }
    if let Some(Generalization { generalization_gap, limit, .. }) = json.generalization {
        text += &format!("generalization gap {generalization_gap:.4} nats/token; limited by {}\n", page::name(*limit));
    }
    text + &format!("{}\n", json.page)
}
