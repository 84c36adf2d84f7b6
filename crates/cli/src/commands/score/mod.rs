//! `tinygpt score`: the probability of a text, token by token.

mod page;
mod plot;
mod shade;
mod terminal;

use std::path::Path;

use serde::Serialize;
use tinygpt_model::{Tokenizer, files::atomic};
use tinygpt_trainer::{
    chart,
    score::{TextScore, TokenScore, random_chars, score, shuffled_words},
    sliding::Sliding,
};

use crate::{
    args::ScoreArgs,
    measured::Measured,
    output::{Usage, has_colors, print_colored, print_json, print_stdout},
    progress_bar::WorkProgress,
    text_input::read_text,
    token_text::{text_of, visible},
};

/// What `--json` prints.
#[derive(Serialize)]
struct ScoreReport {
    run: String,
    stride: usize,
    context: usize,
    #[serde(flatten)]
    score: TextScore,
    /// The text itself, its words in random order and random characters, where they are compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    compare: Option<Vec<Compared>>,
    tokens: Vec<Token>,
}

/// A token of the text. Logarithms of probabilities and entropies are in nats.
#[derive(Serialize)]
struct Token {
    text: String,
    id: u32,
    logprob: f64,
    rank: usize,
    entropy: f64,
    top: Vec<TopToken>,
}

/// One of the most probable tokens.
#[derive(Serialize)]
struct TopToken {
    text: String,
    id: u32,
    logprob: f64,
}

/// A text beside others.
#[derive(Serialize)]
struct Compared {
    name: &'static str,
    text: String,
    tokens: usize,
    #[serde(flatten)]
    score: TextScore,
}

pub fn run(args: &ScoreArgs) -> anyhow::Result<()> {
    let (run, text) = run_and_text(args)?;
    if let Some(path) = &args.plot {
        check_plot(path)?;
    }
    let text = match text {
        Source::Argument(text) => text.to_owned(),
        Source::File(path) => read_text(path)?,
    };
    let mut measured = Measured::open_adapted(run, args.adapter.as_deref(), args.device)?;
    let context = args.context.unwrap_or(measured.model.block_size());
    let sliding = Sliding { context, stride: args.stride.unwrap_or(context.div_ceil(2)) };
    sliding.check(measured.model.block_size()).map_err(|error| Usage(error.to_string()))?;

    let scores = score_text(&mut measured, &text, sliding, args.top)?;
    let score = TextScore::new(&scores, text.len());
    let mut compare = None;
    if args.compare {
        let Some(random) = random_chars(&measured.tokenizer, text.chars().count(), args.seed)? else {
            anyhow::bail!("no token of this tokenizer is a single character, which --compare draws");
        };
        let mut texts = vec![Compared { name: "text", text: text.clone(), tokens: scores.len(), score }];
        for (name, text) in [("shuffled words", shuffled_words(&text, args.seed)), ("random characters", random)] {
            let scores = score_text(&mut measured, &text, sliding, args.top)?;
            texts.push(Compared { name, tokens: scores.len(), score: TextScore::new(&scores, text.len()), text });
        }
        compare = Some(texts);
    }
    let tokens: Vec<Token> =
        scores.into_iter().map(|score| Token::new(score, &measured.tokenizer)).collect::<anyhow::Result<_>>()?;
    let Sliding { context, stride } = sliding;
    let report = ScoreReport { run: measured.path.display().to_string(), stride, context, score, compare, tokens };
    if let Some(path) = &args.plot {
        write_plot(path, &report)?;
    }
    if args.json {
        return print_json(&report);
    }
    if has_colors() {
        return Ok(print_colored(&terminal::colored(&report))?);
    }
    Ok(print_stdout(&terminal::table(&report))?)
}

/// Where the text is.
enum Source<'a> {
    Argument(&'a str),
    File(&'a Path),
}

/// Which of the arguments is what.
fn run_and_text(args: &ScoreArgs) -> anyhow::Result<(Option<&Path>, Source<'_>)> {
    match (&args.run_and_text[..], &args.file) {
        ([], Some(file)) => Ok((None, Source::File(file))),
        ([run], Some(file)) => Ok((Some(Path::new(run)), Source::File(file))),
        ([_, _, ..], Some(_)) => Err(Usage("give a text or --file, not both".into()).into()),
        ([], None) => Err(Usage("give a text, `-` for standard input, or --file".into()).into()),
        ([only], None) if Path::new(only).is_dir() => {
            Err(Usage(format!("{only} is a folder: give the text behind it, `-` for standard input, or --file")).into())
        }
        ([only], None) => Ok((None, source(only))),
        ([run, text, ..], None) => Ok((Some(Path::new(run)), source(text))),
    }
}

fn source(text: &str) -> Source<'_> {
    if text == "-" { Source::File(Path::new(text)) } else { Source::Argument(text) }
}

