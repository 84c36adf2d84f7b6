//! From a run folder to what its page shows.

use candle_core::{DType, Device};
use tinygpt_model::{Gpt, ModelFolder, Tokenizer, ngram::MAX_ORDER, params};
use tinygpt_trainer::{
    Dataset, RunDir,
    calibration::calibrate,
    compare::Source,
    config::RunConfig,
    evaluate::Report,
    metrics,
    run::Best,
    samples::{self, Sample},
    sliding::{Sliding, SlidingLoss, sliding_loss, spread_loss},
    train::METRICS_FILE,
};

use super::{
    figures::{Attention, CalibrationPart, Figures, Part, Summary},
    generalization::{Generalization, Loss, Losses, rise},
};
use crate::{
    args::ReportArgs,
    commands::baseline::{self, Row, Units},
    measured::Measured,
    progress_bar::WorkProgress,
    token_text::{text_of, visible},
};

/// Counting n-grams of more tokens than this takes minutes.
const BASELINE_TOKENS: usize = 50_000_000;
/// The most probabilities that the calibration is of: seconds of work.
const CALIBRATION_PROBABILITIES: usize = 1 << 28;
/// The most tokens of the text whose attention is shown.
const ATTENTION_TOKENS: usize = 32;

/// The loss of the model on both splits.
struct Evaluated {
    validation: SlidingLoss,
    train: SlidingLoss,
    report: Report,
}

pub fn gather(run: &RunDir, args: &ReportArgs) -> anyhow::Result<Figures> {
    let path = run.path();
    let config = run.read_config(&[])?;
    let metrics = metrics::read(&path.join(METRICS_FILE))?;
    let samples = samples::read(path)?;
    let mut measured = Measured::open(Some(path), args.device)?;
    // A page of a run whose text is gone is still worth something.
    let known: Part<(Dataset, Evaluated)> = match measured.dataset() {
        Ok(data) => {
            let evaluated = evaluate(&mut measured, &data)?;
            Ok((data, evaluated))
        }
        Err(error) => Err(format!("the run's text is not there: {error}")),
    };
    let known = known.as_ref().map_err(String::clone);

    let parameters = ModelFolder::new(path).read_config()?.n_params();
    let baselines = known.clone().and_then(|(data, evaluated)| {
        if args.no_baselines {
            return Err("n-gram models were not asked for: --no-baselines".into());
        }
        let tokens = data.train.len();
        if tokens > BASELINE_TOKENS {
            let run = path.display();
            return Err(format!("n-gram models of {tokens} tokens take minutes: `tinygpt baseline {run}` counts them"));
        }
        Ok((data, evaluated))
    });
    let baselines = match baselines {
        Ok((data, evaluated)) => Ok(baseline_rows(data, evaluated, parameters)?),
        Err(reason) => Err(reason),
    };
    let losses = match &known {
        Ok((_, Evaluated { validation, train, .. })) => {
            let loss = |of: &SlidingLoss| Loss { loss: of.evaluation.loss, stderr: of.stderr };
            Some(Losses {
                train: loss(train),
                validation: loss(validation),
                train_in_passing: false,
                floor: validation.evaluation.floor,
                best_ngram: baselines.as_ref().ok().and_then(|rows| best_ngram(rows)),
                rise: rise(&metrics),
            })
        }
        Err(_) => Losses::of_metrics(&metrics),
    };
    let generalization = losses
        .map(Generalization::new)
        .ok_or_else(|| "the run has no lines of training and validation losses in metrics.jsonl".to_owned());
    let calibration = match &known {
        Ok((data, _)) => Ok(calibration(&mut measured, data)?),
        Err(reason) => Err(reason.clone()),
    };
    let (data, evaluated) = known.ok().map(|(data, evaluated)| (data, evaluated)).unzip();
    Ok(Figures {
        run: path.display().to_string(),
        summary: summary(run, &config, &metrics, parameters, &measured.tokenizer, evaluated)?,
        attention: attention(&measured, data, samples.last())?,
        config,
        metrics,
        samples,
        generalization,
        baselines,
        calibration,
    })
}

/// The validation split, and as many windows of the training split.
fn evaluate(measured: &mut Measured, data: &Dataset) -> anyhow::Result<Evaluated> {
    let block_size = measured.model.block_size();
    let sliding = Sliding::of(measured.model.as_ref(), block_size);
    let windows = (data.val.len() - 1).div_ceil(block_size);
    let mut progress = WorkProgress::new("evaluating the validation split");
    let validation = sliding_loss(measured.model.as_mut(), &data.val, sliding, &mut progress.callback())?;
    let mut progress = WorkProgress::new("evaluating the training split");
    let train = spread_loss(measured.model.as_mut(), &data.train, sliding, windows, &mut progress.callback())?;
    let report = Report::new(validation.evaluation, &data.val, &measured.tokenizer)?;
    Ok(Evaluated { validation, train, report })
}

