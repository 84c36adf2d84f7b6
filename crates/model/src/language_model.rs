//! The interface between measuring and the models that are measured: the distribution of the next token at every position of
//! a text.

use std::sync::OnceLock;

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use crate::{
    Gpt, GptConfig, ModelError, Result,
    cpu::{CpuGpt, CpuPrecision},
    ops::{LOGIT_BYTES, Tokens},
    params,
};

/// Windows of a text, of equal length. A prediction sees the tokens before it in its window, and no others.
#[derive(Debug, Clone, Copy)]
pub struct Windows<'a> {
    /// The tokens, window after window: `(rows * cols)`.
    pub ids: &'a [u32],
    /// The length of a window, at most [`LanguageModel::block_size`].
    pub cols: usize,
    /// The first position of each window whose prediction is asked for; those before it are its context.
    pub from: usize,
}

impl Windows<'_> {
    /// The number of windows.
    pub fn rows(&self) -> usize {
        self.ids.len() / self.cols.max(1)
    }

    /// Refuses windows that a model of `block_size` positions and `vocab_size` tokens cannot take.
    ///
    /// # Errors
    /// When there is no window, or no whole number of them, a window is longer than `block_size`, or a token is outside the
    /// vocabulary.
    pub fn check(&self, block_size: usize, vocab_size: usize) -> Result<()> {
        let Self { ids, cols, from } = *self;
        if cols == 0 || from >= cols {
            return Err(ModelError::NoPositions);
        }
        if cols > block_size {
            return Err(ModelError::ContextFull { positions: cols, block_size });
        }
        if ids.is_empty() || !ids.len().is_multiple_of(cols) {
            return Err(ModelError::BatchShape { ids: ids.len(), targets: ids.len(), cols });
        }
        match ids.iter().find(|&&id| id as usize >= vocab_size) {
            Some(&id) => Err(ModelError::TokenOutOfRange { id, vocab_size }),
            None => Ok(()),
        }
    }
}

/// What is done with each row of logits: `visit(place, logits (V))`, where `place` is the index of the position in
/// [`Windows::ids`]. Rows come in any order and from several threads.
pub type VisitLogits<'a> = &'a (dyn Fn(usize, &[f32]) + Sync);

/// A model that gives the distribution of the next token at every position of a window.
///
/// A row of logits depends on the tokens of its window up to its position alone: not on other windows.
pub trait LanguageModel {
    /// The number of tokens `V`.
    fn vocab_size(&self) -> usize;

    /// The most tokens that a prediction may see.
    fn block_size(&self) -> usize;

    /// The most tokens that a prediction depends on: those before them in its window change nothing.
    fn reach(&self) -> usize {
        self.block_size()
    }

    /// Computes the logits of the next token at every position from [`Windows::from`] on, in nats up to a constant a row.
    ///
    /// # Errors
    /// As [`Windows::check`], and when the device fails.
    fn logits(&mut self, windows: Windows<'_>, visit: VisitLogits<'_>) -> Result<()>;

    /// Computes the cross-entropy, in nats, of the token that follows each position from [`Windows::from`] on; `targets`
    /// has one for each of [`Windows::ids`]. Row after row, `cols - from` numbers each.
    ///
    /// # Errors
    /// As [`LanguageModel::logits`]; when a target is outside the vocabulary, or there are not as many as ids.
    fn losses(&mut self, windows: Windows<'_>, targets: &[u32]) -> Result<Vec<f32>> {
        check_targets(windows, targets, self.vocab_size())?;
        each_row(self, windows, |place, logits| cross_entropy_of(logits, targets[place]) as f32)
    }
}

/// `compute(place, logits)` of every position from [`Windows::from`] on, in the order of positions.
///
/// # Errors
/// As [`LanguageModel::logits`].
pub fn each_row<R: Send + Sync>(
    model: &mut (impl LanguageModel + ?Sized),
    windows: Windows<'_>,
    compute: impl Fn(usize, &[f32]) -> R + Sync,
) -> Result<Vec<R>> {
    let results: Vec<OnceLock<R>> = windows.ids.iter().map(|_| OnceLock::new()).collect();
    model.logits(windows, &|place, logits| {
        // A model visits a place once; were it to come back, the first result would stay.
        results[place].get_or_init(|| compute(place, logits));
    })?;
    Ok(results.into_iter().filter_map(OnceLock::into_inner).collect())
}

