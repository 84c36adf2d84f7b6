//! From a time to a configuration: what each size would reach in it.

use std::fmt;

use serde::Serialize;
use tinygpt_model::{GptConfig, network};

use super::ScalingLaw;
use crate::{
    Result,
    config::{self, RunConfig},
};

/// What the runs that the laws were fitted to have in common.
const RECIPE: &str = include_str!("../../data/scaling.toml");
/// The channels of an attention head.
const HEAD: usize = 32;
/// Fewer updates than these are no training, and far from what was measured.
pub const LEAST_UPDATES: u64 = 100;
/// The share of the time that is left to updates and evaluations; the rest is for reading the text, files and samples.
const TRAINING: f64 = 0.96;
/// Evaluations on the way, beside the one before the first update and that of the whole split at the end.
const EVALUATIONS: u64 = 4;
/// The batches of an evaluation on the way, as in other recipes.
const EVAL_BATCHES: usize = 20;
/// An evaluation computes a third of what an update does: the forward pass, and neither of two gradients.
const FORWARD: f64 = 1.0 / 3.0;
/// The most tokens that are held out: more say little more of a loss, and take long to evaluate.
const MOST_HELD_OUT: f64 = 2e5;

/// A size of the family that was measured, in heads of 32 channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Channels of the residual stream, a multiple of 32.
    pub n_embd: usize,
    /// Blocks.
    pub n_layer: usize,
}

/// The sizes to choose from, from small to large. All that was measured has four blocks.
pub const SIZES: &[Size] = &[
    Size { n_embd: 32, n_layer: 4 },
    Size { n_embd: 64, n_layer: 4 },
    Size { n_embd: 96, n_layer: 4 },
    Size { n_embd: 128, n_layer: 4 },
    Size { n_embd: 160, n_layer: 4 },
    Size { n_embd: 192, n_layer: 4 },
    Size { n_embd: 256, n_layer: 4 },
    Size { n_embd: 320, n_layer: 5 },
    Size { n_embd: 384, n_layer: 6 },
    Size { n_embd: 512, n_layer: 8 },
];

/// As in `64x4`: channels and blocks.
impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}x{}", self.n_embd, self.n_layer))
    }
}

impl Size {
    /// The configuration of this size in the recipe that was measured; updates and corpus are the recipe's.
    ///
    /// # Errors
    /// Never for sizes with a multiple of 32 channels.
    pub fn config(self) -> Result<RunConfig> {
        let mut config = config::load(RECIPE, &[], false)?;
        let GptConfig { n_embd, n_layer, n_head, .. } = &mut config.model;
        (*n_embd, *n_layer, *n_head) = (self.n_embd, self.n_layer, self.n_embd / HEAD);
        Ok(config.resolved()?)
    }
}

/// How long an update of a size took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Timing {
    /// The floating-point operations of its products.
    pub flops: f64,
    /// The seconds it took.
    pub seconds: f64,
}

/// The speed of a machine: the rate of its updates by how large they are.
#[derive(Debug, Clone, PartialEq)]
pub struct Speed {
    /// In the order of their FLOPs.
    timings: Vec<Timing>,
}

impl Speed {
    /// The speed that some timings, of positive times and FLOPs, tell; `None` if there are none.
    pub fn new(mut timings: Vec<Timing>) -> Option<Self> {
        timings.retain(|timing| timing.flops > 0.0 && timing.seconds > 0.0 && timing.seconds.is_finite());
        timings.sort_by(|a, b| a.flops.total_cmp(&b.flops));
        (!timings.is_empty()).then_some(Self { timings })
    }

    /// The seconds of an update of `flops`. Between two timings the rate is a power of the FLOPs, and beyond them it is that
    /// of the nearest: small updates have a lower rate than large ones.
    pub fn seconds(&self, flops: f64) -> f64 {
        let rate = |timing: &Timing| timing.flops / timing.seconds;
        let behind = self.timings.partition_point(|timing| timing.flops < flops);
        let before = behind.checked_sub(1).and_then(|at| self.timings.get(at));
        match (before, self.timings.get(behind)) {
            (Some(a), Some(b)) => {
                let share = (flops / a.flops).ln() / (b.flops / a.flops).ln();
                flops / (rate(a).ln() * (1.0 - share) + rate(b).ln() * share).exp()
            }
            (Some(only), None) | (None, Some(only)) => flops / rate(only),
            (None, None) => f64::INFINITY,
        }
    }
}

