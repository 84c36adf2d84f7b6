//! The gap between training and validation, and what follows from it about bias and variance.

use serde::Serialize;
use tinygpt_trainer::metrics::{Metrics, last_training_loss};

/// A loss, in nats a token.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Loss {
    pub loss: f64,
    /// Its standard error over windows, where it is known.
    pub stderr: Option<f64>,
}

/// The losses from which the rest follows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Losses {
    /// On text that the model was trained on.
    pub train: Loss,
    /// On text that it was not trained on.
    pub validation: Loss,
    /// Whether the training loss is that of the batches of training, with dropout and from weights that still moved, since the
    /// text is not there to measure it on.
    pub train_in_passing: bool,
    /// The entropy of the validation text, where it is known.
    pub floor: Option<f64>,
    /// The best n-gram model on the validation text, and its loss.
    pub best_ngram: Option<(String, f64)>,
    /// By how much the validation loss rose in training from its lowest to its last value.
    pub rise: f64,
}

/// What limits a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// The loss is close to the entropy of the text.
    Floor,
    /// The model is too simple, or not trained for long enough.
    Bias,
    /// The model follows its sample of text too closely.
    Variance,
    /// Neither can be told from the figures.
    Unknown,
}

/// The gap, what limits the model, and why, in sentences.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Generalization {
    #[serde(flatten)]
    pub losses: Losses,
    /// `validation - train`.
    pub generalization_gap: f64,
    pub limit: Limit,
    pub sentences: Vec<String>,
}

/// A loss within this share of the floor is close to it.
const NEAR_FLOOR: f64 = 0.02;
/// Without a floor, a gap of this share of the training loss is one that matters.
const WIDE: f64 = 0.05;
/// A rise of the validation loss by this share is one that is told.
const RISE: f64 = 0.01;

impl Losses {
    /// What the lines of the metrics alone say: the mean of the last tenth of the training losses up to the best evaluation, and
    /// that evaluation.
    pub fn of_metrics(rows: &[Metrics]) -> Option<Self> {
        let evaluations = || rows.iter().filter_map(|row| Some((row, row.val_loss?)));
        let (best, validation) = evaluations().min_by(|a, b| a.1.total_cmp(&b.1))?;
        let train = last_training_loss(rows.iter().filter(|row| row.step <= best.step))?;
        Some(Self {
            train: Loss { loss: Some(train).filter(|loss| loss.is_finite())?, stderr: None },
            validation: Loss { loss: validation, stderr: None },
            train_in_passing: true,
            floor: best.floor,
            best_ngram: None,
            rise: rise(rows),
        })
    }

    /// What twice the standard error of the gap is; 0 where it is not known.
    fn noise(&self) -> f64 {
        match (self.train.stderr, self.validation.stderr) {
            (Some(train), Some(validation)) => 2.0 * train.hypot(validation),
            _ => 0.0,
        }
    }
}

/// By how much the validation loss rose from its lowest to its last value.
pub fn rise(rows: &[Metrics]) -> f64 {
    let losses = || rows.iter().filter_map(|row| row.val_loss);
    losses().next_back().map_or(0.0, |last| last - losses().fold(last, f64::min))
}

impl Generalization {
    pub fn new(losses: Losses) -> Self {
        let (train, validation) = (losses.train.loss, losses.validation.loss);
        let gap = validation - train;
        let is_gap = gap > losses.noise();
        let mut sentences = vec![about_gap(&losses, gap)];
        let behind = losses.best_ngram.as_ref().filter(|(_, loss)| validation >= *loss);
        let limit = match losses.floor {
            Some(floor) if validation - floor <= NEAR_FLOOR * floor => Limit::Floor,
            Some(floor) if is_gap && gap > train - floor => Limit::Variance,
            Some(_) => Limit::Bias,
            None if is_gap && gap > WIDE * train => Limit::Variance,
            None if behind.is_some() => Limit::Bias,
            None => Limit::Unknown,
        };
        sentences.push(about_limit(&losses, gap, limit));
        if let Some((name, loss)) = &losses.best_ngram {
            sentences.push(match behind {
                Some(_) => format!(
                    "{name}, which knows nothing but counts, does as well or better on the validation text ({loss:.4}): the \
                     network has not yet learned what reaches further than a few tokens."
                ),
                None => format!(
                    "It is {:.4} nats better than {name} ({loss:.4}), so it uses more than the last few tokens.",
                    loss - validation
                ),
            });
        }
        if losses.rise > RISE * validation {
            sentences.push(format!(
                "In training the validation loss rose by {:.4} nats after its lowest value: from there on the model overfitted. \
                 The run keeps the weights of the lowest value.",
                losses.rise
            ));
        }
        Self { losses, generalization_gap: gap, limit, sentences }
    }
}

fn about_gap(losses: &Losses, gap: f64) -> String {
    let Losses { train: Loss { loss: train, .. }, validation: Loss { loss: validation, .. }, .. } = losses;
    let noise = losses.noise();
    let chance = if noise > 0.0 { format!(", which chance alone moves by about {noise:.4}") } else { String::new() };
    let gap_is = format!(
        "The generalization gap, validation loss less training loss, is {validation:.4} - {train:.4} = {gap:.4} nats a token{chance}."
    );
    let meaning = if losses.train_in_passing {
        "The training loss is that of single batches while the weights still moved, with dropout where it is on: the gap \
         is a rough one."
    } else if gap > noise {
        "It is what the model knows about its own training text that does not hold elsewhere. Trained on another sample it \
         would know other such things: that is variance."
    } else if gap < -noise {
        "It is negative: the validation text is the easier one, and so the gap says nothing about variance."
    } else {
        "It cannot be told from none: what the model learned holds for text that it has not seen, and there is no variance \
         to speak of."
    };
    format!("{gap_is} {meaning}")
}

