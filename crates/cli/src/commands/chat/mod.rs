//! `tinygpt chat`: one prompt after the other, with a model that stays loaded.

mod lines;

use std::{
    env,
    ffi::OsString,
    io,
    ops::ControlFlow,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, Ordering},
    },
};

use clap::Parser;
use tinygpt_model::{Decoder, GenerationDefaults, ModelFolder};

use super::generate::{prompts::unescape, settings::Wanted, streamed};
use crate::{
    args::{ChatArgs, Cli, Command, TextArgs},
    generation::fresh_seed,
    generator::Generator,
    hub,
    measured::newest_run,
    message,
    output::{Usage, is_broken_pipe, print_stdout},
};
use lines::Lines;

const HELP: &str =
    "A line is a prompt. One that ends in \\ goes on in the next line; an empty one starts a text from nothing.
  /again         another text for the same prompt: its next sample
  /more          go on where the last text ended
  /NAME VALUE    set the flag --NAME of `tinygpt chat` for what follows: /temperature 0.7, /seed 5, /stop \\n
  /settings      what was set
  /reset         the settings of the command line
  /quit          end, as Ctrl-D does; Ctrl-C ends a text
  //TEXT         a prompt that begins with /";

/// Whether the text that is being generated is to end.
static INTERRUPTED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

pub fn run(args: &ChatArgs) -> anyhow::Result<()> {
    let path = match &args.run {
        Some(path) => hub::folder(path)?.into_owned(),
        None => newest_run()?,
    };
    let defaults = ModelFolder::new(&path).read_generation_defaults()?;
    let seed = fresh_seed();
    let wanted = Wanted::new(&args.text, &defaults, seed)?;
    let generator = Generator::open(&path, args.adapter.as_deref())?;
    // What makes no sense is refused now, and not at the first prompt.
    wanted.settings(&generator)?;
    let decoder = generator.decoder(&args.opening, 1)?;
    let text = args.text.clone();
    let mut chat = Chat {
        args,
        generator: &generator,
        defaults,
        decoder,
        seed,
        set: Vec::new(),
        text,
        last: None,
        failed: 0,
        told_seed: false,
    };
    let mut lines = Lines::open()?;
    if lines.is_terminal() {
        notice!("/help lists what can be done beside typing a prompt");
        signal_hook::flag::register(signal_hook::consts::SIGINT, Arc::clone(&INTERRUPTED))?;
    }
    let ended = chat.until_the_end(&mut lines);
    if let Err(error) = lines.save() {
        notice!("the history is not kept: {}", message(&error));
    }
    ended?;
    // Who types has seen it.
    anyhow::ensure!(lines.is_terminal() || chat.failed == 0, "{} of the lines failed", chat.failed);
    Ok(())
}

/// What comes after a line.
enum Next {
    Line,
    Quit,
}

/// A text that was told.
struct Told {
    prompt: String,
    sample: u64,
    text: String,
}

struct Chat<'a> {
    /// Those of the command line.
    args: &'a ChatArgs,
    generator: &'a Generator,
    defaults: GenerationDefaults,
    decoder: Box<dyn Decoder + 'a>,
    /// That of the draws where no flag says.
    seed: u64,
    /// The flags that were set on the way.
    set: Vec<String>,
    /// What they and the command line say together.
    text: TextArgs,
    last: Option<Told>,
    failed: usize,
    /// Whether the seed that no flag says was told.
    told_seed: bool,
}

