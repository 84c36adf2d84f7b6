//! What each rule does to a row: for tools that show it.

use serde::Serialize;

use super::{DrawNumbers, Kept, Outcome, changed_row, keep};
use crate::{SamplingError, SamplingParams};

/// A rule that drops tokens. The order is that in which they act.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CutRule {
    /// [`SamplingParams::top_n_sigma`].
    TopNSigma,
    /// A temperature of 0, which leaves the largest logit alone.
    Temperature,
    /// [`SamplingParams::top_k`].
    TopK,
    /// [`SamplingParams::mirostat_tau`].
    Mirostat,
    /// [`SamplingParams::typical_p`].
    TypicalP,
    /// [`SamplingParams::top_p`].
    TopP,
    /// [`SamplingParams::min_p`].
    MinP,
    /// [`SamplingParams::xtc_probability`].
    Xtc,
}

/// A token of an [`Explanation`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExplainedToken {
    /// The token.
    pub token: u32,
    /// Its probability at the temperature of the row, after penalties, biases and bans and before any rule drops a token.
    pub tempered: f64,
    /// Its probability after all rules: 0 where one has dropped it.
    pub prob: f64,
    /// The rule that has dropped it; none of a token that is kept.
    pub cut_by: Option<CutRule>,
}

/// A draw from one row, with what the rules have done to each token.
#[derive(Debug, Clone, PartialEq)]
pub struct Explanation {
    /// All tokens with a finite logit after penalties, biases and bans, by falling logit, of equal ones the lowest first.
    pub tokens: Vec<ExplainedToken>,
    /// What the definition draws.
    pub outcome: Outcome,
    /// The interval of the cumulative probability, over the kept tokens by rising id, that the drawn token has: its uniform
    /// number is at least the first and less than the second.
    pub interval: (f64, f64),
}

impl Explanation {
    /// The probability of all kept tokens together, at the temperature of the row and before any rule drops a token.
    #[must_use]
    pub fn kept_mass(&self) -> f64 {
        self.tokens.iter().filter(|token| token.cut_by.is_none()).map(|token| token.tempered).sum()
    }
}

/// [`sample_with`](super::sample_with), and what each rule does to each token.
///
/// # Errors
/// As for [`sample`](super::sample).
pub fn explain(
    logits: &[f32],
    params: &SamplingParams,
    history: &[u32],
    numbers: DrawNumbers,
) -> Result<Explanation, SamplingError> {
    let row = changed_row(logits, params, history)?;
    let mut cut_by = vec![None; row.len()];
    let mut left: Vec<usize> = (0..row.len()).collect();
    let (kept, temperature) = keep(&row, params, numbers, |rule, order| {
        if order.len() < left.len() {
            let mut stays = vec![false; row.len()];
            order.iter().for_each(|&token| stays[token] = true);
            left.iter().filter(|&&token| !stays[token]).for_each(|&token| cut_by[token] = Some(rule));
            left = order.to_vec();
        }
    });
    let mut probs = vec![0.0; row.len()];
    for (&token, prob) in kept.order.iter().zip(kept.probs()) {
        probs[token] = prob;
    }
    let explained = |(&token, tempered): (&usize, f64)| ExplainedToken {
        token: token as u32,
        tempered,
        prob: probs[token],
        cut_by: cut_by[token],
    };
    let whole = tempered(&row, temperature);
    let tokens = whole.order.iter().zip(whole.probs()).map(explained).collect();
    let outcome = kept.draw(numbers.u)?;
    let (below, own) = (&probs[..outcome.token as usize], probs[outcome.token as usize]);
    let from: f64 = below.iter().sum();
    Ok(Explanation { tokens, outcome, interval: (from, from + own) })
}

