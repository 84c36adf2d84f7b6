//! The page: one file of HTML that needs nothing else, light and dark. All that users and models wrote is escaped. It is
//! well-formed XML as well, so that a test can read it.

use std::fmt::Write as _;

use tinygpt_trainer::{chart::Figure, samples::Sample};

use super::{
    attention, charts,
    figures::{CalibrationPart, Figures, Part, Summary},
    generalization::{Generalization, Limit},
};
use crate::{
    commands::baseline::Row,
    html::escape,
    output::harmless,
    progress::{human_time, in_thousands},
};

const STYLE: &str = include_str!("style.css");

/// The most samples that are shown, from the first to the last.
const MOST_SAMPLES: usize = 40;
/// The most characters of a sample.
const SAMPLE_CHARS: usize = 4000;
/// The sections: anchor, heading, body.
type Section<'a> = (&'a str, &'a str, anyhow::Result<String>);

/// The page of a run.
///
/// # Errors
/// When a chart cannot be drawn.
pub fn html(figures: &Figures) -> anyhow::Result<String> {
    let sections: [Section<'_>; 9] = [
        ("summary", "Summary", Ok(summary(&figures.summary))),
        ("losses", "Losses", losses(figures)),
        (
            "gap",
            "Training and validation: bias and variance",
            part(&figures.generalization, |of| Ok(generalization(of))),
        ),
        ("updates", "Updates", updates(figures)),
        ("baselines", "Beside n-gram models", part(&figures.baselines, |rows| baselines(rows))),
        ("samples", "Samples", Ok(samples(figures))),
        ("attention", "Attention", part(&figures.attention, attention::body)),
        ("calibration", "Calibration", part(&figures.calibration, calibration)),
        ("configuration", "Configuration", configuration(figures)),
    ];
    let title = shown(&figures.run);
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n<title>{title}: tinygpt report</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n<header>\n<h1>{title}</h1>\n<p class=\"soft\">A training run of tinygpt, \
         configuration <code>{}</code>.</p>\n<nav aria-label=\"Sections\">\n",
        shown(&figures.config.name)
    );
    for (anchor, heading, _) in &sections {
        let _ = writeln!(page, "<a href=\"#{anchor}\">{}</a>", heading.split(':').next().unwrap_or(heading));
    }
    page += "</nav>\n</header>\n<main>\n";
    for (anchor, heading, body) in sections {
        let _ = write!(
            page,
            "<section id=\"{anchor}\" aria-labelledby=\"{anchor}-heading\">\n<h2 id=\"{anchor}-heading\">{heading}</h2>\n{}\
             </section>\n",
            body?
        );
    }
    Ok(page + "</main>\n</body>\n</html>\n")
}

/// What limits a model, as the page and the program name it.
pub fn name(limit: Limit) -> &'static str {
    match limit {
        Limit::Floor => "the entropy of the text",
        Limit::Bias => "bias",
        Limit::Variance => "variance",
        Limit::Unknown => "bias or the entropy of the text",
    }
}

/// A text of users or models: escaped, its control characters to be seen.
pub fn shown(text: &str) -> String {
    escape(&harmless(text))
}

fn part<T>(part: &Part<T>, body: impl FnOnce(&T) -> anyhow::Result<String>) -> anyhow::Result<String> {
    match part {
        Ok(part) => body(part),
        Err(reason) => Ok(left_out(reason)),
    }
}

fn left_out(reason: &str) -> String {
    format!("<p class=\"left-out\">Left out: {}.</p>\n", shown(reason.trim_end_matches('.')))
}

/// A chart with a text for those who do not see it and a caption for all.
pub fn chart(figure: &Figure, label: &str, caption: &str) -> anyhow::Result<String> {
    Ok(format!(
        "<figure>\n<div class=\"chart\" role=\"img\" aria-label=\"{}\">\n{}</div>\n<figcaption>{caption}</figcaption>\n</figure>\n",
        escape(label),
        figure.svg()?
    ))
}

