//! What `lab` prints for people: a table, what its columns mean, and a completion of each strategy.

use tinygpt_trainer::lab::{Completion, Prompt, StrategyReport};

use crate::args::LabArgs;

/// The most columns of the output.
const WIDTH: usize = 100;
/// The most columns of a strategy's name in the table.
const NAME_WIDTH: usize = 20;

const LEGEND: &str = "
entropy     mean nats of the distribution that a token is drawn from, after the rules
of model    the same of the model itself in the same places, before the rules
kept        mean number of tokens that the rules keep
perplexity  of the texts under the model itself
dist-1, -2  different words, or pairs of words, among all in the completions
rep-4       sequences of four words that their own completion has already had
looping     completions that end in a loop of tokens
accepted    finished stories that the grammar accepts
";

/// The whole output.
pub fn text(args: &LabArgs, prompts: &[Prompt], reports: &[StrategyReport]) -> String {
    let of_prompts = if prompts.len() == 1 { String::new() } else { format!(" of each of {} prompts", prompts.len()) };
    let LabArgs { samples, max_new_tokens, seed, .. } = args;
    let mut text = format!("{samples} completions{of_prompts}, {max_new_tokens} tokens each, seed {seed}\n\n");
    let width = reports.iter().map(|report| name(report).chars().count()).max().unwrap_or(0).max("strategy".len());
    text += &format!(
        "{:width$} {:>8} {:>9} {:>8} {:>10} {:>7} {:>7} {:>7} {:>8} {:>9}\n",
        "strategy", "entropy", "of model", "kept", "perplexity", "dist-1", "dist-2", "rep-4", "looping", "accepted"
    );
    for report in reports {
        text += &format!(
            "{:width$} {:>8} {:>9.3} {:>8} {:>10.3} {:>7} {:>7} {:>7} {:>8} {:>9}\n",
            name(report),
            report.entropy.map_or("-".into(), |entropy| format!("{entropy:.3}")),
            report.model_entropy,
            report.kept.map_or("-".into(), |kept| format!("{kept:.1}")),
            report.perplexity,
            percent(report.distinct_1),
            percent(report.distinct_2),
            percent(report.repeated_4_grams),
            percent(Some(report.looping)),
            percent(report.accepted),
        );
    }
    text += LEGEND;
    let loops: Vec<String> = reports.iter().filter_map(describe_loop).collect();
    if !loops.is_empty() {
        text += &format!("\n{}", loops.concat());
    }
    for report in reports {
        text += &reading(report, prompts);
    }
    text
}

fn name(report: &StrategyReport) -> String {
    let name: String = report.name.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if name.chars().count() <= NAME_WIDTH {
        return name;
    }
    name.chars().take(NAME_WIDTH - 1).chain(['…']).collect()
}

fn percent(share: Option<f64>) -> String {
    share.map_or("-".into(), |share| format!("{:.1}%", 100.0 * share))
}

/// The loop that a deterministic strategy falls into.
fn describe_loop(report: &StrategyReport) -> Option<String> {
    let found = report.first_loop.filter(|_| report.deterministic)?;
    let tokens = if found.period == 1 { "token" } else { "tokens" };
    Some(format!("{} goes round in a loop of {} {tokens} from token {} on\n", name(report), found.period, found.start))
}

/// The first completion, to read.
fn reading(report: &StrategyReport, prompts: &[Prompt]) -> String {
    let Some(Completion { prompt, text, .. }) = report.completions.first() else { return String::new() };
    format!("\n--- {}\n{}", name(report), wrapped(&format!("{}{text}", prompts[*prompt].text)))
}

/// The lines of a text, broken at spaces where they are too long.
fn wrapped(text: &str) -> String {
    let mut out = String::new();
    for line in text.lines() {
        let mut width = 0;
        for word in line.split_inclusive(' ') {
            let shown = word.trim_end_matches(' ').chars().count();
            if width > 0 && width + shown > WIDTH {
                out.truncate(out.trim_end_matches(' ').len());
                out.push('\n');
                width = 0;
            }
            // A word that no line has room for is cut.
            for c in word.chars() {
                if width == WIDTH && c != ' ' {
                    out.push('\n');
                    width = 0;
                }
                out.push(c);
                width += 1;
            }
        }
        out.truncate(out.trim_end_matches(' ').len());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_broken_at_spaces_and_words_only_where_they_are_too_long() {
        let words = ["word"; 30].join(" ");
        let text = wrapped(&format!("one  two\n\n{words}\n{}", "x".repeat(230)));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[..2], ["one  two", ""]);
        assert_eq!(lines[2..4].join(" "), words);
        assert_eq!(lines[4..].iter().map(|line| line.len()).collect::<Vec<_>>(), [100, 100, 30]);
        assert!(lines.iter().all(|line| line.len() <= WIDTH && !line.ends_with(' ')));
    }
}
