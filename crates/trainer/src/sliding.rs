//! The loss of a text in sliding windows: every token is predicted once, from the tokens before it in one window.

use tinygpt_model::{LanguageModel, Windows};

use crate::{Result, TrainError, data::Split, evaluate::Evaluation};

/// How many windows are computed at a time. No loss depends on it.
const ROWS: usize = 16;

/// How windows slide over a text: one of `context` tokens every `stride` tokens. The first counts all of its predictions, each
/// later one the last `stride` of them, so that a prediction sees at least `context - stride` tokens but for the first ones of
/// the text. A smaller stride takes `context / stride` times as long and gives predictions more to go by; `stride = context`
/// is what training reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sliding {
    /// The tokens of a window, at most the model's `block_size`.
    pub context: usize,
    /// How far a window lies behind the one before, from 1 to `context`.
    pub stride: usize,
}

/// A window, and which of its predictions count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlidingWindow {
    /// Where it starts in the text.
    pub start: usize,
    /// Its length: how many tokens are read, each of which has its prediction.
    pub cols: usize,
    /// The first prediction that counts.
    pub from: usize,
}

impl Sliding {
    /// Windows of `context` tokens that do not overlap, as training reports; of a model that depends on fewer tokens than a window
    /// has, those that overlap by as little as lets every prediction see all that it depends on.
    pub fn of(model: &dyn LanguageModel, context: usize) -> Self {
        let reach = model.reach().max(1);
        let is_short = reach < model.block_size() && reach <= context;
        Self { context, stride: if is_short { context + 1 - reach } else { context } }
    }

    /// Refuses what counts a token twice or never, or does not fit a model.
    ///
    /// # Errors
    /// [`TrainError::Sliding`].
    pub fn check(self, block_size: usize) -> Result<()> {
        let Self { context, stride } = self;
        if !(1..=block_size).contains(&context) || !(1..=context).contains(&stride) {
            return Err(TrainError::Sliding { context, stride, block_size });
        }
        Ok(())
    }

    /// At most `n` of the windows over a text of `len` tokens, at least one, spread evenly over it.
    pub(crate) fn spread_windows(self, len: usize, n: usize) -> Vec<SlidingWindow> {
        spread(&self.windows(len).collect::<Vec<_>>(), n)
    }

    /// The windows over a text of `len` tokens, of which the first is given and `len - 1` are predicted, each once.
    pub fn windows(self, len: usize) -> impl Iterator<Item = SlidingWindow> {
        let Self { context, stride } = self;
        let (last, mut start, mut end) = (len.saturating_sub(1), 0, 0);
        std::iter::from_fn(move || {
            if end >= last {
                return None;
            }
            let counted = end;
            end = last.min(start + context);
            let window = SlidingWindow { start, cols: end - start, from: counted - start };
            start += stride;
            Some(window)
        })
    }
}

/// Windows that are computed together: neighbours of one shape, no more than keep memory small.
pub(crate) fn batches(windows: &[SlidingWindow]) -> impl Iterator<Item = &[SlidingWindow]> {
    windows.chunk_by(|a, b| (a.cols, a.from) == (b.cols, b.from)).flat_map(|group| group.chunks(ROWS))
}

/// At most `n` windows, but at least one, spread evenly over all: the same ones every time.
fn spread(windows: &[SlidingWindow], n: usize) -> Vec<SlidingWindow> {
    let n = n.clamp(1, windows.len().max(1)).min(windows.len());
    (0..n).map(|i| windows[i * windows.len() / n]).collect()
}

/// A loss in sliding windows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SlidingLoss {
    /// The mean cross-entropy, its floor and the number of predictions.
    pub evaluation: Evaluation,
    /// The standard error of the loss, from its spread over windows: how far another text of the same kind and length may be
    /// off. None of a single window.
    pub stderr: Option<f64>,
}