fn summary(summary: &Summary) -> String {
    let mut tiles = String::new();
    let mut tile = |name: &str, value: String, more: &str| {
        let more = if more.is_empty() { String::new() } else { format!("<small>{more}</small>") };
        let _ = writeln!(tiles, "<div><dt>{name}</dt><dd>{value}{more}</dd></div>");
    };
    match (&summary.validation, summary.best) {
        (Some(report), _) => {
            let stderr = summary.stderr.map_or(String::new(), |stderr| format!(" ± {stderr:.4}"));
            tile("validation loss", format!("{:.4}", report.loss), &format!("nats a token{stderr}, whole split"));
            tile("perplexity", format!("{:.3}", report.perplexity), "");
            tile("bits a byte", format!("{:.4}", report.bits_per_byte), "comparable between tokenizers");
            if let (Some(floor), Some(gap)) = (report.floor, report.gap) {
                tile("floor", format!("{floor:.4}"), "the entropy of the text: no model can do better");
                tile("above the floor", format!("{gap:.4}"), &format!("{:.1}% of it", 100.0 * gap / floor));
            }
        }
        (None, Some(best)) => {
            tile("validation loss", format!("{:.4}", best.val_loss), "nats a token, estimated in training");
            tile("perplexity", format!("{:.3}", best.val_loss.exp()), "");
        }
        (None, None) => {}
    }
    tile("parameters", in_thousands(summary.parameters), &format!("{} tokens in the vocabulary", summary.vocab_size));
    let best = summary.best.map_or(String::new(), |best| format!("best at {}", in_thousands(best.step as usize)));
    tile("updates", in_thousands(summary.steps as usize), &best);
    tile("training tokens seen", in_thousands(summary.tokens_seen as usize), "");
    tile("time", human_time(summary.seconds), "");
    format!("<dl>\n{tiles}</dl>\n")
}

fn losses(figures: &Figures) -> anyhow::Result<String> {
    let rows = charts::thinned(&figures.metrics);
    let Some(figure) = charts::losses(&rows) else { return Ok(no_metrics()) };
    let best = figures.summary.best.map_or(String::new(), |best| {
        format!(" The lowest validation loss was {:.4} at update {}.", best.val_loss, in_thousands(best.step as usize))
    });
    let figure = chart(
        &figure,
        &format!("Training and validation loss over the updates.{best}"),
        &format!(
            "Training loss of single batches (light) and its running mean; validation loss at each evaluation, an estimate \
             without dropout.{best}"
        ),
    )?;
    Ok(format!("<div class=\"large\">\n{figure}</div>\n"))
}

fn no_metrics() -> String {
    left_out("metrics.jsonl of this run has no lines")
}

fn updates(figures: &Figures) -> anyhow::Result<String> {
    let rows = charts::thinned(&figures.metrics);
    let all = [
        (charts::learning_rate(&rows), "Learning rate", "The step size that the schedule gives each update."),
        (
            charts::gradient_norm(&rows, figures.config.train.clip),
            "Norm of the gradient",
            "Of all parameters together, before clipping. Spikes are batches that surprised the model; a rise that lasts \
             means that training is about to diverge.",
        ),
        (
            charts::update_ratio(&rows),
            "Update-to-weight ratio",
            "The norm of the update before each evaluation over the norm of the weights. It follows the learning rate; with \
             AdamW about a thousandth is usual: with far less the model hardly moves, with far more it forgets.",
        ),
        (charts::throughput(&rows), "Throughput", "Training tokens a second. Dips are other work on the same machine."),
    ];
    let mut body = String::new();
    let mut missing = Vec::new();
    for (figure, name, caption) in all {
        match figure {
            Some(figure) => {
                let label = format!("{name} over the updates");
                body += &chart(&figure, &label, &format!("<strong>{name}.</strong> {caption}"))?;
            }
            None => missing.push(name),
        }
    }
    if body.is_empty() {
        return Ok(no_metrics());
    }
    let body = format!("<div class=\"charts\">\n{body}</div>\n");
    Ok(match missing[..] {
        [] => body,
        _ => body + &left_out(&format!("{}, which metrics.jsonl of this run does not have", missing.join(", "))),
    })
}

fn generalization(of: &Generalization) -> String {
    let Generalization { losses, generalization_gap, limit, sentences } = of;
    let stderr = |stderr: Option<f64>| stderr.map_or(String::new(), |stderr| format!("{stderr:.4}"));
    let mut rows = vec![
        ("training loss", losses.train.loss, stderr(losses.train.stderr)),
        ("validation loss", losses.validation.loss, stderr(losses.validation.stderr)),
        ("generalization gap", *generalization_gap, String::new()),
    ];
    rows.extend(losses.floor.map(|floor| ("floor", floor, String::new())));
    let rows: String = rows
        .into_iter()
        .map(|(name, loss, stderr)| format!("<tr><td>{name}</td><td>{loss:.4}</td><td>{stderr}</td></tr>\n"))
        .collect();
    let sentences: String = sentences.iter().map(|sentence| format!("<p>{}</p>\n", shown(sentence))).collect();
    format!(
        "<p>What limits this model: <strong>{}</strong>.</p>\n{sentences}<div class=\"wide\"><table>\n<thead><tr><th scope=\"col\">\
         </th><th scope=\"col\">nats a token</th><th scope=\"col\">standard error</th></tr></thead>\n<tbody>\n{rows}</tbody>\n\
         </table></div>\n",
        name(*limit)
    )
}

