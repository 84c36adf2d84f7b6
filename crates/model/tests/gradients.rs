//! The gradients of the model and of each of its operations against central finite differences in f64, and the
//! operations' values against plain loops.

use crate::common::{
    Random,
    gradients::{Weighed, weighed},
    lively_params, shape,
};
use candle_core::{DType, Device, Tensor};
use tinygpt_model::{
    Dropout, Gpt, GptConfig, Mlp, Precision,
    config::{Norm, Position},
    dropout::MaskSource,
    ops::{self, Activation, Tape, Tokens},
    param_specs,
    params::to_tensors,
};

const CPU: Device = Device::Cpu;

/// Step of the differences: their own error is near h^2, that of rounding near 1e-16 / h.
const H: f64 = 1e-5;

/// Allowed error of a gradient, relative to the largest of its tensor. Above the error of the differences by a margin,
/// and above the 7e-7 that candle's backward of the exact GELU is off (it holds 1/sqrt(2 pi) to six digits).
const TOLERANCE: f64 = 3e-6;

fn vector(values: &[f64], shape: &[usize]) -> Tensor {
    Tensor::from_slice(values, shape, &CPU).unwrap()
}

fn flat(t: &Tensor) -> Vec<f64> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

// ---------------------------------------------------------------------------------------------------------------------
// The whole model
// ---------------------------------------------------------------------------------------------------------------------

/// One batch through one model.
struct Case {
    config: GptConfig,
    b: usize,
    t: usize,
    dropout: Option<Dropout>,
    seed: u64,
    /// A model to stay near, and the weight of the divergence.
    reference: Option<(Gpt, f64)>,
}

impl Case {
    /// What is minimised, `(B * T)`.
    fn losses(&self, params: &[Tensor], ids: &Tensor, targets: &Tensor) -> Tensor {
        let gpt = Gpt::new(&self.config, params).unwrap();
        let reference = self.reference.as_ref().map(|(gpt, weight)| (gpt, *weight));
        gpt.losses_near(&Tokens::on_device(ids), targets, self.dropout.as_ref(), reference).unwrap().1
    }

    fn loss(&self, params: &[Tensor], ids: &Tensor, targets: &Tensor) -> Tensor {
        self.losses(params, ids, targets).mean_all().unwrap()
    }

    /// Compares a random sample of every parameter's gradient, and always its largest element.
    fn check(&self) {
        let Self { config, b, t, dropout, seed, .. } = self;
        let label = format!("{config:?}, B {b}, T {t}, {dropout:?}");
        let mut random = Random::new(*seed);
        let n = b * t;
        let ids = Tensor::from_vec(random.tokens(n, config.vocab_size), (*b, *t), &CPU).unwrap();
        let targets = Tensor::from_vec(random.tokens(n, config.vocab_size), n, &CPU).unwrap();

        let values = to_tensors(config, &lively_params(config, *seed), DType::F64, &CPU).unwrap();
        let (losses, tape) = Tape::record(&values, || self.losses(&values, &ids, &targets));
        let mut gradients = tape.backward(&losses, Tensor::full(1.0 / n as f64, n, &CPU).unwrap()).unwrap();

        for (i, spec) in param_specs(config).iter().enumerate() {
            let name = &spec.name;
            let gradient =
                flat(&gradients.take(&values[i]).unwrap_or_else(|| panic!("{name} has no gradient: {label}")));
            let value = flat(&values[i]);
            assert_eq!(gradient.len(), spec.len());
            let largest = gradient.iter().fold(0.0f64, |a, g| a.max(g.abs()));
            assert!(largest > 1e-4, "{name}: the largest gradient is {largest:e}, too small to compare: {label}");

            let mut sample: Vec<usize> = (0..5).map(|_| random.between(0, spec.len() - 1)).collect();
            sample.extend(gradient.iter().position(|g| g.abs() == largest));
            for e in sample {
                let at = |x: f64| {
                    let mut moved = value.clone();
                    moved[e] = x;
                    let mut params = values.clone();
                    params[i] = vector(&moved, &spec.shape);
                    self.loss(&params, &ids, &targets).to_scalar::<f64>().unwrap()
                };
                let difference = (at(value[e] + H) - at(value[e] - H)) / (2.0 * H);
                let error = (gradient[e] - difference).abs() / largest;
                assert!(
                    error < TOLERANCE,
                    "{name}[{e}]: gradient {}, by differences {difference}, error {error:.1e} of the largest: {label}",
                    gradient[e]
                );
            }
        }
    }
}

