//! The help texts and the usage errors of the program.

use crate::common::{Place, failure, stdout};

#[test]
fn help_lists_the_commands_and_where_to_start() {
    insta::assert_snapshot!(stdout(Place::new().tinygpt().arg("--help")), @r##"
    Train a small GPT from text and generate from it

    Usage: tinygpt [OPTIONS] <COMMAND>

    Commands:
      train        Train a model and write a run folder
      generate     Generate text from a trained model
      chat         Continue one prompt after the other, with a model that stays loaded
      eval         The loss of a trained model on held-out text, or on any text
      score        The probability of a text, token by token: its surprisal, its rank, what was expected
                   instead
      compare      How far two models are from each other, or from the truth about the built-in corpus:
                   entropies and divergences
      lab          Compare sampling strategies side by side: diversity, loops, perplexity, acceptance
      baseline     Beside a trained model, what n-gram models of its own training text reach
      report       One page with all that is known of a run: curves, samples, baselines, attention,
                   calibration
      runs         The runs below a folder: how far each is, its best loss, size and state, the one that
                   was saved last first
      log          Write what a run has logged as files that other programs show
      info         What a model is: its shape, its size, what it takes to train and to generate, and
                   what else opens it
      export       Write a trained model as a file that other programs open
      serve        Serve models over HTTP: an API that clients of OpenAI's know, and a page to look at
                   them with
      sample       Draw from numbers: logits with every sampling rule, or weights
      bench        Measure what this program is made of
      devices      The devices of this machine: what --device can take here, and what the others need
      selftest     Check that a device computes what the CPU does: losses, gradients, updates, draws and
                   text
      data         Make, look at, convert and fetch corpora
      cache        What is kept of texts that were prepared: tokens, tokenizers, the built-in corpus; or
                   delete it
      config       Print every configuration key with its meaning and default, or a recipe: a TOML file
                   to start from
      plan         Propose a configuration for a time and a text: the size that is expected to end with
                   the least loss
      sweep        Train every combination of some values, and compare
      completions  Print what completes this program's commands and flags in a shell
      man          Print the manual page of the program, or write those of all commands
      help         Print this message or the help of the given subcommand(s)

    Options:
          --threads <N>  Threads to use, at most as many as cores [default: all cores]. The results do
                         not depend on it
      -h, --help         Print help
      -V, --version      Print version

    Start here:
      tinygpt train --config tiny
      tinygpt train --data my.txt
      tinygpt generate --prompt "Once" --top-p 0.9 --seed 42

    Exit codes: 0 done, 1 failed, 2 usage, 130 interrupted.
    "##);
}

#[test]
fn the_help_of_train_lists_its_flags_and_gives_examples() {
    insta::assert_snapshot!(stdout(Place::new().tinygpt().args(["train", "--help"])), @r##"
    Train a model and write a run folder

    Usage: tinygpt train [OPTIONS]

    Options:
          --config <FILE>         The configuration: a TOML file, here or in configs/, or a recipe, such
                                  as tiny or shakespeare-fast (`tinygpt config --help` names all).
                                  Without one, a recipe is chosen by the size of --data, and of
                                  --init-from. With --resume it only says whose newest run to resume
          --init-from <DIR>       Start from the weights of this model, with its tokenizer and its
                                  shape: a run, or a GPT-2, Qwen3 or Llama folder of Hugging Face. Only
                                  model.block_size and model.dropout may be others
          --data <PATH>...        The corpus (or `stories`, the built-in one): files (text, .jsonl,
                                  .parquet, .gz and .zst of them, or tokens in .bin), folders or globs;
                                  `-` is standard input. Overrides data.corpus
          --text-key <KEY>        The key of .jsonl, or the column of .parquet, that holds the text;
                                  overrides data.text_key
          --tokenizer <RUN|FILE>  Use the tokenizer of a run, of another folder with a tokenizer.json,
                                  of hf:NAME of the hub, or such a file; overrides data.tokenizer_path
          --out <DIR>             The run folder [default: a fresh runs/NAME-N]
          --device <DEVICE>       auto, cpu, cuda, cuda:N or metal [default: auto]
          --seed <S>              The seed of everything random; overrides seed
          --set <KEY=VALUE>       Override a key of the configuration, for example --set
                                  train.max_steps=100; repeatable
          --resume                Go on with the run in --out (or the newest of the configuration's
                                  name, or the newest of all)
          --overwrite             Replace the run in --out
          --log <FORMAT>          What to write beside metrics.jsonl while it trains: tensorboard, for
                                  event files in RUN/tensorboard. A resumed run goes on with those that
                                  it has
          --inspect               Train nothing and write no run: print how activations, weights and
                                  their gradients are spread at the start, by layer
          --json                  Print the result as one JSON object
          --threads <N>           Threads to use, at most as many as cores [default: all cores]. The
                                  results do not depend on it
      -h, --help                  Print help
      -V, --version               Print version

    Examples:
      tinygpt train --config tiny
      tinygpt train --data my.txt
      tinygpt train --config tiny --data my.txt --set train.max_steps=500
      tinygpt train --resume --out runs/tiny-1 --set train.max_steps=5000
      tinygpt train --config tiny --set model.init=he --inspect
      tinygpt train --init-from hf:openai-community/gpt2 --data my.txt
    "##);
}

#[test]
fn every_command_has_a_help_text_and_the_version() {
    for command in [
        &["generate"][..],
        &["eval"],
        &["score"],
        &["compare"],
        &["report"],
        &["lab"],
        &["baseline"],
        &["runs"],
        &["log"],
        &["info"],
        &["export"],
        #[cfg(feature = "serve")]
        &["serve"],
        &["devices"],
        &["selftest"],
        &["data"],
        &["data", "synth"],
        &["data", "accept"],
        &["data", "fetch"],
        &["data", "info"],
        &["data", "tokens"],
        &["cache"],
        &["config"],
        &["completions"],
        &["man"],
        &["bench", "limits"],
        &["bench", "train"],
        &["bench", "decode"],
        &["bench", "sampling"],
    ] {
        assert!(stdout(Place::new().tinygpt().args(command).arg("--help")).contains("Usage: tinygpt "), "{command:?}");
    }
    assert_eq!(stdout(Place::new().tinygpt().arg("--version")), format!("tinygpt {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn wrong_usage_is_refused_with_exit_code_2() {
    for (args, message) in [
        (&[][..], "Usage: tinygpt"),
        (&["sing"], "unrecognized subcommand 'sing'"),
        (&["train"], "--config"),
        (&["train", "--config"], "a value is required"),
        (&["train", "--config", "small.toml", "--stepz", "5"], "unexpected argument '--stepz'"),
        (&["train", "--config", "small.toml", "--seed=-1"], "--seed"),
        (&["train", "--config", "small.toml", "--overwrite"], "--out"),
        (&["train", "--resume", "--overwrite", "--out", "run"], "cannot be used with"),
        (&["train", "--config", "small.toml", "--set", "train.max_steps"], "is not KEY=VALUE"),
        (&["data"], "Usage: tinygpt data"),
    ] {
        let place = Place::new();
        let error = failure(place.tinygpt().args(args), 2);
        assert!(error.contains(message), "{args:?}: {error}");
        assert_eq!(place.names("."), ["small.toml"], "{args:?} left something behind");
    }
}
