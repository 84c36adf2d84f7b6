//! The rules against llama.cpp and transformers: rows and answers that `scripts/check_samplers.py --write` recorded.

use candle_core::{Device, Tensor};
use serde::Deserialize;
use tinygpt_sampler::{
    DeviceRow, DeviceSampler, Distribution, Row, Sampler, SamplingParams,
    oracle::{self, DrawNumbers},
};

/// The largest difference of a probability that the judges' f32 explains.
const NEAR: f64 = 1e-5;

#[derive(Deserialize)]
struct Recorded {
    cases: Vec<Case>,
    mirostat: Mirostat,
}

#[derive(Deserialize)]
struct Case {
    judge: String,
    rules: SamplingParams,
    logits: Vec<Logit>,
    history: Vec<u32>,
    /// Ascending.
    kept: Vec<u32>,
    probs: Vec<f64>,
}

/// A number, or "-inf", which JSON has no number for.
#[derive(Deserialize)]
#[serde(untagged)]
enum Logit {
    Number(f32),
    Banned(String),
}

/// Draws of llama.cpp from one row.
#[derive(Deserialize)]
struct Mirostat {
    logits: Vec<f32>,
    tau: f64,
    eta: f64,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
struct Step {
    mu: f64,
    kept: Vec<u32>,
    drawn: u32,
}

fn recorded() -> Recorded {
    serde_json::from_str(include_str!("data/samplers.json")).expect("the form that the script writes")
}

/// By token.
fn sorted(tokens: &[u32], probs: &[f64]) -> (Vec<u32>, Vec<f64>) {
    let mut both: Vec<(u32, f64)> = tokens.iter().copied().zip(probs.iter().copied()).collect();
    both.sort_by_key(|&(token, _)| token);
    both.into_iter().unzip()
}

#[test]
fn every_path_keeps_what_llama_cpp_and_transformers_keep() {
    let cases = recorded().cases;
    assert!(["llama", "transformers"].iter().all(|judge| cases.iter().filter(|case| case.judge == *judge).count() > 5));
    for (n, case) in cases.iter().enumerate() {
        let number = |logit: &Logit| match logit {
            Logit::Number(number) => *number,
            Logit::Banned(text) => text.parse().unwrap(),
        };
        let logits: Vec<f32> = case.logits.iter().map(number).collect();
        let row = Row { logits: &logits, history: &case.history, sequence: 1, position: 2 };
        let place = DeviceRow { history: row.history, sequence: row.sequence, position: row.position };
        let tensor = Tensor::from_slice(&logits, (1, logits.len()), &Device::Cpu).unwrap();
        let mut device = DeviceSampler::new(case.rules.clone()).unwrap();
        let by_definition =
            oracle::sample_with(&logits, &case.rules, &case.history, DrawNumbers::at(&case.rules, 1, 2)).unwrap();
        let of = |found: Distribution| sorted(found.kept(), found.probs());
        for (path, (kept, probs)) in [
            ("definition", sorted(&by_definition.kept, &by_definition.probs)),
            ("host", of(Sampler::new(case.rules.clone()).unwrap().distribution(&row).unwrap())),
            ("device", of(device.distributions(&tensor, &[place]).unwrap().remove(0).unwrap())),
        ] {
            assert_eq!(kept, case.kept, "case {n}, {path}, {}: {:?}", case.judge, case.rules);
            let worst = probs.iter().zip(&case.probs).map(|(p, q)| (p - q).abs()).fold(0.0, f64::max);
            assert!(worst < NEAR, "case {n}, {path}, {}: {worst:e} {:?}", case.judge, case.rules);
        }
    }
}

#[test]
fn mirostat_keeps_what_llama_cpp_keeps_as_mu_moves() {
    let Mirostat { logits, tau, eta, steps } = recorded().mirostat;
    let params = SamplingParams { mirostat_tau: tau, mirostat_eta: eta, ..SamplingParams::default() };
    let mut mu = 2.0 * tau;
    for step in &steps {
        assert!((mu - step.mu).abs() < 1e-4, "{mu} instead of {}", step.mu);
        let outcome = oracle::sample_with(&logits, &params, &[], DrawNumbers { u: 0.5, xtc_coin: 0.0, mu }).unwrap();
        let (kept, probs) = sorted(&outcome.kept, &outcome.probs);
        assert_eq!(kept, step.kept);
        let surprise = -probs[kept.binary_search(&step.drawn).unwrap()].log2();
        mu -= eta * (surprise - tau);
    }
    let sizes: Vec<usize> = steps.iter().map(|step| step.kept.len()).collect();
    assert!(sizes.iter().max() > sizes.iter().min(), "{sizes:?}");
}

#[test]
fn a_text_carries_the_state_of_mirostat_from_draw_to_draw() {
    let Mirostat { logits, tau, eta, .. } = recorded().mirostat;
    let params = SamplingParams { mirostat_tau: tau, mirostat_eta: eta, seed: 5, ..SamplingParams::default() };
    let mut sampler = Sampler::new(params.clone()).unwrap();
    let mut state = sampler.begin_text();
    let mut mu = 2.0 * tau;
    let mut unlike_the_first = 0;
    for position in 0..40 {
        let row = Row { logits: &logits, history: &[], sequence: 3, position };
        let numbers = DrawNumbers { mu, ..DrawNumbers::at(&params, 3, position) };
        let outcome = oracle::sample_with(&logits, &params, &[], numbers).unwrap();
        let token = sampler.sample_next(&row, &mut state).unwrap();
        assert_eq!(token, outcome.token);
        let place = outcome.kept.iter().position(|&kept| kept == token).unwrap();
        mu -= eta * (-outcome.probs[place].log2() - tau);
        unlike_the_first += usize::from(sampler.distribution(&row).unwrap().kept().len() != outcome.kept.len());
    }
    assert!(unlike_the_first > 5, "{unlike_the_first}");
}