#[test]
fn every_parameters_gradient_agrees_with_finite_differences_on_random_shapes() {
    let mut random = Random::new(1);
    for seed in 0..12 {
        let (n_head, head_size) = (random.between(1, 3), [3, 4, 5, 6][random.between(0, 3)]);
        let block_size = random.between(2, 7);
        let config = GptConfig {
            bias: seed % 2 == 1,
            mlp: if seed / 2 % 2 == 0 { Mlp::Gelu } else { Mlp::GeluNew },
            norm: if seed % 3 == 2 { Norm::Rms } else { Norm::Layer },
            position: if head_size % 2 == 0 { Position::Rope } else { Position::Learned },
            tie_embeddings: seed % 4 != 3,
            ..shape(random.between(2, 13), block_size, random.between(1, 2), n_head, head_size)
        };
        let (b, t) = (random.between(1, 3), random.between(1, block_size));
        Case { config, b, t, dropout: None, seed, reference: None }.check();
    }
}

#[test]
fn gradients_are_right_at_the_edges_of_the_shape() {
    let base = GptConfig { bias: true, ..shape(7, 4, 1, 2, 3) };
    for (seed, (config, b, t)) in [
        (base.clone(), 1, 4),
        (base.clone(), 3, 1),
        (base.clone(), 1, 1),
        (base.clone(), 2, 3), // T < block_size: the last position's embedding has a zero gradient
        (shape(7, 4, 1, 1, 5), 2, 4),
        (GptConfig { mlp: Mlp::GeluNew, ..shape(7, 4, 1, 3, 1) }, 2, 4),
        (shape(7, 1, 1, 2, 3), 3, 1),
        (shape(2, 5, 3, 1, 3), 2, 5),
    ]
    .into_iter()
    .enumerate()
    {
        Case { config, b, t, dropout: None, seed: 100 + seed as u64, reference: None }.check();
    }
}

#[test]
fn gradients_of_staying_near_another_model_are_right() {
    let base = shape(11, 6, 1, 2, 3);
    let other = GptConfig { norm: Norm::Rms, block_size: 9, logit_cap: 2.0, ..shape(11, 6, 2, 1, 4) };
    for (seed, (config, reference, weight)) in [
        (base.clone(), other.clone(), 3.0),
        (GptConfig { tie_embeddings: false, logit_cap: 3.0, ..base.clone() }, other, 0.5),
        (GptConfig { dropout: 0.3, ..base.clone() }, base, 20.0),
    ]
    .into_iter()
    .enumerate()
    {
        let seed = 300 + seed as u64;
        let params = to_tensors(&reference, &lively_params(&reference, seed + 50), DType::F64, &CPU).unwrap();
        let dropout = Dropout { p: config.dropout, seed: 3, step: 17, source: MaskSource::Philox };
        let dropout = (config.dropout > 0.0).then_some(dropout);
        let reference = Some((Gpt::new(&reference, &params).unwrap(), weight));
        Case { config, b: 2, t: 5, dropout, seed, reference }.check();
    }
}