fn baselines(rows: &[Row]) -> anyhow::Result<String> {
    let table: String = rows
        .iter()
        .map(|row| {
            format!(
                "<tr{}><td>{}</td><td>{}</td><td>{:.4}</td><td>{:.3}</td><td>{:.4}</td></tr>\n",
                if row.name == "GPT" { " class=\"own\"" } else { "" },
                escape(&row.name),
                row.parameters.map_or(String::new(), |n| in_thousands(n as usize)),
                row.loss,
                row.perplexity,
                row.bits_per_byte
            )
        })
        .collect();
    let said: Vec<String> = rows.iter().map(|row| format!("{} {:.2}", row.name, row.bits_per_byte)).collect();
    let figure = chart(
        &charts::baselines(rows),
        &format!("Bits per byte on the validation split: {}", said.join(", ")),
        "KN is interpolated Kneser-Ney, the strongest of the n-gram models.",
    )?;
    Ok(format!(
        "<p>What models reach that count n-grams of the same training text, on the same validation tokens: chance, how often \
         each token comes, and what one to four tokens of context tell.</p>\n<div class=\"charts\">\n{figure}<div class=\"wide\">\
         <table>\n<thead><tr><th scope=\"col\">model</th><th scope=\"col\">parameters</th><th scope=\"col\">nats/token</th>\
         <th scope=\"col\">perplexity</th><th scope=\"col\">bits/byte</th></tr></thead>\n<tbody>\n{table}</tbody>\n</table></div>\n\
         </div>\n"
    ))
}

fn samples(figures: &Figures) -> String {
    let all = &figures.samples;
    if all.is_empty() {
        return "<p class=\"left-out\">Left out: this run took no samples. With <code>--set train.sample_every=100</code> it \
                writes one every 100 updates.</p>\n"
            .into();
    }
    let n = all.len().min(MOST_SAMPLES);
    // Evenly from the first to the last.
    let chosen = (0..n).map(|i| if n == 1 { all.len() - 1 } else { i * (all.len() - 1) / (n - 1) });
    let count = if n < all.len() { format!("{n} of {} samples", all.len()) } else { "Samples".into() };
    let mut body = format!(
        "<p>{count} by the weights of one update after the other, drawn with the same random numbers: only what the model has \
         learned makes the difference.</p>\n"
    );
    for sample in chosen.map(|at| &all[at]) {
        let Sample { step, prompt, text, .. } = sample;
        let loss = figures.metrics.iter().filter(|row| row.step == *step).find_map(|row| row.val_loss);
        let loss = loss.map_or(String::new(), |loss| format!(", validation loss {loss:.4}"));
        let mut cut: String = text.chars().take(SAMPLE_CHARS).collect();
        if cut.len() < text.len() {
            cut.push('…');
        }
        // The line break behind the tag is none of the text.
        let _ = write!(
            body,
            "<h3>Update {}{loss}</h3>\n<pre dir=\"auto\">\n<span class=\"prompt\">{}</span>{}</pre>\n",
            in_thousands(*step as usize),
            shown(prompt),
            shown(&cut)
        );
    }
    body
}

fn calibration(of: &CalibrationPart) -> anyhow::Result<String> {
    let CalibrationPart { curve, share } = of;
    let figure = chart(
        &charts::calibration(curve),
        &format!("Calibration curve; expected calibration error {:.4}", curve.top_error),
        "Below the diagonal the model is too sure, above it not sure enough. Bins of fewer than 20 predictions are left out.",
    )?;
    Ok(format!(
        "<p>Whether what the model gives a probability of 30% happens in 30% of the cases. The expected calibration error is \
         <strong>{:.4}</strong>: by so much the probability of the most probable token is off, on average. Over all tokens \
         together, {:.4} of the probability of a context is wrong. Measured on {} tokens, {} of the validation split.</p>\n\
         <div class=\"charts\">\n{figure}</div>\n",
        curve.top_error,
        curve.error,
        in_thousands(curve.contexts as usize),
        if *share >= 1.0 { "all".to_owned() } else { format!("{:.1}%", 100.0 * share) }
    ))
}

fn configuration(figures: &Figures) -> anyhow::Result<String> {
    Ok(format!(
        "<details open=\"\">\n<summary>Every key of <code>train.toml</code></summary>\n<pre>\n{}</pre>\n</details>\n",
        shown(&figures.config.to_toml()?)
    ))
}