fn baseline_rows(data: &Dataset, evaluated: &Evaluated, parameters: usize) -> anyhow::Result<Vec<Row>> {
    let models = baseline::train(data, MAX_ORDER)?;
    let units = Units::of(data)?;
    let mut rows = units.rows(&models, &data.val)?;
    rows.push(units.row("GPT", Some(parameters as u64), evaluated.validation.evaluation.loss));
    rows.extend(evaluated.validation.evaluation.floor.map(|floor| units.row("floor", None, floor)));
    Ok(rows)
}

fn best_ngram(rows: &[Row]) -> Option<(String, f64)> {
    let ngrams = rows.iter().filter(|row| row.order.is_some());
    ngrams.min_by(|a, b| a.loss.total_cmp(&b.loss)).map(|row| (row.name.clone(), row.loss))
}

fn calibration(measured: &mut Measured, data: &Dataset) -> anyhow::Result<CalibrationPart> {
    let (vocab_size, block_size) = (measured.model.vocab_size(), measured.model.block_size());
    let windows = (CALIBRATION_PROBABILITIES / (vocab_size * block_size).max(1)).max(1);
    let mut progress = WorkProgress::new("calibrating");
    let mut source = Source::Model(measured.model.as_mut());
    let on_progress = &mut progress.callback();
    let curve = calibrate(&mut source, &data.val, vocab_size, block_size, Some(windows), on_progress)?;
    let share = curve.contexts as f64 / (data.val.len() - 1) as f64;
    Ok(CalibrationPart { curve, share })
}

fn summary(
    run: &RunDir,
    config: &RunConfig,
    metrics: &[metrics::Metrics],
    parameters: usize,
    tokenizer: &Tokenizer,
    evaluated: Option<&Evaluated>,
) -> anyhow::Result<Summary> {
    let evaluations = metrics.iter().filter_map(|row| Some(Best { step: row.step, val_loss: row.val_loss? }));
    let of_metrics = evaluations.min_by(|a, b| a.val_loss.total_cmp(&b.val_loss));
    let last = metrics.last();
    // Without `last/`, which a run that is passed on may lack, the metrics say how far it came.
    let (steps, seconds, best) = if run.last().exists() {
        let state = run.last().read_state()?;
        (state.step, state.seconds, state.best)
    } else {
        (last.map_or(0, |row| row.step), last.map_or(0.0, |row| row.seconds), of_metrics)
    };
    Ok(Summary {
        parameters,
        vocab_size: tokenizer.vocab_size(),
        steps,
        tokens_seen: steps * config.tokens_per_step() as u64,
        seconds,
        best,
        stderr: evaluated.and_then(|evaluated| evaluated.validation.stderr),
        validation: evaluated.map(|evaluated| evaluated.report),
    })
}

/// The attention in the beginning of the validation text or, without it, of the last sample.
fn attention(measured: &Measured, data: Option<&Dataset>, sample: Option<&Sample>) -> anyhow::Result<Part<Attention>> {
    let most = ATTENTION_TOKENS.min(measured.model.block_size());
    let mut ids = match (data, sample) {
        (Some(data), _) => data.val.batch(most.min(data.val.len() - 1), std::iter::once(0))?.ids,
        (None, Some(sample)) => measured.tokenizer.encode(&format!("{}{}", sample.prompt, sample.text))?,
        (None, None) => Vec::new(),
    };
    ids.truncate(most);
    if ids.is_empty() {
        return Ok(Err("there is neither the run's text nor a sample whose attention could be shown".into()));
    }
    // So few tokens need no GPU.
    let (config, values) = ModelFolder::new(&measured.path).read()?;
    let gpt = Gpt::new(&config, &params::to_tensors(&config, &values, DType::F32, &Device::Cpu)?)?;
    let maps = gpt.attention_maps(&ids)?;
    let maps = maps.iter().map(|map| Ok(map.to_dtype(DType::F64)?.to_vec3()?)).collect::<anyhow::Result<_>>()?;
    let tokens = ids.iter().map(|&id| Ok(visible(&text_of(&measured.tokenizer, id)?)));
    Ok(Ok(Attention { tokens: tokens.collect::<anyhow::Result<_>>()?, maps }))
}
