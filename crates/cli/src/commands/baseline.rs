//! `tinygpt baseline`: n-gram models of a run's training text, beside the run.

use std::path::Path;

use serde::Serialize;
use tinygpt_model::{
    ModelFolder,
    files::FileError,
    ngram::{NgramModel, Smoothing, save_with_tokenizer},
};
use tinygpt_trainer::{
    Dataset,
    data::Split,
    evaluate::{Evaluation, Report},
    ngram,
    sliding::{Sliding, sliding_loss},
};

use crate::{
    args::{BaselineArgs, SmoothingArg},
    measured::Measured,
    output::{print_json, print_stdout},
    progress_bar::WorkProgress,
};

/// What `--json` prints.
#[derive(Serialize)]
struct Baselines {
    run: String,
    vocab_size: usize,
    /// Tokens of the training split.
    train_tokens: usize,
    /// Tokens predicted in the validation split.
    tokens: u64,
    models: Vec<Row>,
}

/// A model, or the floor, on the validation split.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub order: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub smoothing: Option<Smoothing>,
    pub parameters: Option<u64>,
    /// Nats a token.
    pub loss: f64,
    pub perplexity: f64,
    pub bits_per_byte: f64,
    pub bits_per_char: f64,
}

/// What losses on a validation split are in other units, by those of the uniform distribution: all predict the same tokens.
pub struct Units {
    uniform: Report,
}

impl Units {
    pub fn of(data: &Dataset) -> anyhow::Result<Self> {
        let (loss, tokens) = ((data.tokenizer.vocab_size() as f64).ln(), (data.val.len() - 1) as u64);
        Ok(Self { uniform: Report::new(Evaluation { loss, floor: None, tokens }, &data.val, &data.tokenizer)? })
    }

    pub fn row(&self, name: &str, parameters: Option<u64>, loss: f64) -> Row {
        let uniform = &self.uniform;
        Row {
            name: name.into(),
            order: None,
            smoothing: None,
            parameters,
            loss,
            perplexity: loss.exp(),
            bits_per_byte: loss * uniform.bits_per_byte / uniform.loss,
            bits_per_char: loss * uniform.bits_per_char / uniform.loss,
        }
    }

    /// The uniform distribution and n-gram models.
    pub fn rows(&self, models: &[NgramModel], val: &Split) -> anyhow::Result<Vec<Row>> {
        let mut rows = vec![self.row("uniform", Some(0), self.uniform.loss)];
        for model in models {
            let loss = ngram::evaluate(model, val)?.loss;
            let (order, smoothing) = (Some(model.order()), Some(model.smoothing().clone()));
            rows.push(Row { order, smoothing, ..self.row(&model.name(), Some(model.parameters()), loss) });
        }
        Ok(rows)
    }
}

/// N-gram models of a training split up to an order, and Kneser-Ney of that order.
pub fn train(data: &Dataset, order: usize) -> anyhow::Result<Vec<NgramModel>> {
    let mut progress = WorkProgress::new("counting");
    Ok(ngram::baselines(&data.train, data.tokenizer.vocab_size(), order, &mut progress.callback())?)
}

pub fn run(args: &BaselineArgs) -> anyhow::Result<()> {
    if let Some(folder) = &args.save {
        check_new(folder)?;
    }
    let mut measured = Measured::open(args.run.as_deref(), args.device)?;
    let data = measured.dataset()?;
    let vocab_size = measured.tokenizer.vocab_size();

    let models = train(&data, args.order)?;
    let units = Units::of(&data)?;
    let mut rows = units.rows(&models, &data.val)?;
    let mut progress = WorkProgress::new("evaluating");
    let sliding = Sliding::of(measured.model.as_ref(), measured.model.block_size());
    let gpt = sliding_loss(measured.model.as_mut(), &data.val, sliding, &mut progress.callback())?;
    drop(progress);
    let parameters = ModelFolder::new(&measured.path).read_config()?.n_params();
    rows.push(units.row("GPT", Some(parameters as u64), gpt.evaluation.loss));
    rows.extend(gpt.evaluation.floor.map(|floor| units.row("floor", None, floor)));

    if let Some(folder) = &args.save {
        let is_kneser_ney = |smoothing: &Smoothing| matches!(smoothing, Smoothing::KneserNey { .. });
        let wanted = args.smoothing == SmoothingArg::KneserNey;
        let saved =
            models.iter().rfind(|model| model.order() == args.order && is_kneser_ney(model.smoothing()) == wanted);
        if let Some(model) = saved {
            std::fs::create_dir_all(folder).map_err(FileError::io("create", folder))?;
            save_with_tokenizer(folder, model, &measured.tokenizer)?;
            notice!("{} written to {}", model.name(), folder.display());
        }
    }
    let run = measured.path.display().to_string();
    if args.json {
        return print_json(&Baselines {
            run,
            vocab_size,
            train_tokens: data.train.len(),
            tokens: gpt.evaluation.tokens,
            models: rows,
        });
    }
    Ok(print_stdout(&table(&rows))?)
}

/// Refuses a folder that something is in, before anything is computed.
fn check_new(folder: &Path) -> anyhow::Result<()> {
    let is_free = !folder.exists() || std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none());
    anyhow::ensure!(is_free, "{} is not an empty folder: give another --save", folder.display());
    Ok(())
}

/// The rows for people.
fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<18} {:>11} {:>12} {:>10} {:>9} {:>9}\n",
        "model", "parameters", "nats/token", "perplexity", "bits/byte", "bits/char"
    );
    for Row { name, parameters, loss, perplexity, bits_per_byte, bits_per_char, .. } in rows {
        let parameters = parameters.map_or(String::new(), |n| n.to_string());
        text += &format!(
            "{name:<18} {parameters:>11} {loss:>12.4} {perplexity:>10.3} {bits_per_byte:>9.4} {bits_per_char:>9.4}\n"
        );
    }
    text
}