/// What a row of logits says of the next token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NextToken {
    /// The logarithm of the sum of the exponentials of the logits; NaN where one of them is.
    pub log_sum_exp: f64,
    /// The entropy of the softmax of the logits, in nats.
    pub entropy: f64,
}

impl NextToken {
    /// The distribution of a row of logits `(V)`.
    pub fn of(logits: &[f32]) -> Self {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        // With e = exp(x - max) and S their sum, ln sum exp x = max + ln S and -sum p ln p = ln S - sum e (x - max) / S.
        let (mut sum, mut weighted) = (0.0, 0.0);
        for &x in logits.iter().filter(|&&x| x != f32::NEG_INFINITY) {
            let below = f64::from(x) - f64::from(max);
            let e = below.exp();
            sum += e;
            weighted += e * below;
        }
        // Rounding may leave the entropy of a near-certain token a little below 0.
        Self { log_sum_exp: f64::from(max) + sum.ln(), entropy: (sum.ln() - weighted / sum).max(0.0) }
    }

    /// The log-probability of a token with this logit, in nats.
    pub fn logprob(&self, logit: f32) -> f64 {
        f64::from(logit) - self.log_sum_exp
    }
}

/// The `n` most probable tokens of a row of logits `(V)` with their logits, that of the largest first and of equal ones the
/// lowest token; tokens without a finite logit are left out.
pub fn most_probable(logits: &[f32], n: usize) -> Vec<(u32, f32)> {
    let mut tokens: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).filter(|(_, x)| x.is_finite()).collect();
    let by_logit = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if n < tokens.len() {
        tokens.select_nth_unstable_by(n, by_logit);
        tokens.truncate(n);
    }
    tokens.sort_unstable_by(by_logit);
    tokens
}

/// The logarithm of the sum of the exponentials of logits, in f64.
pub fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if max == f32::NEG_INFINITY {
        return f64::NEG_INFINITY;
    }
    f64::from(max) + logits.iter().map(|&x| (f64::from(x) - f64::from(max)).exp()).sum::<f64>().ln()
}

/// `-ln softmax(logits)[target]`, in nats, in f64.
pub fn cross_entropy_of(logits: &[f32], target: u32) -> f64 {
    log_sum_exp(logits) - f64::from(logits[target as usize])
}

/// Refuses targets that are not one for each id, or outside the vocabulary.
pub(crate) fn check_targets(windows: Windows<'_>, targets: &[u32], vocab_size: usize) -> Result<()> {
    if targets.len() != windows.ids.len() {
        return Err(ModelError::BatchShape { ids: windows.ids.len(), targets: targets.len(), cols: windows.cols });
    }
    match targets.iter().find(|&&id| id as usize >= vocab_size) {
        Some(&id) => Err(ModelError::TokenOutOfRange { id, vocab_size }),
        None => Ok(()),
    }
}

/// The fastest language model of a device for a GPT with these parameter values (in parameter order), in f32: [`CpuGpt`] on
/// the CPU, [`Gpt`] elsewhere.
///
/// # Errors
/// When the values do not match the configuration or the device is out of memory.
pub fn open_language_model(config: &GptConfig, params: &[Vec<f32>], device: &Device) -> Result<Box<dyn LanguageModel>> {
    if device.is_cpu() {
        return Ok(Box::new(CpuGpt::new(config, CpuPrecision::F32, params)?));
    }
    let open = || Gpt::new(config, &params::to_tensors(config, params, DType::F32, device)?);
    Ok(Box::new(open().map_err(|error| error.on(device))?))
}

impl LanguageModel for CpuGpt {
    fn vocab_size(&self) -> usize {
        self.config().vocab_size
    }

    fn block_size(&self) -> usize {
        self.config().block_size
    }

    fn logits(&mut self, windows: Windows<'_>, visit: VisitLogits<'_>) -> Result<()> {
        windows.check(self.config().block_size, self.config().vocab_size)?;
        self.window_logits(windows, visit);
        Ok(())
    }

    fn losses(&mut self, windows: Windows<'_>, targets: &[u32]) -> Result<Vec<f32>> {
        windows.check(self.config().block_size, self.config().vocab_size)?;
        check_targets(windows, targets, self.config().vocab_size)?;
        Ok(self.window_losses(windows, targets))
    }
}

impl LanguageModel for Gpt {
    fn vocab_size(&self) -> usize {
        self.config().vocab_size
    }

