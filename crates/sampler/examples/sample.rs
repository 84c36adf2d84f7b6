//! Which tokens a row of logits may give, and a few draws: `cargo run --release -p tinygpt-sampler --example sample`.
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use tinygpt_sampler::{Row, Sampler, SamplingError, SamplingParams, entropy};

fn main() -> Result<(), SamplingError> {
    let logits = [1.0, 3.0, 2.5, f32::NEG_INFINITY, 2.0, -1.0];
    let rules = SamplingParams { temperature: 0.8, top_k: 4, top_p: 0.95, seed: 42, ..SamplingParams::default() };
    let mut sampler = Sampler::new(rules)?;

    let row = Row { logits: &logits, history: &[], sequence: 0, position: 0 };
    let distribution = sampler.distribution(&row)?;
    for (token, probability) in distribution.kept().iter().zip(distribution.probs()) {
        println!("token {token}: {probability:.4}");
    }
    println!("entropy {:.4} nats", entropy(distribution.probs()));

    // A draw depends on the logits, the rules, the sequence and the position: on nothing that was drawn before.
    for sequence in 0..3 {
        let draw = |position| sampler.sample_row(&logits, &[], sequence, position);
        println!("sequence {sequence}: {:?}", (0..10).map(draw).collect::<Result<Vec<_>, _>>()?);
    }
    Ok(())
}