fn about_limit(losses: &Losses, gap: f64, limit: Limit) -> String {
    let Losses { train: Loss { loss: train, .. }, validation: Loss { loss: validation, .. }, floor, .. } = losses;
    // Of the distance from the floor, what the training loss has is bias, and what comes to it on other text is variance.
    let parts = floor.map(|floor| {
        let (above, bias) = (validation - floor, train - floor);
        let parts = if gap > losses.noise() {
            format!(
                "{bias:.4} of it the model has on its training text as well, which is bias, and {gap:.4} is the gap"
            )
        } else {
            format!("on its training text the model is as far from it ({bias:.4}), which is bias")
        };
        format!("The validation loss is {above:.4} above the entropy of the text ({floor:.4}): {parts}. ")
    });
    let parts = parts.unwrap_or_default();
    let advice = match limit {
        Limit::Floor => "That is close to the floor: neither bias nor variance is left to speak of.",
        Limit::Variance => {
            "Variance is what limits this model: more text, more dropout or weight decay, fewer parameters or an earlier \
             end would help, a larger model or longer training would not."
        }
        Limit::Bias => {
            "Bias is what limits this model: more parameters, longer training or a better learning rate would help, more \
             text or regularization would not."
        }
        Limit::Unknown => {
            "The gap is small, so variance is not what limits this model. How much of the loss is bias and how much is the \
             entropy of the text itself cannot be told: the entropy of this text is not known."
        }
    };
    format!("{parts}{advice}")
}

#[cfg(test)]
mod tests {
    use tinygpt_trainer::metrics::RowKind;

    use super::*;

    fn losses(train: f64, validation: f64, floor: Option<f64>) -> Losses {
        let loss = |loss| Loss { loss, stderr: Some(0.01) };
        let (train, validation) = (loss(train), loss(validation));
        Losses { train, validation, train_in_passing: false, floor, best_ngram: None, rise: 0.0 }
    }

    fn limit(losses: Losses) -> Limit {
        Generalization::new(losses).limit
    }

    #[test]
    fn with_a_floor_the_larger_part_above_it_limits_the_model() {
        assert_eq!(limit(losses(1.5, 1.6, Some(1.0))), Limit::Bias);
        assert_eq!(limit(losses(1.1, 1.6, Some(1.0))), Limit::Variance);
        assert_eq!(limit(losses(0.5, 1.6, Some(1.0))), Limit::Variance);
        assert_eq!(limit(losses(1.01, 1.015, Some(1.0))), Limit::Floor);
        let sentences = Generalization::new(losses(1.1, 1.6, Some(1.0))).sentences.join(" ");
        for part in ["1.6000 - 1.1000 = 0.5000 nats", "is 0.6000 above", "0.1000 of it", "Variance is what limits"] {
            assert!(sentences.contains(part), "{part}: {sentences}");
        }
    }

    #[test]
    fn a_gap_within_chance_is_no_variance() {
        // Twice the root of two standard errors of 0.01 is 0.028.
        let within = Generalization::new(losses(1.005, 1.03, Some(1.0)));
        assert_eq!(within.limit, Limit::Bias);
        assert!(within.sentences[0].contains("cannot be told from none"), "{:?}", within.sentences);
        assert!(Generalization::new(losses(1.3, 1.2, None)).sentences[0].contains("the easier one"));
    }

    #[test]
    fn without_a_floor_a_wide_gap_is_variance_and_a_model_behind_counts_has_bias() {
        assert_eq!(limit(losses(1.0, 1.2, None)), Limit::Variance);
        assert_eq!(limit(losses(1.0, 1.04, None)), Limit::Unknown);
        let beside = |loss| Losses { best_ngram: Some(("5-gram".into(), loss)), ..losses(1.0, 1.04, None) };
        assert_eq!(limit(beside(1.03)), Limit::Bias);
        assert_eq!(limit(beside(1.5)), Limit::Unknown);
        assert!(Generalization::new(beside(1.5)).sentences[2].contains("0.4600 nats better than 5-gram (1.5000)"));
        assert!(Generalization::new(beside(1.0)).sentences[2].contains("does as well or better"));
    }

    #[test]
    fn a_rise_after_the_best_evaluation_is_named() {
        let risen = |rise| Generalization::new(Losses { rise, ..losses(1.0, 1.2, None) }).sentences.join(" ");
        assert!(risen(0.1).contains("rose by 0.1000 nats") && !risen(0.001).contains("rose"));
    }

    #[test]
    fn without_its_text_a_run_is_judged_by_its_metrics() {
        let train = |step, loss| Metrics { loss: Some(loss), ..Metrics::new(RowKind::Train, step) };
        let eval = |step, loss| Metrics { val_loss: Some(loss), floor: Some(0.5), ..Metrics::new(RowKind::Eval, step) };
        let rows = [eval(0, 3.0), train(1, 3.0), train(2, 2.0), eval(2, 2.5), train(3, 1.0), eval(3, 2.75)];
        let losses = Losses::of_metrics(&rows).unwrap();
        assert_eq!((losses.train.loss, losses.validation.loss, losses.floor, losses.rise), (2.0, 2.5, Some(0.5), 0.25));
        assert!(Generalization::new(losses).sentences[0].contains("a rough one"));
        assert_eq!(Losses::of_metrics(&rows[..1]), None);
        assert_eq!(Losses::of_metrics(&rows[1..2]), None);
    }
}