/// The loss of a whole split. `on_progress(predicted, all)` is told how many tokens are predicted, and may end the work by an
/// error.
///
/// # Errors
/// When the split has no token to predict, the windows do not fit the model, or the model or `on_progress` fails.
pub fn sliding_loss(
    model: &mut dyn LanguageModel,
    split: &Split,
    sliding: Sliding,
    on_progress: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<SlidingLoss> {
    split.check("evaluated", 2)?;
    sliding.check(model.block_size())?;
    let windows: Vec<SlidingWindow> = sliding.windows(split.len()).collect();
    loss_in(model, split, &windows, split.surprisal(1..split.len()), on_progress)
}

/// [`sliding_loss`] in at most `n` of the windows, but at least one, spread evenly over the split.
///
/// # Errors
/// As [`sliding_loss`].
pub fn spread_loss(
    model: &mut dyn LanguageModel,
    split: &Split,
    sliding: Sliding,
    n: usize,
    on_progress: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<SlidingLoss> {
    split.check("evaluated", 2)?;
    sliding.check(model.block_size())?;
    let chosen = sliding.spread_windows(split.len(), n);
    let predicted = |window: &SlidingWindow| window.start + window.from + 1..window.start + window.cols + 1;
    let surprisal = chosen.iter().map(|window| split.surprisal(predicted(window))).sum();
    loss_in(model, split, &chosen, surprisal, on_progress)
}

/// The loss in these windows; `surprisal` is the sum of what their predictions must cost, where it is known.
fn loss_in(
    model: &mut dyn LanguageModel,
    split: &Split,
    windows: &[SlidingWindow],
    surprisal: Option<f64>,
    on_progress: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<SlidingLoss> {
    let tokens: usize = windows.iter().map(|window| window.cols - window.from).sum();
    // The sum of the losses of each window, and how many they are.
    let mut sums: Vec<(f64, usize)> = Vec::new();
    let mut done = 0;
    for group in batches(windows) {
        let SlidingWindow { cols, from, .. } = group[0];
        let batch = split.batch(cols, group.iter().map(|window| window.start))?;
        let losses = model.losses(Windows { ids: &batch.ids, cols, from }, &batch.targets)?;
        let sum = |losses: &[f32]| (losses.iter().map(|&loss| f64::from(loss)).sum(), losses.len());
        sums.extend(losses.chunks(cols - from).map(sum));
        done += losses.len();
        on_progress(done, tokens)?;
    }
    let loss = sums.iter().map(|(sum, _)| sum).sum::<f64>() / tokens as f64;
    let floor = surprisal.map(|sum| sum / tokens as f64);
    Ok(SlidingLoss { evaluation: Evaluation { loss, floor, tokens: tokens as u64 }, stderr: stderr(&sums, loss) })
}

/// The standard error of a ratio of sums over windows (Cochran, 1977, "Sampling Techniques", 6.4); of windows of equal length
/// it is the standard deviation of their means over the root of their number.
fn stderr(sums: &[(f64, usize)], loss: f64) -> Option<f64> {
    let n = sums.len() as f64;
    let tokens: usize = sums.iter().map(|(_, tokens)| tokens).sum();
    let squares: f64 = sums.iter().map(|&(sum, tokens)| (sum - loss * tokens as f64).powi(2)).sum();
    (sums.len() > 1).then(|| (squares * n / (n - 1.0)).sqrt() / tokens as f64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tinygpt_model::language_model::VisitLogits;

    use super::*;

    /// Knows the next token of a text that counts up, or nothing, by how many tokens it sees.
    struct Counting {
        vocab_size: usize,
        block_size: usize,
        /// How many tokens of context it needs to know.
        needs: usize,
    }

    impl LanguageModel for Counting {
        fn vocab_size(&self) -> usize {
            self.vocab_size
        }

        fn block_size(&self) -> usize {
            self.block_size
        }

        fn logits(&mut self, windows: Windows<'_>, visit: VisitLogits<'_>) -> tinygpt_model::Result<()> {
            windows.check(self.block_size, self.vocab_size)?;
            for (place, &id) in windows.ids.iter().enumerate().filter(|(place, _)| place % windows.cols >= windows.from)
            {
                let mut logits = vec![0.0; self.vocab_size];
                if place % windows.cols + 1 >= self.needs {
                    logits.fill(f32::NEG_INFINITY);
                    logits[(id as usize + 1) % self.vocab_size] = 3.0;
                }
                visit(place, &logits);
            }
            Ok(())
        }
    }

    fn counting_up(n: usize, vocab_size: usize) -> Split {
        Split::whole((0..n).map(|i| (i % vocab_size) as u32).collect::<Vec<_>>().into(), None)
    }

    fn loss_of(needs: usize, len: usize, context: usize, stride: usize) -> SlidingLoss {
        let mut model = Counting { vocab_size: 7, block_size: 16, needs };
        sliding_loss(&mut model, &counting_up(len, 7), Sliding { context, stride }, &mut |_, _| Ok(())).unwrap()
    }

    proptest! {
        #[test]
        fn every_token_but_the_first_is_predicted_once(len in 0..100usize, context in 1..20usize, stride in 1..20usize) {
            let stride = stride.min(context);
            let mut predicted = Vec::new();
            for SlidingWindow { start, cols, from } in (Sliding { context, stride }).windows(len) {
                prop_assert!(from < cols && cols <= context);
                prop_assert!(start == 0 || from + stride >= context.min(from + stride), "windows slide by the stride");
                prop_assert!(start == 0 || from == context - stride, "a later window has its context");
                predicted.extend((from..cols).map(|at| start + at + 1));
            }
            prop_assert_eq!(predicted, (1..len).collect::<Vec<_>>());
        }

        #[test]
        fn a_prediction_sees_what_its_stride_leaves(len in 2..60usize, context in 1..16usize, stride in 1..16usize, needs in 1..16usize) {
            let stride = stride.min(context);
            // By hand: the prediction of token i sees the tokens since the start of the only window that counts it.
            let seen = |i: usize| if i <= context { i } else { context - stride + (i - context - 1) % stride + 1 };
            let unknown = (1..len).filter(|&i| seen(i) < needs).count();
            let expected = unknown as f64 * 7f64.ln() / (len - 1) as f64;
            prop_assert!((loss_of(needs, len, context, stride).evaluation.loss - expected).abs() < 1e-6);
        }
    }

    #[test]
    fn a_model_that_knows_has_perplexity_1_and_a_uniform_one_the_size_of_its_vocabulary() {
        assert_eq!(loss_of(1, 50, 8, 8).evaluation.loss, 0.0);
        assert!((loss_of(100, 50, 8, 3).evaluation.loss.exp() - 7.0).abs() < 1e-5);
        assert_eq!(loss_of(1, 50, 8, 3).evaluation.tokens, 49);
    }

    #[test]
    fn some_windows_are_spread_evenly_and_their_loss_is_that_of_their_tokens() {
        // Of ten windows of five tokens, those from 0, 15 and 30 on. A model that knows from the third token on is at a loss for
        // two of five.
        let windows: Vec<SlidingWindow> = Sliding { context: 5, stride: 5 }.windows(51).collect();
        let starts = |n| spread(&windows, n).iter().map(|window| window.start).collect::<Vec<_>>();
        assert_eq!((starts(3), starts(0), starts(99).len()), (vec![0, 15, 30], vec![0], 10));
        let surprisals = (0..51).map(f64::from).collect();
        let split = Split::whole((0..51).map(|i| i % 7).collect::<Vec<u32>>().into(), Some(surprisals));
        let mut model = Counting { vocab_size: 7, block_size: 16, needs: 3 };
        let sliding = Sliding { context: 5, stride: 5 };
        let some = spread_loss(&mut model, &split, sliding, 3, &mut |_, _| Ok(())).unwrap().evaluation;
        assert_eq!((some.tokens, some.floor), (15, Some(18.0)), "the means of 1..=5, 16..=20 and 31..=35");
        assert!((some.loss - 0.4 * 7f64.ln()).abs() < 1e-6);
    }

    #[test]
    fn the_standard_error_is_that_of_the_means_of_windows() {
        let sums = [(2.0, 2), (4.0, 2), (9.0, 2)];
        // Means 1, 2, 4.5: their standard deviation is sqrt(3.25), over the root of 3.
        assert!((stderr(&sums, 2.5).unwrap() - (3.25f64 / 3.0).sqrt()).abs() < 1e-12);
        assert_eq!(stderr(&sums[..1], 1.0), None);
        assert_eq!(loss_of(1, 50, 8, 8).stderr, Some(0.0));
        assert_eq!(loss_of(1, 5, 8, 8).stderr, None);
    }

    #[test]
    fn windows_that_count_a_token_never_or_do_not_fit_are_refused() {
        let mut model = Counting { vocab_size: 7, block_size: 16, needs: 1 };
        let split = counting_up(50, 7);
        let mut refused = |context, stride| {
            sliding_loss(&mut model, &split, Sliding { context, stride }, &mut |_, _| Ok(())).unwrap_err().to_string()
        };
        assert!(refused(17, 1).contains("from 1 to 16"), "{}", refused(17, 1));
        assert!(refused(0, 1).contains("from 1 to 16"));
        assert!(refused(8, 9).contains("from 1 to the context"), "{}", refused(8, 9));
        assert!(refused(8, 0).contains("from 1 to the context"));
    }
}
