//! Gumbel-max, Gumbel-top-k and the differentiable Gumbel-softmax.

use candle_core::{DType, Device, Tensor, Var};
use tinygpt_sampler::{NoiseSource, gumbel_max, gumbel_softmax, gumbel_top_k};

fn source(sequence: u64, position: u64) -> NoiseSource {
    NoiseSource { seed: 5, sequence, position }
}

/// The deviation of a count of draws from its expectation, in standard deviations.
fn deviation(count: usize, prob: f64, draws: usize) -> f64 {
    let expected = prob * draws as f64;
    (count as f64 - expected) / (expected * (1.0 - prob)).sqrt()
}

#[test]
fn gumbel_max_has_the_law_of_the_softmax_at_its_temperature() {
    const DRAWS: usize = 200_000;
    let logits = [0.0f32, 1.0, -1.0, f32::NEG_INFINITY, 2.0];
    for temperature in [0.5, 1.0, 2.0] {
        let weights = logits.map(|x| (f64::from(x) / temperature).exp());
        let total: f64 = weights.iter().sum();
        let mut counts = [0usize; 5];
        for position in 0..DRAWS as u64 {
            counts[gumbel_max(&logits, temperature, source(1, position)).unwrap() as usize] += 1;
        }
        assert_eq!(counts[3], 0);
        for (count, weight) in counts.into_iter().zip(weights).filter(|(_, weight)| *weight > 0.0) {
            assert!(deviation(count, weight / total, DRAWS).abs() < 5.0);
        }
    }
}

#[test]
fn the_top_two_have_the_law_of_successive_draws_without_replacement() {
    const DRAWS: usize = 200_000;
    let weights = [1.0f64, 2.0, 3.0];
    let logits = weights.map(|w| w.ln() as f32);
    let mut counts = [[0usize; 3]; 3];
    for sequence in 0..DRAWS as u64 {
        let pair = gumbel_top_k(&logits, 2, 1.0, source(sequence, 0)).unwrap();
        counts[pair[0] as usize][pair[1] as usize] += 1;
    }
    for first in 0..3 {
        for second in (0..3).filter(|&second| second != first) {
            let prob = weights[first] / 6.0 * weights[second] / (6.0 - weights[first]);
            assert!(deviation(counts[first][second], prob, DRAWS).abs() < 5.2);
        }
    }
}

#[test]
fn temperature_zero_is_greedy_and_more_draws_leave_the_first() {
    let logits = [1.0, 3.0, 3.0, 2.0];
    assert_eq!(gumbel_top_k(&logits, 4, 0.0, source(0, 0)).unwrap(), [1, 2, 3, 0]);
    let three = gumbel_top_k(&logits, 3, 1.0, source(0, 0)).unwrap();
    assert_eq!(gumbel_top_k(&logits, 2, 1.0, source(0, 0)).unwrap(), three[..2]);
}

#[test]
fn errors_name_what_is_wrong() {
    let message =
        |logits: &[f32], k, temperature| gumbel_top_k(logits, k, temperature, source(0, 0)).unwrap_err().to_string();
    assert!(message(&[0.0], 0, 1.0).starts_with("k is 0"));
    assert!(message(&[0.0, f32::NEG_INFINITY], 2, 1.0).starts_with("k is 2"));
    assert!(message(&[0.0], 1, -1.0).starts_with("temperature is -1"));
    assert!(message(&[f32::NAN], 1, 1.0).contains("NaN"));
    let row = Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap();
    assert!(gumbel_softmax(&row, 0.0, false, source(0, 0)).unwrap_err().to_string().starts_with("tau is 0"));
}

#[test]
fn a_soft_draw_is_a_distribution_and_a_hard_one_is_its_one_hot() {
    let logits = Tensor::new(&[[0f32, 1.0, 2.0], [3.0, 0.0, 0.0]], &Device::Cpu).unwrap();
    for sequence in 0..20 {
        let soft = gumbel_softmax(&logits, 0.5, false, source(sequence, 0)).unwrap().to_vec2::<f32>().unwrap();
        let hard = gumbel_softmax(&logits, 0.5, true, source(sequence, 0)).unwrap().to_vec2::<f32>().unwrap();
        for (soft, hard) in soft.iter().zip(&hard) {
            assert!((soft.iter().sum::<f32>() - 1.0).abs() < 1e-6);
            let largest = (0..3).max_by(|&a, &b| soft[a].total_cmp(&soft[b])).unwrap();
            for (n, &x) in hard.iter().enumerate() {
                assert!((x - if n == largest { 1.0 } else { 0.0 }).abs() < 1e-6);
            }
        }
    }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "of contiguous rows")]
fn a_row_has_its_own_noise_wherever_it_is_in_a_batch() {
    let row = Tensor::new(&[[0f32, 1.0, 2.0]], &Device::Cpu).unwrap();
    let rows = Tensor::cat(&[&row, &row], 0).unwrap();
    let draw = |rows: &Tensor, sequence| {
        gumbel_softmax(rows, 1.0, false, source(sequence, 4)).unwrap().to_vec2::<f32>().unwrap()
    };
    let both = draw(&rows, 8);
    assert_eq!(both[1], draw(&row, 9)[0]);
    assert_ne!(both[0], both[1]);
}

/// Compares the gradient of `sum(c * y)` with the analytic one of the softmax, for soft and for hard draws.
#[test]
fn gradients_reach_the_logits_soft_and_straight_through() {
    let logits = Var::new(&[[0.3f32, -1.0, 0.8, 0.1]], &Device::Cpu).unwrap();
    let c = Tensor::new(&[[1f32, -2.0, 0.5, 3.0]], &Device::Cpu).unwrap();
    let tau = 0.7;
    let y = gumbel_softmax(&logits, tau, false, source(2, 3)).unwrap().to_vec2::<f32>().unwrap();
    let c_values = c.to_vec2::<f32>().unwrap();
    let mean: f32 = y[0].iter().zip(&c_values[0]).map(|(y, c)| y * c).sum();
    for hard in [false, true] {
        let draw = gumbel_softmax(&logits, tau, hard, source(2, 3)).unwrap();
        let loss = (draw * &c).unwrap().sum_all().unwrap();
        let gradients = loss.backward().unwrap();
        let gradient = gradients.get(&logits).expect("a gradient").to_vec2::<f32>().unwrap();
        for n in 0..4 {
            let analytic = y[0][n] * (c_values[0][n] - mean) / tau as f32;
            assert!((gradient[0][n] - analytic).abs() < 1e-5, "hard {hard}: {} {analytic}", gradient[0][n]);
        }
    }
}