/// What there is to train with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Budget {
    /// The time for all of a run.
    pub seconds: f64,
    /// The tokens of the whole text, training and validation.
    pub tokens: usize,
    /// The different ones among them.
    pub vocab_size: usize,
}

impl Budget {
    /// The share of the text that is held out: a tenth, or less of a long one.
    pub fn val_fraction(&self) -> f64 {
        (MOST_HELD_OUT / self.tokens as f64).min(0.1)
    }
}

/// What a size reaches in a time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Candidate {
    /// Its name, as in `64x4`.
    pub size: String,
    /// All of its parameters.
    pub parameters: usize,
    /// Updates that fit the time.
    pub updates: u64,
    /// Tokens that these see.
    pub tokens: u64,
    /// How often they see the whole training split.
    pub epochs: f64,
    /// How long the run takes, evaluations included.
    pub minutes: f64,
    /// The expected validation loss in nats a token.
    pub loss: f64,
    /// Whether the law was measured around there; else the loss is extrapolated.
    pub measured: bool,
    /// Whether the text ends the run before the time does: to read it yet again would make the loss worse, or was not
    /// measured.
    pub text_is_short: bool,
    /// The configuration; its corpus and name are the recipe's.
    #[serde(skip)]
    pub config: RunConfig,
}

/// What each size reaches within a budget, from small to large, without those that are too slow for it.
///
/// # Errors
/// Never for the sizes of [`SIZES`].
pub fn candidates(law: &ScalingLaw, speed: &Speed, budget: &Budget) -> Result<Vec<Candidate>> {
    let mut found = Vec::new();
    for &size in SIZES {
        found.extend(candidate(size, law, speed, budget)?);
    }
    Ok(found)
}

/// The candidate with the least expected loss.
pub fn best(candidates: &[Candidate]) -> Option<&Candidate> {
    candidates.iter().min_by(|a, b| a.loss.total_cmp(&b.loss))
}