fn score_text(measured: &mut Measured, text: &str, sliding: Sliding, top: usize) -> anyhow::Result<Vec<TokenScore>> {
    let ids = measured.tokenizer.encode(text)?;
    let mut progress = WorkProgress::new("scoring");
    Ok(score(measured.model.as_mut(), measured.tokenizer.start_token(), &ids, sliding, top, &mut progress.callback())?)
}

impl Token {
    fn new(score: TokenScore, tokenizer: &Tokenizer) -> anyhow::Result<Self> {
        let TokenScore { id, logprob, rank, entropy, top } = score;
        let top = top.into_iter().map(|(id, logprob)| Ok(TopToken { text: text_of(tokenizer, id)?, id, logprob }));
        Ok(Self { text: text_of(tokenizer, id)?, id, logprob, rank, entropy, top: top.collect::<anyhow::Result<_>>()? })
    }

    /// `-log2 p`.
    fn bits(&self) -> f64 {
        0.0 - self.logprob / std::f64::consts::LN_2
    }
}

fn is_page(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("html"))
}

/// Refuses a plot of no known format, before anything is computed.
fn check_plot(path: &Path) -> anyhow::Result<()> {
    if is_page(path) || chart::check_path(path).is_ok() {
        return Ok(());
    }
    Err(Usage(format!("{}: --plot writes .html, .svg or .png", path.display())).into())
}

fn write_plot(path: &Path, report: &ScoreReport) -> anyhow::Result<()> {
    if is_page(path) {
        return Ok(atomic::write(path, page::html(report).as_bytes())?);
    }
    Ok(chart::write(path, &plot::figure(report))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A letter that was expected, a line break that was not, and a token that would drive a terminal or a page.
    pub(super) fn report() -> ScoreReport {
        let token = |text: &str, p: f64, rank| Token {
            text: text.into(),
            id: 1,
            logprob: p.ln(),
            rank,
            entropy: 1.5,
            top: vec![TopToken { text: "a".into(), id: 1, logprob: 0.5f64.ln() }],
        };
        let score = TextScore { logprob: -8.0, perplexity: 3.0, bits_per_byte: 2.0 };
        let tokens = vec![token("a", 0.75, 1), token("\n", 0.001, 7), token("\x1b<", 0.3, 2)];
        ScoreReport { run: "run".into(), stride: 4, context: 8, score, compare: None, tokens }
    }

    #[test]
    fn one_argument_is_the_text_and_two_are_the_run_and_the_text() {
        let args = |run_and_text: &[&str], file: Option<&str>| ScoreArgs {
            run_and_text: run_and_text.iter().map(|&arg| arg.to_owned()).collect(),
            adapter: None,
            file: file.map(Into::into),
            compare: false,
            top: 5,
            seed: 0,
            context: None,
            stride: None,
            plot: None,
            device: "cpu".parse().unwrap(),
            json: false,
        };
        let read = |args: &ScoreArgs| match run_and_text(args) {
            Ok((run, Source::Argument(text))) => format!("{run:?} text {text}"),
            Ok((run, Source::File(file))) => format!("{run:?} file {}", file.display()),
            Err(error) => error.to_string(),
        };
        for (arguments, file, expected) in [
            (&["a b"][..], None, "None text a b"),
            (&["-"], None, "None file -"),
            (&["run", "a"], None, "Some(\"run\") text a"),
            (&["run", "-"], None, "Some(\"run\") file -"),
            (&[], Some("f"), "None file f"),
            (&["run"], Some("f"), "Some(\"run\") file f"),
            (&["run", "a"], Some("f"), "give a text or --file, not both"),
            (&[], None, "give a text, `-` for standard input, or --file"),
            (&["."], None, ". is a folder: give the text behind it, `-` for standard input, or --file"),
        ] {
            assert_eq!(read(&args(arguments, file)), expected);
        }
    }
}
