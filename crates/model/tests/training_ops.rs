//! The operations of training, whose gradients are written by hand, against plain compositions with candle's own
//! gradients, on random shapes: in f64, where both agree to rounding, and in bf16 and f16 within what these round.

use crate::common::{
    Random,
    gradients::{Weighed, weighed},
    lively_params, shape,
};
use candle_core::{D, DType, Device, Tensor, Var};
use tinygpt_model::{
    Dropout, Gpt, GptConfig, Precision,
    config::Norm,
    dropout::MaskSource,
    ops::{self, Activation, TensorAttention, Tokens},
    params::to_tensors,
};

const CPU: Device = Device::Cpu;

/// What both sides round in f64, relative to the largest element; 1/sqrt(2 pi) has six digits in candle's GELU.
const ROUNDING: f64 = 1e-12;

/// An epsilon of norms that shows in their results.
const EPS: f64 = 0.03;

/// The plain compositions. They are what the operations mean; nothing of them runs in the program.
mod plain {
    use super::*;
    use candle_core::Result;

    pub fn linear(x: &Tensor, w: &Tensor) -> Result<Tensor> {
        x.broadcast_matmul(w)
    }

    pub fn layer_norm(x: &Tensor, w: &Tensor) -> Result<Tensor> {
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let var = centred.sqr()?.mean_keepdim(D::Minus1)?;
        centred.broadcast_div(&(var + EPS)?.sqrt()?)?.broadcast_mul(w)
    }

    pub fn rms_norm(x: &Tensor, w: &Tensor) -> Result<Tensor> {
        let mean_square = x.sqr()?.mean_keepdim(D::Minus1)?;
        x.broadcast_div(&(mean_square + EPS)?.sqrt()?)?.broadcast_mul(w)
    }

    pub fn softmax(x: &Tensor) -> Result<Tensor> {
        let e = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?.exp()?;
        e.broadcast_div(&e.sum_keepdim(D::Minus1)?)
    }

    pub fn gelu_new(x: &Tensor) -> Result<Tensor> {
        let u = ((x + x.powf(3.0)?.affine(0.044_715, 0.0)?)? * (2.0 / std::f64::consts::PI).sqrt())?;
        (x * (u.tanh()? + 1.0)?)? * 0.5
    }

    /// `(B, T, 3C)` to `(B, T, C)`.
    pub fn attention(qkv: &Tensor, n_head: usize, mask: Option<&Tensor>) -> Result<Tensor> {
        let (b, t, c3) = qkv.dims3()?;
        let (c, hs) = (c3 / 3, c3 / 3 / n_head);
        let head = |i: usize| qkv.narrow(2, i * c, c)?.reshape((b, t, n_head, hs))?.transpose(1, 2)?.contiguous();
        let scores = (head(0)?.matmul(&head(1)?.t()?)? / (hs as f64).sqrt())?;
        let see: Vec<f64> = (0..t * t).map(|i| if i % t > i / t { f64::NEG_INFINITY } else { 0.0 }).collect();
        let mut p = softmax(&scores.broadcast_add(&Tensor::from_vec(see, (t, t), &CPU)?.to_dtype(qkv.dtype())?)?)?;
        if let Some(mask) = mask {
            p = (p * mask)?;
        }
        p.matmul(&head(2)?)?.transpose(1, 2)?.reshape((b, t, c))
    }

    pub fn head_loss(x: &Tensor, w: &Tensor, targets: &Tensor) -> Result<Tensor> {
        let p = softmax(&x.matmul(&w.t()?)?)?;
        p.gather(&targets.unsqueeze(1)?, 1)?.squeeze(1)?.log()?.neg()
    }
}

fn random(random: &mut Random, shape: &[usize]) -> Tensor {
    Tensor::from_vec(random.values(shape.iter().product()), shape, &CPU).unwrap()
}