fn candidate(size: Size, law: &ScalingLaw, speed: &Speed, budget: &Budget) -> Result<Option<Candidate>> {
    let mut config = size.config()?;
    config.train.eval_batches = EVAL_BATCHES;
    let per_update = config.tokens_per_step();
    let gpt = config.gpt(budget.vocab_size);
    let seconds = speed.seconds(network(&gpt).flops_of_update(config.train.batch_size, gpt.block_size));

    let held_out = budget.tokens as f64 * budget.val_fraction();
    let unique = budget.tokens as f64 - held_out;
    // In updates: every evaluation on the way, and the last, of the whole split.
    let whole = held_out / per_update as f64;
    let evaluations = FORWARD * ((EVALUATIONS + 1) as f64 * whole.min(EVAL_BATCHES as f64) + whole);
    let of_time = TRAINING * budget.seconds / seconds - evaluations;
    let n = (gpt.n_params() - budget.vocab_size * gpt.n_embd) as f64;
    let most = of_time.max(0.0) * per_update as f64;
    // A plan reads a text no more often than was measured.
    let of_text = law.best_tokens(n, unique, most.min(unique * law.measured.epochs.max(1.0)));
    let updates = (of_text / per_update as f64) as u64;
    if updates < LEAST_UPDATES {
        return Ok(None);
    }

    config.data.val_fraction = budget.val_fraction();
    config.train.max_steps = updates;
    config.train.eval_every = updates.div_ceil(EVALUATIONS);
    let tokens = updates * per_update as u64;
    Ok(Some(Candidate {
        size: size.to_string(),
        parameters: gpt.n_params(),
        updates,
        tokens,
        epochs: tokens as f64 / unique,
        minutes: (updates as f64 + evaluations) * seconds / TRAINING / 60.0,
        loss: law.loss(n, tokens as f64, unique),
        measured: law.interpolates(n, tokens as f64, unique),
        text_is_short: of_text < most,
        config: config.resolved()?,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine whose large updates have three times the rate of small ones, as two cores have.
    fn speed() -> Speed {
        let at = |flops: f64, gflops: f64| Timing { flops, seconds: flops / (1e9 * gflops) };
        Speed::new(vec![at(5e9, 150.0), at(4e8, 80.0), at(2e10, 240.0)]).unwrap()
    }

    fn budget(minutes: f64) -> Budget {
        Budget { seconds: 60.0 * minutes, tokens: 1_115_394, vocab_size: 65 }
    }

    fn plan(minutes: f64) -> Vec<Candidate> {
        candidates(&ScalingLaw::SHAKESPEARE, &speed(), &budget(minutes)).unwrap()
    }

    #[test]
    fn every_proposal_fits_the_time_and_uses_it() {
        for minutes in [0.25, 1.0, 5.0] {
            let found = plan(minutes);
            assert!(found.len() > 3, "{minutes}: {found:?}");
            for candidate in found {
                assert!(candidate.minutes <= minutes, "{candidate:?}");
                assert!(candidate.text_is_short || candidate.minutes > 0.9 * minutes, "{candidate:?}");
                assert_eq!(candidate.tokens, candidate.updates * 1024);
            }
        }
    }

    #[test]
    fn the_best_is_inside_and_grows_with_the_time() {
        let mut last = 0;
        for minutes in [0.25, 1.0, 4.0] {
            let found = plan(minutes);
            let best = best(&found).unwrap();
            assert!(best.parameters >= last && best.size != "512x8", "{best:?}");
            assert!(found.iter().all(|candidate| candidate.loss >= best.loss));
            last = best.parameters;
        }
        assert!(last > 200_000, "{last}");
    }

    #[test]
    fn more_time_never_makes_the_loss_worse() {
        let loss = |minutes| best(&plan(minutes)).unwrap().loss;
        let losses = [0.1, 0.2, 0.5, 1.0, 2.0, 10.0, 100.0].map(loss);
        assert!(losses.windows(2).all(|pair| pair[1] <= pair[0]), "{losses:?}");
    }

    #[test]
    fn a_short_text_is_not_read_more_often_than_was_measured() {
        let short = Budget { tokens: 50_000, ..budget(60.0) };
        let law = ScalingLaw::SHAKESPEARE;
        for candidate in candidates(&law, &speed(), &short).unwrap() {
            assert!(candidate.text_is_short && candidate.epochs <= law.measured.epochs, "{candidate:?}");
            assert!(candidate.minutes < 30.0, "{candidate:?}");
        }
    }

    #[test]
    fn no_size_fits_a_moment() {
        assert_eq!(plan(1e-4), []);
        assert_eq!(best(&[]), None);
    }

    #[test]
    fn the_configuration_of_a_candidate_is_the_recipe_with_its_size_and_its_updates() {
        let candidate = plan(1.0).into_iter().find(|candidate| candidate.size == "64x4").unwrap();
        let RunConfig { model, train, .. } = &candidate.config;
        assert_eq!((model.n_embd, model.n_layer, model.n_head, model.hidden()), (64, 4, 2, 192));
        assert_eq!((train.max_steps, train.decay_end()), (candidate.updates, candidate.updates));
        assert_eq!(candidate.config.gpt(65).n_params(), candidate.parameters);
        let text = candidate.config.to_toml().unwrap();
        assert_eq!(config::load_resolved(&text).unwrap(), candidate.config);
    }

    #[test]
    fn a_long_text_holds_out_no_more_than_takes_moments_to_evaluate() {
        assert_eq!(budget(1.0).val_fraction(), 0.1);
        let long = Budget { tokens: 100_000_000, ..budget(1.0) };
        assert_eq!(long.val_fraction() * 1e8, MOST_HELD_OUT);
    }

    #[test]
    fn between_two_timings_lies_a_time_between_them_and_beyond_the_rate_stays() {
        let speed = speed();
        assert!((speed.seconds(5e9) - 5e9 / 150e9).abs() < 1e-9);
        let between = 1e9 / speed.seconds(1e9);
        assert!((80e9..150e9).contains(&between), "{between}");
        assert!((speed.seconds(4e10) - 4e10 / 240e9).abs() < 1e-9);
        assert!((speed.seconds(4e7) - 4e7 / 80e9).abs() < 1e-9);
        assert_eq!(Speed::new(vec![Timing { flops: 1.0, seconds: 0.0 }]), None);
    }
}