impl Chat<'_> {
    /// Follows the lines until they end or one of them says so. What goes wrong in one of them is told.
    fn until_the_end(&mut self, lines: &mut Lines) -> anyhow::Result<()> {
        while let Some(line) = lines.next_text()? {
            match self.line(&line) {
                Ok(Next::Line) => {}
                Ok(Next::Quit) => break,
                Err(error) if is_broken_pipe(&error) => return Err(error),
                Err(error) => {
                    notice!("error: {}", message(&error));
                    self.failed += 1;
                }
            }
        }
        Ok(())
    }

    fn line(&mut self, line: &str) -> anyhow::Result<Next> {
        let Some(command) = line.strip_prefix('/') else {
            self.prompt(line)?;
            return Ok(Next::Line);
        };
        let (name, value) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        match name {
            _ if name.starts_with('/') => self.prompt(command)?,
            "quit" | "exit" => return Ok(Next::Quit),
            "help" | "" => notice!("{HELP}"),
            "settings" if self.set.is_empty() => notice!("nothing but what the command line says"),
            "settings" => notice!("{}", self.set.join(" ")),
            "reset" => (self.set, self.text) = (Vec::new(), self.args.text.clone()),
            "again" => {
                let Told { prompt, sample, .. } = self.last.as_ref().ok_or_else(nothing_yet)?;
                self.tell(prompt.clone(), sample + 1)?;
            }
            "more" => {
                let Told { prompt, text, .. } = self.last.as_ref().ok_or_else(nothing_yet)?;
                self.tell(format!("{prompt}{text}"), 0)?;
            }
            "n" => self.set("max-new-tokens", value)?,
            _ => self.set(name, value)?,
        }
        Ok(Next::Line)
    }

    fn prompt(&mut self, text: &str) -> anyhow::Result<()> {
        self.tell(if self.text.escapes { unescape(text) } else { text.to_owned() }, 0)
    }

    /// Tells a sample of a prompt, until it ends or Ctrl-C.
    fn tell(&mut self, prompt: String, sample: u64) -> anyhow::Result<()> {
        let generator = self.generator;
        let settings = Wanted::new(&self.text, &self.defaults, self.seed)?.settings(generator)?;
        let plan = settings.plan(prompt, None, generator)?;
        let mut sampler = settings.sampler(&plan)?;
        if settings.draws() && self.text.seed.is_none() && !self.told_seed {
            notice!("seed {}", self.seed);
            self.told_seed = true;
        }
        INTERRUPTED.store(false, Ordering::Relaxed);
        print_stdout(settings.echoed(&plan))?;
        let told =
            streamed(self.decoder.as_mut(), &mut sampler, generator.tokenizer(), &plan, sample, tell_until_interrupted);
        print_stdout("\n")?;
        let text = told?;
        self.last = Some(Told { prompt: plan.prompt_text, sample, text });
        Ok(())
    }

    /// Sets a flag: the command line is read again with it at its end, where it has the last word.
    fn set(&mut self, name: &str, value: &str) -> anyhow::Result<()> {
        let flag = if value.is_empty() { format!("--{name}") } else { format!("--{name}={value}") };
        let mut set = self.set.clone();
        set.push(flag);
        let mut line: Vec<OsString> = env::args_os().collect();
        let flags_end = line.iter().position(|arg| arg == "--").unwrap_or(line.len());
        line.splice(flags_end..flags_end, set.iter().map(OsString::from));
        let (Cli { command: Command::Chat(args), threads }, before) = (parse(line)?, parse(env::args_os().collect())?)
        else {
            return Err(Usage(format!("--{name} is no flag of `tinygpt chat`")).into());
        };
        let ChatArgs { run, adapter, opening, .. } = self.args;
        if threads != before.threads || (&args.run, &args.adapter, &args.opening) != (run, adapter, opening) {
            return Err(Usage(format!("--{name} is for the command line: the model is open already")).into());
        }
        Wanted::new(&args.text, &self.defaults, self.seed)?.settings(self.generator)?;
        (self.set, self.text) = (set, args.text);
        Ok(())
    }
}

/// Reads a command line.
fn parse(line: Vec<OsString>) -> anyhow::Result<Cli> {
    Cli::try_parse_from(line).map_err(|error| {
        // Behind an empty line come the usage and what else clap says to a command line.
        let text = error.to_string();
        let text = text.split("\n\n").next().unwrap_or_default();
        Usage(text.trim_start_matches("error: ").trim_end().to_owned()).into()
    })
}

fn nothing_yet() -> anyhow::Error {
    Usage("there is no text yet: type a prompt first".into()).into()
}

/// Prints a piece of text, which is the last one where Ctrl-C was pressed.
fn tell_until_interrupted(text: &str) -> io::Result<ControlFlow<()>> {
    print_stdout(text)?;
    Ok(match INTERRUPTED.swap(false, Ordering::Relaxed) {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    })
}