fn flat(t: &Tensor) -> Vec<f64> {
    t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// The value of an operation, and its gradients for the sum of its elements by fixed weights.
fn with_gradients(inputs: &[Tensor], op: &dyn Fn(&[Tensor]) -> Tensor) -> Vec<Vec<f64>> {
    let Weighed { y, gradients, .. } = weighed(inputs, op);
    let gradients = gradients.iter().map(|gradient| flat(gradient.as_ref().unwrap()));
    [flat(&y)].into_iter().chain(gradients).collect()
}

/// [`with_gradients`] of plain tensor code, by candle's autograd.
fn with_candle_gradients(inputs: &[Tensor], op: &dyn Fn(&[Tensor]) -> Tensor) -> Vec<Vec<f64>> {
    let vars: Vec<Var> = inputs.iter().map(|t| Var::from_tensor(t).unwrap()).collect();
    let tracked: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let y = op(&tracked);
    let weights = random(&mut Random::new(99), y.dims()).to_dtype(y.dtype()).unwrap();
    let store = (&y * weights).unwrap().sum_all().unwrap().backward().unwrap();
    let gradients = vars.iter().map(|v| flat(store.get(v).unwrap()));
    [flat(&y)].into_iter().chain(gradients).collect()
}

/// Holds value and gradients of `ours` to those of `theirs`, relative to the largest element of each.
fn compare(
    label: &str,
    tolerance: f64,
    inputs: &[Tensor],
    ours: &dyn Fn(&[Tensor]) -> Tensor,
    theirs: &dyn Fn(&[Tensor]) -> Tensor,
) {
    let (ours, theirs) = (with_gradients(inputs, ours), with_candle_gradients(inputs, theirs));
    compare_each(label, tolerance, &ours, &theirs);
}

fn compare_each(label: &str, tolerance: f64, ours: &[Vec<f64>], theirs: &[Vec<f64>]) {
    for (i, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
        assert_eq!(ours.len(), theirs.len(), "{label}");
        let largest = theirs.iter().fold(0.0f64, |a, x| a.max(x.abs()));
        let off = ours.iter().zip(theirs).fold(0.0f64, |a, (x, y)| if (x - y).abs() <= a { a } else { (x - y).abs() });
        // Gradients that are exactly zero (one position has one probability) leave nothing to be relative to.
        assert!(off <= tolerance * largest.max(1e-3), "{label}, output {i}: {off:e} of {largest:e}");
    }
}

fn f32s(inputs: &[Tensor]) -> Vec<Tensor> {
    inputs.iter().map(|t| t.to_dtype(DType::F32).unwrap()).collect()
}

/// The precisions of products, and what they may be off by: a few units of their last place.
const ROUNDED: [(Precision, f64); 2] = [(Precision::Bf16, 3e-2), (Precision::F16, 4e-3)];

#[test]
fn attention_equals_the_plain_composition_for_every_cut_into_chunks() {
    let mut rng = Random::new(1);
    let mut shapes = vec![(1, 1, 1, 1), (3, 1, 2, 4), (2, 7, 3, 5), (1, 16, 1, 3), (2, 33, 2, 8)];
    shapes.extend((0..12).map(|_| (rng.between(1, 4), rng.between(1, 20), rng.between(1, 4), rng.between(1, 9))));
    for (i, (b, t, nh, hs)) in shapes.into_iter().enumerate() {
        let qkv = (random(&mut rng, &[b, t, 3 * nh * hs]) * 2.0).unwrap();
        let source = if i % 2 == 0 { MaskSource::Philox } else { MaskSource::Hash };
        let dropout = (i % 3 > 0).then_some(Dropout { p: 0.3, seed: 5, step: 6, source });
        // Several heads at once, one, some queries, one.
        for scores in [usize::MAX / 4, 2 * t * t, t * t, 2 * t + 1, 1] {
            let attention = |precision, dtype| TensorAttention {
                n_head: nh,
                mask: ops::causal_mask(t, 0, dtype, &CPU).unwrap(),
                dropout: dropout.clone().map(|dropout| (dropout, 9)),
                precision,
                score_bytes: 4 * scores,
            };
            let label = format!("B {b}, T {t}, {nh} heads of {hs}, {scores} scores, {dropout:?}");
            let theirs = |x: &[Tensor]| {
                let mask = dropout.as_ref().map(|d| d.mask(9, &(b, nh, t, t).into(), x[0].dtype(), &CPU).unwrap());
                plain::attention(&x[0], nh, mask.as_ref()).unwrap()
            };
            let ours = attention(Precision::F32, DType::F64);
            let inputs = [qkv.clone()];
            compare(&label, ROUNDING, &inputs, &|x| ours.apply(&x[0]).unwrap(), &theirs);
            for (precision, tolerance) in ROUNDED {
                let ours = attention(precision, DType::F32);
                let label = format!("{label}, {precision:?}");
                compare(&label, tolerance, &f32s(&inputs), &|x| ours.apply(&x[0]).unwrap(), &theirs);
            }
        }
    }
}

#[test]
fn the_linear_layer_equals_the_plain_product_transposed_weights_too() {
    let mut rng = Random::new(2);
    for (b, t, n_in, n_out) in [(1, 1, 1, 1), (1, 5, 3, 4), (3, 1, 4, 2), (3, 7, 33, 17)] {
        let inputs = [random(&mut rng, &[b, t, n_in]), random(&mut rng, &[n_in, n_out])];
        let turned = [inputs[0].clone(), inputs[1].t().unwrap().contiguous().unwrap()];
        let theirs = |x: &[Tensor]| plain::linear(&x[0], &x[1]).unwrap();
        let ours = |p| move |x: &[Tensor]| ops::linear(&x[0], &x[1], None, p).unwrap();
        let label = format!("B {b}, T {t}, {n_in} to {n_out}");
        compare(&label, ROUNDING, &inputs, &ours(Precision::F32), &theirs);
        for (precision, tolerance) in [(Precision::F32, 1e-5), ROUNDED[0], ROUNDED[1]] {
            compare(&label, tolerance, &f32s(&inputs), &ours(precision), &theirs);
            let ours = |x: &[Tensor]| ops::linear(&x[0], &ops::transpose(&x[1]).unwrap(), None, precision).unwrap();
            let theirs = |x: &[Tensor]| plain::linear(&x[0], &x[1].t().unwrap()).unwrap();
            compare(&label, tolerance, &f32s(&turned), &ours, &theirs);
        }
    }
}

#[test]
fn norm_activation_and_dropout_equal_the_plain_compositions() {
    let mut rng = Random::new(3);
    for (b, t, c) in [(1, 1, 2), (2, 3, 5), (4, 7, 33)] {
        let inputs = [random(&mut rng, &[b, t, c]), random(&mut rng, &[c])];
        let label = format!("B {b}, T {t}, C {c}");
        let ours = |x: &[Tensor]| ops::layer_norm(&x[0], &x[1], None, EPS).unwrap();
        compare(&label, ROUNDING, &inputs, &ours, &|x| plain::layer_norm(&x[0], &x[1]).unwrap());
        let ours = |x: &[Tensor]| ops::rms_norm(&x[0], &x[1], EPS).unwrap();
        compare(&label, ROUNDING, &inputs, &ours, &|x| plain::rms_norm(&x[0], &x[1]).unwrap());
        let inputs = [(&inputs[0] * 4.0).unwrap()];
        let ours = |x: &[Tensor]| ops::activate(&x[0], Activation::GeluNew).unwrap();
        compare(&label, ROUNDING, &inputs, &ours, &|x| plain::gelu_new(&x[0]).unwrap());
        let ours = |x: &[Tensor]| ops::activate(&x[0], Activation::Gelu).unwrap();
        compare(&label, 2e-6, &inputs, &ours, &|x| x[0].gelu_erf().unwrap());
        for source in [MaskSource::Philox, MaskSource::Hash] {
            let dropout = Dropout { p: 0.4, seed: 1, step: 2, source };
            let mask = dropout.mask(3, &(b, t, c).into(), DType::F64, &CPU).unwrap();
            let ours = |x: &[Tensor]| dropout.apply(3, &x[0]).unwrap();
            compare(&label, ROUNDING, &inputs, &ours, &|x| (&x[0] * &mask).unwrap());
        }
    }
}

#[test]
fn operations_that_are_computed_as_one_equal_the_plain_compositions() {
    let mut rng = Random::new(5);
    for (b, t, c) in [(1, 1, 2), (2, 3, 5), (4, 7, 33)] {
        let label = format!("B {b}, T {t}, C {c}");
        let biased = [random(&mut rng, &[b, t, c]), random(&mut rng, &[c])];
        let ours = |x: &[Tensor]| ops::activate_biased(&x[0], Some(&x[1]), Activation::GeluNew).unwrap();
        let theirs = |x: &[Tensor]| plain::gelu_new(&x[0].broadcast_add(&x[1]).unwrap()).unwrap();
        compare(&label, ROUNDING, &biased, &ours, &theirs);
        let biased = [random(&mut rng, &[b, t, 2 * c]), random(&mut rng, &[2 * c])];
        let ours = |x: &[Tensor]| ops::swiglu_biased(&x[0], Some(&x[1])).unwrap();
        let theirs = |x: &[Tensor]| {
            let sum = x[0].broadcast_add(&x[1]).unwrap();
            let half = |i: usize| sum.narrow(2, i * c, c).unwrap();
            (half(0).silu().unwrap() * half(1)).unwrap()
        };
        compare(&label, ROUNDING, &biased, &ours, &theirs);

        let dropout = Dropout { p: 0.4, seed: 1, step: 2, source: MaskSource::Hash };
        let mask = dropout.mask(3, &(b, t, c).into(), DType::F64, &CPU).unwrap();
        let inputs = [random(&mut rng, &[b, t, c]), random(&mut rng, &[b, t, c]), random(&mut rng, &[c])];
        // Both results are read: the sum by another sum with its norm, as in a network.
        let ours = |x: &[Tensor]| {
            let norm = ((Norm::Rms, EPS), (&x[2], None));
            let [sum, y] = ops::residual_norm(&x[0], &x[1], Some((&dropout, 3)), norm, DType::F64).unwrap();
            let [_, y] = ops::residual_norm(&sum, &y, None, norm, DType::F64).unwrap();
            y
        };
        let theirs = |x: &[Tensor]| {
            let sum = (&x[0] + (&x[1] * &mask).unwrap()).unwrap();
            let y = plain::rms_norm(&sum, &x[2]).unwrap();
            plain::rms_norm(&(sum + y).unwrap(), &x[2]).unwrap()
        };
        compare(&label, ROUNDING, &inputs, &ours, &theirs);
    }
}

#[test]
fn the_head_with_the_loss_equals_the_plain_composition_for_every_cut_into_chunks() {
    let mut rng = Random::new(4);
    for (n, v, c) in [(1, 1, 1), (1, 9, 3), (7, 2, 5), (13, 31, 8)] {
        let inputs = [random(&mut rng, &[n, c]), random(&mut rng, &[v, c])];
        let targets = Tensor::from_vec(rng.tokens(n, v), n, &CPU).unwrap();
        for rows in [1, 2, 5, 100] {
            let label = format!("N {n}, V {v}, C {c}, {rows} rows at a time");
            let theirs = |x: &[Tensor]| plain::head_loss(&x[0], &x[1], &targets).unwrap();
            let ours = |p| {
                let targets = &targets;
                move |x: &[Tensor]| ops::head_loss(&x[0], &x[1], targets, p, 4 * v * rows).unwrap()
            };
            compare(&label, ROUNDING, &inputs, &ours(Precision::F32), &theirs);
            for (precision, tolerance) in ROUNDED {
                compare(&label, tolerance, &f32s(&inputs), &ours(precision), &theirs);
            }
        }
    }
}

#[test]
fn embeddings_equal_index_select_for_small_and_large_vocabularies() {
    let mut rng = Random::new(5);
    for v in [1, 2, ops::DIRECT_VOCAB, ops::DIRECT_VOCAB + 1, 1000] {
        for (b, t) in [(1, 1), (3, 5), (2, 200)] {
            let ids = rng.tokens(b * t, v.min(300));
            let at = Tensor::new(ids.as_slice(), &CPU).unwrap();
            let inputs = [random(&mut rng, &[v, 3])];
            #[expect(clippy::disallowed_methods, reason = "the composition, on the CPU")]
            let theirs = |x: &[Tensor]| x[0].index_select(&at, 0).unwrap().reshape((b, t, 3)).unwrap();
            for tokens in [Tokens::new(&ids, b, t, v, &CPU).unwrap(), Tokens::on_device(&at.reshape((b, t)).unwrap())] {
                let ours = |x: &[Tensor]| ops::embedding(&x[0], &tokens).unwrap();
                compare(&format!("V {v}, B {b}, T {t}"), ROUNDING, &inputs, &ours, &theirs);
            }
        }
    }
}

/// The model's own way to a loss against the loss of its logits: values and every gradient.
#[test]
fn losses_are_those_of_the_logits() {
    for v in [11, 300] {
        let config = GptConfig { bias: true, dropout: 0.2, ..shape(v, 9, 2, 3, 4) };
        let values = to_tensors(&config, &lively_params(&config, 1), DType::F64, &CPU).unwrap();
        let mut rng = Random::new(6);
        let (ids, targets) = (rng.tokens(3 * 7, v), Tensor::from_vec(rng.tokens(3 * 7, v), 21, &CPU).unwrap());
        let tokens = Tokens::new(&ids, 3, 7, v, &CPU).unwrap();
        let ids = Tensor::from_vec(ids, (3, 7), &CPU).unwrap();
        let dropout = Dropout { p: 0.2, seed: 1, step: 2, source: MaskSource::Philox };
        let ours = |p: &[Tensor]| Gpt::new(&config, p).unwrap().losses(&tokens, &targets, Some(&dropout)).unwrap();
        let theirs = |p: &[Tensor]| {
            let logits = Gpt::new(&config, p).unwrap().forward(&ids, Some(&dropout)).unwrap();
            ops::cross_entropy(&ops::reshape(&logits, (21, v)).unwrap(), &targets).unwrap()
        };
        compare_each(&format!("V {v}"), ROUNDING, &with_gradients(&values, &ours), &with_gradients(&values, &theirs));
    }
}