/// All tokens with a finite logit, weighed at a temperature.
fn tempered(row: &[f32], temperature: f64) -> Kept<'_> {
    let mut whole = Kept::all(row);
    if temperature > 0.0 {
        whole.weigh(temperature);
    } else {
        whole.weights = vec![0.0; whole.order.len()];
        whole.weights[0] = 1.0;
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::sample_with;

    fn rules(change: impl FnOnce(&mut SamplingParams)) -> SamplingParams {
        let mut params = SamplingParams::default();
        change(&mut params);
        params
    }

    /// Of probabilities 1/16, 8/16, 4/16, 2/16 and 1/16.
    const ROW: [f64; 5] = [1.0, 8.0, 4.0, 2.0, 1.0];

    fn explained(params: &SamplingParams, u: f64) -> Explanation {
        let row = ROW.map(|weight| weight.ln() as f32);
        let numbers = DrawNumbers { u, xtc_coin: 1.0, mu: 2.0 * params.mirostat_tau };
        let explanation = explain(&row, params, &[], numbers).unwrap();
        assert_eq!(explanation.outcome, sample_with(&row, params, &[], numbers).unwrap());
        explanation
    }

    fn cuts(params: &SamplingParams) -> Vec<(u32, Option<CutRule>)> {
        explained(params, 0.5).tokens.iter().map(|entry| (entry.token, entry.cut_by)).collect()
    }

    #[test]
    fn each_token_names_the_rule_that_dropped_it() {
        let all = rules(|p| (p.top_k, p.top_p, p.min_p) = (4, 0.9, 0.3));
        let (top_k, top_p, min_p) = (Some(CutRule::TopK), Some(CutRule::TopP), Some(CutRule::MinP));
        // 8 + 4 + 2 of the 15 that top-k leaves reach 0.9; 2 is less than 0.3 of 8.
        assert_eq!(cuts(&all), [(1, None), (2, None), (3, min_p), (0, top_p), (4, top_k)]);
        let greedy = |rule| [(1, None), (2, rule), (3, rule), (0, rule), (4, rule)];
        assert_eq!(cuts(&rules(|p| p.temperature = 0.0)), greedy(Some(CutRule::Temperature)));
        assert_eq!(cuts(&rules(|p| p.top_k = 1)), greedy(top_k));
        let typical = cuts(&rules(|p| p.typical_p = 0.2));
        assert_eq!(typical.iter().filter(|(_, cut)| *cut == Some(CutRule::TypicalP)).count(), 4);
        let sigma = cuts(&rules(|p| p.top_n_sigma = 0.1));
        assert_eq!(sigma[1..].iter().map(|(_, cut)| *cut).collect::<Vec<_>>(), [Some(CutRule::TopNSigma); 4]);
        let mirostat = cuts(&rules(|p| p.mirostat_tau = 0.6));
        assert_eq!(mirostat[1..].iter().map(|(_, cut)| *cut).collect::<Vec<_>>(), [Some(CutRule::Mirostat); 4]);
        let row = ROW.map(|weight| weight.ln() as f32);
        let params = rules(|p| (p.xtc_probability, p.xtc_threshold) = (1.0, 0.2));
        let explanation = explain(&row, &params, &[], DrawNumbers { u: 0.5, xtc_coin: 0.5, mu: 0.0 }).unwrap();
        let cut: Vec<_> = explanation.tokens.iter().map(|entry| entry.cut_by).collect();
        assert_eq!(cut, [Some(CutRule::Xtc), None, None, None, None]);
    }

    #[test]
    fn a_token_has_its_probability_at_the_temperature_and_after_all_rules() {
        let explanation = explained(&rules(|p| (p.temperature, p.top_k) = (0.5, 2)), 0.0);
        // At temperature 0.5 weights are squared.
        let total = 1.0 + 64.0 + 16.0 + 4.0 + 1.0;
        for (entry, weight) in explanation.tokens.iter().zip([64.0, 16.0, 4.0, 1.0, 1.0]) {
            assert!((entry.tempered - weight / total).abs() < 1e-6, "{entry:?}");
        }
        let probs: Vec<f64> = explanation.tokens.iter().map(|entry| entry.prob).collect();
        assert!((probs[0] - 0.8).abs() < 1e-6 && (probs[1] - 0.2).abs() < 1e-6 && probs[2..] == [0.0; 3]);
        assert!((explanation.kept_mass() - 80.0 / total).abs() < 1e-6);
        let greedy = explained(&rules(|p| p.temperature = 0.0), 0.9);
        assert_eq!(greedy.tokens.iter().map(|entry| entry.tempered).collect::<Vec<_>>(), [1.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!((greedy.kept_mass(), greedy.interval), (1.0, (0.0, 1.0)));
    }

    #[test]
    fn a_banned_token_is_not_listed() {
        let params = rules(|p| p.logit_bias = vec![(1, f32::NEG_INFINITY)]);
        let explanation = explained(&params, 0.5);
        assert_eq!(explanation.tokens.iter().map(|entry| entry.token).collect::<Vec<_>>(), [2, 3, 0, 4]);
        assert!((explanation.kept_mass() - 1.0).abs() < 1e-12);
    }

    #[test]
    fn the_interval_of_a_draw_holds_its_number_and_the_intervals_cover_all() {
        for params in [rules(|_| {}), rules(|p| (p.temperature, p.top_k) = (1.5, 3)), rules(|p| p.top_p = 0.8)] {
            let (mut end, mut kept) = (0.0, Vec::new());
            while end < 1.0 - 1e-9 {
                let Explanation { interval: (from, to), outcome, .. } = explained(&params, end + 1e-9);
                assert!((from - end).abs() < 1e-12 && to > from, "{from} {to}, not from {end}");
                assert_eq!(explained(&params, to - 1e-9).outcome.token, outcome.token);
                kept.push(outcome.token);
                end = to;
            }
            let mut expected = explained(&params, 0.5).outcome.kept;
            expected.sort_unstable();
            assert_eq!(kept, expected);
        }
    }
}