    fn block_size(&self) -> usize {
        self.config().block_size
    }

    fn logits(&mut self, windows: Windows<'_>, visit: VisitLogits<'_>) -> Result<()> {
        let GptConfig { block_size, vocab_size: v, .. } = *self.config();
        windows.check(block_size, v)?;
        let Windows { ids, cols, from } = windows;
        // As many windows at a time as have LOGIT_BYTES of logits.
        let rows = (LOGIT_BYTES / (cols * v * DType::F32.size_in_bytes())).max(1);
        for (chunk, ids) in ids.chunks(rows * cols).enumerate() {
            let ids = Tensor::from_slice(ids, (ids.len() / cols, cols), self.device())?;
            let logits = self.forward(&ids, None)?.narrow(1, from, cols - from)?; // (rows, cols - from, V)
            let logits: Vec<f32> = logits.flatten_all()?.to_dtype(DType::F32)?.to_vec1()?;
            logits.par_chunks(v).enumerate().for_each(|(i, logits)| {
                let (row, col) = (i / (cols - from), from + i % (cols - from));
                visit((chunk * rows + row) * cols + col, logits);
            });
        }
        Ok(())
    }

    fn losses(&mut self, windows: Windows<'_>, targets: &[u32]) -> Result<Vec<f32>> {
        let GptConfig { block_size, vocab_size, .. } = *self.config();
        windows.check(block_size, vocab_size)?;
        check_targets(windows, targets, vocab_size)?;
        let Windows { ids, cols, from } = windows;
        let rows = windows.rows();
        let tokens = Tokens::new(ids, rows, cols, vocab_size, self.device())?;
        let targets = Tensor::from_slice(targets, rows * cols, self.device())?;
        let losses = Gpt::losses(self, &tokens, &targets, None)?.reshape((rows, cols))?; // (B * T) to (B, T)
        Ok(losses.narrow(1, from, cols - from)?.flatten_all()?.to_dtype(DType::F32)?.to_vec1()?)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tinygpt_sampler::entropy;

    use super::*;
    use crate::{Mlp, init_params};

    fn config(logit_cap: f64) -> GptConfig {
        let shape =
            GptConfig { vocab_size: 37, block_size: 80, n_layer: 2, n_head: 2, n_embd: 24, ..Default::default() };
        GptConfig { logit_cap, mlp: Mlp::Gelu, dropout: 0.0, ..shape }
    }

    fn ids(n: usize) -> Vec<u32> {
        (0..n as u32).map(|i| (i * 31 + i * i * 7) % 37).collect()
    }

    #[test]
    fn the_models_of_the_cpu_and_of_tensors_give_the_same_logits_at_each_place_that_is_asked_for() {
        for (rows, cols, from, cap) in [(1, 1, 0, 0.0), (3, 7, 2, 0.0), (2, 80, 65, 0.0), (5, 70, 0, 2.0)] {
            let config = config(cap);
            let params = init_params(&config, 5);
            let ids = ids(rows * cols);
            let windows = Windows { ids: &ids, cols, from };
            let mut cpu = CpuGpt::new(&config, CpuPrecision::F32, &params).unwrap();
            let tensors = params::to_tensors(&config, &params, DType::F32, &Device::Cpu).unwrap();
            let mut gpt = Gpt::new(&config, &tensors).unwrap();
            let row = |place: usize, logits: &[f32]| (place, logits.to_vec());
            let (a, b) = (each_row(&mut cpu, windows, row).unwrap(), each_row(&mut gpt, windows, row).unwrap());
            let places: Vec<usize> = (0..rows).flat_map(|r| (from..cols).map(move |c| r * cols + c)).collect();
            assert_eq!(a.iter().map(|row| row.0).collect::<Vec<_>>(), places);
            assert_eq!(b.iter().map(|row| row.0).collect::<Vec<_>>(), places);
            let logits = |rows: Vec<(usize, Vec<f32>)>| rows.into_iter().flat_map(|row| row.1).collect::<Vec<_>>();
            assert!(logits(a).iter().zip(&logits(b)).all(|(a, b)| (a - b).abs() < 1e-5));
        }
    }

    #[test]
    fn losses_are_those_of_the_logits_and_of_training() {
        let config = config(0.0);
        let params = init_params(&config, 6);
        let (ids, targets) = (ids(2 * 70), ids(2 * 70 + 1)[1..].to_vec());
        let windows = Windows { ids: &ids, cols: 70, from: 66 };
        let mut cpu = CpuGpt::new(&config, CpuPrecision::F32, &params).unwrap();
        let losses = LanguageModel::losses(&mut cpu, windows, &targets).unwrap();
        let by_logits =
            each_row(&mut cpu, windows, |place, logits| cross_entropy_of(logits, targets[place]) as f32).unwrap();
        assert_eq!((losses.len(), by_logits.len()), (8, 8));
        assert!(losses.iter().zip(&by_logits).all(|(a, b)| (a - b).abs() < 1e-5));
        let all = LanguageModel::losses(&mut cpu, Windows { from: 0, ..windows }, &targets).unwrap();
        assert_eq!(
            [&all[66..70], &all[136..]].concat(),
            losses,
            "what comes before does not depend on what is asked for"
        );
        let batch = crate::cpu::BatchRef { ids: &ids, targets: &targets, cols: 70 };
        let sum: f64 = all.iter().map(|&loss| f64::from(loss)).sum();
        assert_eq!(sum, cpu.losses(batch).unwrap());
        let tensors = params::to_tensors(&config, &params, DType::F32, &Device::Cpu).unwrap();
        let others = LanguageModel::losses(&mut Gpt::new(&config, &tensors).unwrap(), windows, &targets).unwrap();
        assert!(losses.iter().zip(&others).all(|(a, b)| (a - b).abs() < 1e-5));
    }

    #[test]
    fn windows_that_no_model_can_take_are_refused() {
        let config = config(0.0);
        let mut gpt = CpuGpt::new(&config, CpuPrecision::F32, &init_params(&config, 1)).unwrap();
        let ids = ids(162);
        let refused = |ids, cols, from| gpt.logits(Windows { ids, cols, from }, &|_, _| {}).unwrap_err().to_string();
        let mut refused = refused;
        assert!(refused(&ids[..0], 3, 0).contains("not made of windows"));
        assert!(refused(&ids[..4], 3, 0).contains("not made of windows"));
        assert!(refused(&ids[..3], 3, 3).contains("no positions"));
        assert!(refused(&ids[..3], 0, 0).contains("no positions"));
        assert!(refused(&ids, 81, 0).contains("81 positions do not fit"));
        assert!(refused(&[37], 1, 0).contains("token 37 is outside"));
    }

    proptest! {
        #[test]
        fn the_entropy_and_log_probabilities_are_those_of_the_softmax(logits in prop::collection::vec(-30f32..30.0, 1..50)) {
            let weights: Vec<f64> = logits.iter().map(|&x| f64::from(x).exp()).collect();
            let total: f64 = weights.iter().sum();
            let p: Vec<f64> = weights.iter().map(|w| w / total).collect();
            let next = NextToken::of(&logits);
            prop_assert!((next.entropy - entropy(&p)).abs() < 1e-9);
            prop_assert!((next.logprob(logits[0]) - p[0].ln()).abs() < 1e-9);
            prop_assert!((log_sum_exp(&logits) - total.ln()).abs() < 1e-12 * total.ln().abs().max(1.0));
            prop_assert_eq!(next.log_sum_exp, log_sum_exp(&logits));
        }
    }

    #[test]
    fn a_banned_token_adds_nothing_large_logits_do_not_overflow_and_a_nan_is_seen() {
        let next = NextToken::of(&[1000.0, f32::NEG_INFINITY, 1000.0]);
        assert!((next.entropy - std::f64::consts::LN_2).abs() < 1e-12);
        assert!((next.logprob(1000.0) + std::f64::consts::LN_2).abs() < 1e-12);
        assert_eq!(NextToken::of(&[3.0]).entropy, 0.0);
        for logits in [[1.0, f32::NAN], [f32::NAN, 1.0], [1.0, f32::INFINITY], [f32::NEG_INFINITY; 2]] {
            assert!(NextToken::of(&logits).logprob(logits[0]).is_nan(), "{logits:?}");
        }
    }

    #[test]
    fn log_sum_exp_neither_overflows_nor_loses_banned_tokens() {
        assert!((log_sum_exp(&[1000.0, 1000.0]) - (1000.0 + 2f64.ln())).abs() < 1e-12);
        assert_eq!(log_sum_exp(&[f32::NEG_INFINITY, 3.0]), 3.0);
        assert_eq!(log_sum_exp(&[f32::NEG_INFINITY; 2]), f64::NEG_INFINITY);
    }
}