#[test]
fn what_is_minimised_near_another_model_is_the_loss_and_the_weighted_divergence() {
    let config = shape(11, 6, 1, 2, 3);
    let gpt = |seed| {
        let params = to_tensors(&config, &lively_params(&config, seed), DType::F64, &CPU).unwrap();
        Gpt::new(&config, &params).unwrap()
    };
    let (model, reference) = (gpt(1), gpt(2));
    let mut random = Random::new(3);
    let ids = Tensor::from_vec(random.tokens(12, 11), (2, 6), &CPU).unwrap();
    let targets = Tensor::from_vec(random.tokens(12, 11), 12, &CPU).unwrap();
    let tokens = Tokens::on_device(&ids);
    let (losses, objective) = model.losses_near(&tokens, &targets, None, Some((&reference, 0.7))).unwrap();
    assert_eq!(flat(&losses), flat(&model.losses(&tokens, &targets, None).unwrap()));
    let probs = |gpt: &Gpt| flat(&ops::softmax(&gpt.forward(&ids, None).unwrap()).unwrap());
    let (p, q) = (probs(&reference), probs(&model));
    for (n, (loss, objective)) in flat(&losses).iter().zip(flat(&objective)).enumerate() {
        let divergence: f64 = (11 * n..11 * (n + 1)).map(|i| p[i] * (p[i] / q[i]).ln()).sum();
        assert!(divergence > 0.01 && (objective - loss - 0.7 * divergence).abs() < 1e-12, "{n}: {divergence}");
    }
    let (losses, objective) = model.losses_near(&tokens, &targets, None, Some((&model, 5.0))).unwrap();
    assert_eq!(flat(&losses), flat(&objective), "a model is no distance from itself");
}

#[test]
fn gradients_are_right_with_dropout_from_either_source_of_masks() {
    for (seed, source) in [(200, MaskSource::Philox), (201, MaskSource::Hash)] {
        for (bias, mlp, p) in [(false, Mlp::Gelu, 0.2), (true, Mlp::GeluNew, 0.5)] {
            let config = GptConfig { bias, mlp, dropout: p, ..shape(11, 6, 2, 2, 3) };
            let dropout = Some(Dropout { p, seed: 3, step: 17, source });
            Case { config, b: 3, t: 5, dropout, seed, reference: None }.check();
        }
    }
}

