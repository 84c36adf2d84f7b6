//! The program `tinygpt`: train a small GPT from text and generate from it.

/// Tells the user something on standard error. A log that cannot be written (a full disk, a reader gone away) must not
/// end hours of training.
macro_rules! notice {
    ($($arg:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($arg)*);
    }};
}

mod args;
mod commands;
mod config_file;
mod device;
mod generation;
mod generator;
mod growing_text;
mod html;
mod hub;
mod measured;
mod output;
mod preparing;
mod progress;
mod progress_bar;
mod signals;
mod simd;
mod text_input;
mod threads;
mod token_text;
mod units;

use std::process::ExitCode;

use clap::Parser;
use tinygpt_model::ModelError;
use tinygpt_sampler::simd::SimdError;
use tinygpt_trainer::{TrainError, corpus::panics_are_told_as_errors, hub::HubError};

use crate::{
    args::{Cli, Command, DataCommand},
    output::{Interrupted, Usage, is_broken_pipe},
};

/// Done.
const DONE: u8 = 0;
/// The work failed.
const FAILED: u8 = 1;
/// What was asked for makes no sense.
const USAGE: u8 = 2;
/// Ctrl-C, as a shell reports it: 128 + SIGINT.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    hide_panics_that_are_told_as_errors();
    let cli = Cli::parse(); // refuses with exit code 2
    match run(cli) {
        Ok(()) => ExitCode::from(DONE),
        // `| head` has seen enough: not an error.
        Err(error) if is_broken_pipe(&error) => ExitCode::from(DONE),
        Err(error) => {
            let error = in_words_of_flags(error);
            notice!("error: {}", message(&error));
            ExitCode::from(exit_code(&error))
        }
    }
}

/// Keeps the message of a panic from standard error where a library catches it and says what is wrong with the file.
fn hide_panics_that_are_told_as_errors() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !panics_are_told_as_errors() {
            print(panic);
        }
    }));
}

fn run(cli: Cli) -> anyhow::Result<()> {
    threads::set_up(cli.threads)?;
    simd::set_up()?;
    signals::survive_file_size_limit()?;
    if waits_for_requests(&cli.command) {
        // A thread of the pool that waits would be missed by those who compute.
        return execute(cli.command);
    }
    // On a thread of the pool: from there a parallel loop starts at once, without waking another thread for its first
    // part.
    rayon::scope(|_| execute(cli.command))
}

/// Whether the command leaves computing to threads of its own.
fn waits_for_requests(command: &Command) -> bool {
    #[cfg(feature = "serve")]
    let waits = matches!(command, Command::Serve(_));
    #[cfg(not(feature = "serve"))]
    let waits = {
        let _ = command;
        false
    };
    waits
}

fn execute(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Train(args) => commands::train::run(&args),
        Command::Generate(args) => commands::generate::run(&args),
        Command::Chat(args) => commands::chat::run(&args),
        Command::Eval(args) => commands::eval::run(&args),
        Command::Score(args) => commands::score::run(&args),
        Command::Compare(args) => commands::compare::run(&args),
        Command::Lab(args) => commands::lab::run(&args),
        Command::Baseline(args) => commands::baseline::run(&args),
        Command::Info(args) => commands::info::run(&args),
        Command::Export(args) => commands::export::run(&args),
        #[cfg(feature = "serve")]
        Command::Serve(args) => commands::serve::run(&args),
        Command::Sample(args) => commands::sample::run(&args),
        Command::Bench { command } => commands::bench::run(&command),
        Command::Devices(args) => commands::devices::run(&args),
        Command::Selftest(args) => commands::selftest::run(&args),
        Command::Data { command: DataCommand::Synth(args) } => commands::data::synth(&args),
        Command::Data { command: DataCommand::Accept(args) } => commands::data::accept(&args),
        Command::Data { command: DataCommand::Fetch(args) } => commands::data::fetch(&args),
        Command::Data { command: DataCommand::Info(args) } => commands::data::info(&args),
        Command::Data { command: DataCommand::Tokens(args) } => commands::data::tokens(&args),
        Command::Config(args) => commands::config::run(&args),
        Command::Cache(args) => commands::cache::run(&args),
        Command::Plan(args) => commands::plan::run(&args),
        Command::Sweep(args) => commands::sweep::run(&args),
        Command::Report(args) => commands::report::run(&args),
        Command::Runs(args) => commands::runs::run(&args),
        Command::Log(args) => commands::log::run(&args),
        Command::Completions(args) => commands::shell::completions(&args),
        Command::Man(args) => commands::shell::man(&args),
    }
}

/// What a library says that does not know our flags, in their words.
fn in_words_of_flags(error: anyhow::Error) -> anyhow::Error {
    match error.downcast_ref() {
        Some(ModelError::IntegersOnGpu) => {
            Usage("--weights int8 and int4 are for --device cpu; on a GPU, use bf16 or f32".into()).into()
        }
        Some(ModelError::KvCacheOnGpu) => {
            Usage("--kv-cache bf16 is for --device cpu; on a GPU, caches are in f32".into()).into()
        }
        _ => error,
    }
}

/// The error and its causes on one line. Most of our errors quote their cause already; it is not said twice.
pub fn message(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text += &format!(": {cause}");
        }
    }
    text
}

fn exit_code(error: &anyhow::Error) -> u8 {
    if error.is::<Interrupted>() {
        return INTERRUPTED;
    }
    let refused = error.is::<Usage>()
        || error.is::<SimdError>()
        || matches!(error.downcast_ref(), Some(HubError::Name { .. }))
        || matches!(
            error.downcast_ref(),
            Some(
                TrainError::Config(_)
                    | TrainError::Model(ModelError::Config { .. })
                    | TrainError::StepsAlreadyMade { .. }
            )
        );
    if refused { USAGE } else { FAILED }
}