/// What the test above would miss if dropout did nothing.
#[test]
fn dropout_changes_the_logits_by_its_step_and_a_rate_of_zero_does_not() {
    let config = shape(11, 6, 2, 2, 3);
    let gpt = Gpt::new(&config, &to_tensors(&config, &lively_params(&config, 1), DType::F64, &CPU).unwrap()).unwrap();
    let ids = Tensor::from_vec(Random::new(2).tokens(12, 11), (2, 6), &CPU).unwrap();
    for source in [MaskSource::Philox, MaskSource::Hash] {
        let logits = |p, step| flat(&gpt.forward(&ids, Some(&Dropout { p, seed: 1, step, source })).unwrap());
        let plain = flat(&gpt.forward(&ids, None).unwrap());
        assert_eq!(logits(0.0, 0), plain);
        assert_ne!(logits(0.2, 0), plain);
        assert_ne!(logits(0.2, 0), logits(0.2, 1));
        assert_eq!(logits(0.2, 1), logits(0.2, 1));
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Each operation
// ---------------------------------------------------------------------------------------------------------------------

/// Compares the gradients of `sum(op(inputs) * weights)`, every element of every input, with differences.
fn check_op(name: &str, inputs: &[(Vec<f64>, Vec<usize>)], op: impl Fn(&[Tensor]) -> Tensor) {
    let tensors: Vec<Tensor> = inputs.iter().map(|(values, dims)| vector(values, dims)).collect();
    let Weighed { weights, gradients, .. } = weighed(&tensors, &op);
    for (i, (values, dims)) in inputs.iter().enumerate() {
        let gradient = flat(gradients[i].as_ref().unwrap_or_else(|| panic!("{name}: input {i} has no gradient")));
        let largest = gradient.iter().fold(0.0f64, |a, g| a.max(g.abs()));
        assert!(largest > 1e-3, "{name}: input {i} has a largest gradient of {largest:e}");
        for e in 0..values.len() {
            let at = |x: f64| {
                let mut moved = values.clone();
                moved[e] = x;
                let mut all = tensors.clone();
                all[i] = vector(&moved, dims);
                (op(&all) * &weights).unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap()
            };
            let difference = (at(values[e] + H) - at(values[e] - H)) / (2.0 * H);
            assert!(
                (gradient[e] - difference).abs() < TOLERANCE * largest,
                "{name}: input {i}[{e}]: gradient {}, by differences {difference}",
                gradient[e]
            );
        }
    }
}

fn assert_close(name: &str, got: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len(), "{name}");
    for (i, (g, e)) in got.iter().zip(expected).enumerate() {
        assert!((g - e).abs() <= tolerance * e.abs().max(1.0), "{name}[{i}]: {g}, expected {e}");
    }
}

#[test]
fn linear_equals_its_definition_and_differentiates() {
    let mut random = Random::new(3);
    for (b, t, n_in, n_out) in [(1, 1, 1, 1), (1, 5, 3, 4), (3, 1, 4, 2), (3, 4, 5, 7)] {
        let (x, w, bias) = (random.values(b * t * n_in), random.values(n_in * n_out), random.values(n_out));
        let product: Vec<f64> = (0..b * t * n_out)
            .map(|i| (0..n_in).map(|k| x[i / n_out * n_in + k] * w[k * n_out + i % n_out]).sum())
            .collect();
        let with_bias: Vec<f64> = product.iter().enumerate().map(|(i, y)| y + bias[i % n_out]).collect();
        let inputs = [(x, vec![b, t, n_in]), (w, vec![n_in, n_out]), (bias, vec![n_out])];
        let t = inputs.each_ref().map(|(values, dims)| vector(values, dims));
        assert_close(
            "linear",
            &flat(&ops::linear(&t[0], &t[1], Some(&t[2]), Precision::F32).unwrap()),
            &with_bias,
            1e-14,
        );
        assert_close("linear", &flat(&ops::linear(&t[0], &t[1], None, Precision::F32).unwrap()), &product, 1e-14);
        let by_row = ops::linear_by_row(&t[0], &t[1], Some(&t[2])).unwrap();
        assert_eq!(by_row.dims(), &[inputs[0].1[0], inputs[0].1[1], n_out]);
        assert_close("linear_by_row", &flat(&by_row), &with_bias, 1e-14);
        assert_close("linear_by_row", &flat(&ops::linear_by_row(&t[0], &t[1], None).unwrap()), &product, 1e-14);
        check_op("linear", &inputs, |t| ops::linear(&t[0], &t[1], Some(&t[2]), Precision::F32).unwrap());
        check_op("linear without bias", &inputs[..2], |t| ops::linear(&t[0], &t[1], None, Precision::F32).unwrap());
    }
}

#[test]
fn layer_norm_equals_its_definition_and_differentiates() {
    let mut random = Random::new(4);
    for (rows, c, eps) in [(1, 3, 1e-5), (5, 4, 1e-5), (2, 8, 1e-12), (6, 17, 0.2)] {
        // Away from mean 0 and deviation 1, each row by another amount.
        let x: Vec<f64> = (0..rows * c).map(|i| 3.0 * (i / c) as f64 + 0.7 * random.signed()).collect();
        let (w, bias) = (random.values(c), random.values(c));
        let mut expected = Vec::new();
        for row in x.chunks(c) {
            let mean = row.iter().sum::<f64>() / c as f64;
            let var = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / c as f64;
            expected.extend(row.iter().zip(&w).map(|(x, w)| (x - mean) / (var + eps).sqrt() * w));
        }
        let with_bias: Vec<f64> = expected.iter().enumerate().map(|(i, y)| y + bias[i % c]).collect();
        let inputs = [(x, vec![1, rows, c]), (w, vec![c]), (bias, vec![c])];
        let t = inputs.each_ref().map(|(values, dims)| vector(values, dims));
        assert_close("layer_norm", &flat(&ops::layer_norm(&t[0], &t[1], Some(&t[2]), eps).unwrap()), &with_bias, 1e-11);
        assert_close("layer_norm", &flat(&ops::layer_norm(&t[0], &t[1], None, eps).unwrap()), &expected, 1e-11);
        check_op("layer_norm", &inputs, |t| ops::layer_norm(&t[0], &t[1], Some(&t[2]), eps).unwrap());
        check_op("layer_norm without bias", &inputs[..2], |t| ops::layer_norm(&t[0], &t[1], None, eps).unwrap());
    }
}

#[test]
fn layer_norm_of_a_constant_row_is_its_bias() {
    let x = vector(&[5.0; 6], &[2, 3]);
    let (w, b) = (vector(&[2.0, 3.0, 4.0], &[3]), vector(&[0.5, -0.5, 0.25], &[3]));
    let y = flat(&ops::layer_norm(&x, &w, Some(&b), 1e-5).unwrap());
    assert_eq!(y, [0.5, -0.5, 0.25, 0.5, -0.5, 0.25]);
}

#[test]
fn softmax_equals_its_definition() {
    let mut random = Random::new(5);
    for (rows, n) in [(1, 1), (4, 2), (3, 7), (2, 33)] {
        let x: Vec<f64> = random.values(rows * n).iter().map(|x| 4.0 * x).collect();
        let mut expected = Vec::new();
        for row in x.chunks(n) {
            let sum: f64 = row.iter().map(|x| x.exp()).sum();
            expected.extend(row.iter().map(|x| x.exp() / sum));
        }
        let dims = vec![rows, n];
        assert_close("softmax", &flat(&ops::softmax(&vector(&x, &dims)).unwrap()), &expected, 1e-14);
    }
}

#[test]
fn softmax_gives_minus_infinity_no_probability() {
    let inf = f64::NEG_INFINITY;
    let x = vec![0.3, inf, inf, inf, -1.0, 0.5, inf, inf, 2.0, inf, 0.1, inf, inf, -700.0, 700.0, 1.0];
    let y = flat(&ops::softmax(&vector(&x, &[4, 4])).unwrap());
    for (row, got) in x.chunks(4).zip(y.chunks(4)) {
        let max = row.iter().copied().fold(inf, f64::max);
        let sum: f64 = row.iter().map(|x| (x - max).exp()).sum();
        let expected: Vec<f64> = row.iter().map(|x| (x - max).exp() / sum).collect();
        assert_close("softmax", got, &expected, 1e-14);
        for (x, p) in row.iter().zip(got) {
            assert!(*x > inf || *p == 0.0, "exp(-inf) is exactly 0, not {p}");
        }
    }
}

#[test]
fn the_causal_mask_hides_what_comes_later() {
    for (t, past) in [(1, 0), (4, 0), (1, 5), (3, 2)] {
        let mask = ops::causal_mask(t, past, DType::F64, &CPU).unwrap();
        assert_eq!(mask.dims(), &[t, past + t]);
        for (i, value) in flat(&mask).into_iter().enumerate() {
            let (row, col) = (i / (past + t), i % (past + t));
            assert_eq!(
                value,
                if col <= past + row { 0.0 } else { f64::NEG_INFINITY },
                "t {t}, past {past}, {row}, {col}"
            );
        }
    }
}

/// The normal distribution function by its definition: Simpson's rule over the density, good to 1e-13.
fn normal_cdf(x: f64) -> f64 {
    let density = |t: f64| (-0.5 * t * t).exp() / (2.0 * std::f64::consts::PI).sqrt();
    let n = 4000;
    let h = x / f64::from(n);
    let inner: f64 = (1..n).map(|i| density(f64::from(i) * h) * if i % 2 == 1 { 4.0 } else { 2.0 }).sum();
    0.5 + (density(0.0) + inner + density(x)) * h / 3.0
}

#[test]
fn activations_equal_their_definitions_and_differentiate() {
    let x: Vec<f64> = (-40..=40).map(|i| f64::from(i) * 0.15).collect();
    let gelu: Vec<f64> = x.iter().map(|&x| x * normal_cdf(x)).collect();
    let root = (2.0 / std::f64::consts::PI).sqrt();
    let gelu_new: Vec<f64> = x.iter().map(|&x| 0.5 * x * (1.0 + (root * (x + 0.044715 * x.powi(3))).tanh())).collect();
    assert!(gelu.iter().zip(&gelu_new).any(|(a, b)| (a - b).abs() > 1e-4), "the two are not the same function");
    for (activation, expected) in [(Activation::Gelu, gelu), (Activation::GeluNew, gelu_new)] {
        let name = format!("{activation:?}");
        let dims = vec![3, 27];
        let y = ops::activate(&vector(&x, &dims), activation).unwrap();
        assert_eq!(y.dims(), &[3, 27]);
        assert_close(&name, &flat(&y), &expected, 1e-12);
        check_op(&name, &[(x.clone(), dims)], |t| ops::activate(&t[0], activation).unwrap());

        let far = Tensor::new(&[-1e4f32, -30.0, 0.0, 30.0, 1e4], &CPU).unwrap();
        let y = ops::activate(&far, activation).unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(y, [0.0, 0.0, 0.0, 30.0, 1e4], "{}: zero far left, the identity far right", name);
    }
}

#[test]
fn cross_entropy_equals_its_definition_and_differentiates() {
    let mut random = Random::new(7);
    for (n, v) in [(1, 2), (5, 3), (4, 11), (3, 40)] {
        let x: Vec<f64> = random.values(n * v).iter().map(|x| 3.0 * x).collect();
        let target = random.tokens(n, v);
        let expected: Vec<f64> = x
            .chunks(v)
            .zip(&target)
            .map(|(row, &t)| -(row[t as usize].exp() / row.iter().map(|x| x.exp()).sum::<f64>()).ln())
            .collect();
        let targets = Tensor::from_vec(target, n, &CPU).unwrap();
        let losses = ops::cross_entropy(&vector(&x, &[n, v]), &targets).unwrap();
        assert_eq!(losses.dims(), &[n]);
        assert_close("cross_entropy", &flat(&losses), &expected, 1e-13);
        check_op("cross_entropy", &[(x, vec![n, v])], |t| ops::cross_entropy(&t[0], &targets).unwrap());
    }
}

#[test]
fn the_gradient_of_cross_entropy_is_softmax_minus_one_hot() {
    let mut random = Random::new(8);
    for (n, v) in [(1, 2), (5, 3), (4, 11), (3, 40)] {
        let x: Vec<f64> = random.values(n * v).iter().map(|x| 3.0 * x).collect();
        let target = random.tokens(n, v);
        let targets = Tensor::from_slice(&target, n, &CPU).unwrap();
        let op = |t: &[Tensor]| ops::cross_entropy(&t[0], &targets).unwrap();
        let Weighed { weights, gradients, .. } = weighed(&[vector(&x, &[n, v])], op);
        let mut expected = Vec::new();
        for ((row, &t), weight) in x.chunks(v).zip(&target).zip(flat(&weights)) {
            let total: f64 = row.iter().map(|x| x.exp()).sum();
            let one_hot = |i: usize| if i == t as usize { 1.0 } else { 0.0 };
            expected.extend(row.iter().enumerate().map(|(i, x)| weight * (x.exp() / total - one_hot(i))));
        }
        let got = flat(gradients[0].as_ref().unwrap());
        assert_close("softmax minus one-hot", &got, &expected, 1e-12);
    }
}

#[test]
fn cross_entropy_holds_for_huge_logits_and_refuses_an_unknown_target() {
    let logits = Tensor::new(&[[3e4f32, 3e4, 0.0], [-3e4, -3e4, -3e4]], &CPU).unwrap();
    let targets = Tensor::new(&[0u32, 2], &CPU).unwrap();
    let losses = ops::cross_entropy(&logits, &targets).unwrap().to_vec1::<f32>().unwrap();
    assert!((losses[0] - 2f32.ln()).abs() < 1e-6 && (losses[1] - 3f32.ln()).abs() < 1e-6, "{losses:?}");
    let outside = Tensor::new(&[0u32, 3], &CPU).unwrap();
    assert!(ops::cross_entropy(&logits, &outside).is_err());
}
