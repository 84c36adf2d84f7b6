//! The launches of each operation of training, forward and backward, as the table in the documentation of
//! `tinygpt_model::ops` has them.

use crate::common::{Random, lively_params, shape};
use candle_core::{DType, Device, Tensor};
use tinygpt_model::{
    Dropout, Gpt, GptConfig, Precision,
    dropout::MaskSource,
    ops::{self, Activation, Tape, TensorAttention, Tokens, take_launches},
    params::to_tensors,
};

const CPU: Device = Device::Cpu;
const PRECISIONS: [Precision; 2] = [Precision::F32, Precision::Bf16];

/// Launches forward and backward, of inputs in f32 that a gradient is wanted for.
fn launches(shapes: &[&[usize]], op: impl Fn(&[Tensor]) -> Tensor) -> (usize, usize) {
    let mut rng = Random::new(1);
    let mut value = |shape: &[usize]| Tensor::from_vec(rng.values(shape.iter().product()), shape, &CPU).unwrap();
    let inputs: Vec<Tensor> = shapes.iter().copied().map(|dims| value(dims).to_dtype(DType::F32).unwrap()).collect();
    take_launches();
    let (y, tape) = Tape::record(&inputs, || op(&inputs));
    let forward = take_launches();
    tape.backward(&y, y.ones_like().unwrap()).unwrap();
    (forward, take_launches())
}

/// The masks of a GPU.
fn dropout(p: f64) -> Dropout {
    Dropout { p, seed: 1, step: 1, source: MaskSource::Hash }
}

#[test]
fn linear() {
    let count = |precision| launches(&[&[2, 5, 3], &[3, 4]], |x| ops::linear(&x[0], &x[1], None, precision).unwrap());
    assert_eq!(PRECISIONS.map(count), [(1, 2), (4, 7)]);
}

#[test]
fn norm_and_activations() {
    assert_eq!(launches(&[&[2, 5, 3], &[3]], |x| ops::layer_norm(&x[0], &x[1], None, 1e-5).unwrap()), (11, 23));
    assert_eq!(launches(&[&[2, 5, 3], &[3]], |x| ops::rms_norm(&x[0], &x[1], 1e-6).unwrap()), (8, 17));
    let activation = |activation| launches(&[&[2, 5, 3]], |x| ops::activate(&x[0], activation).unwrap());
    assert_eq!(activation(Activation::Gelu), (1, 9));
    assert_eq!(activation(Activation::GeluNew), (7, 14));
    assert_eq!(activation(Activation::Relu2), (2, 3));
    assert_eq!(launches(&[&[2, 5, 6]], |x| ops::swiglu(&x[0]).unwrap()), (8, 15));
}

#[test]
fn dropout_of_values() {
    let source = |source| launches(&[&[2, 5, 3]], |x| Dropout { source, ..dropout(0.2) }.apply(7, &x[0]).unwrap());
    assert_eq!([MaskSource::Philox, MaskSource::Hash].map(source), [(4, 3), (18, 3)]);
}

/// `[one chunk, three chunks]` in each precision.
fn attention(p: f64) -> [[(usize, usize); 2]; 2] {
    let (b, t, nh, hs) = (1, 8, 3, 4);
    PRECISIONS.map(|precision| {
        [3, 1].map(|heads| {
            launches(&[&[b, t, 3 * nh * hs]], |x| {
                let attention = TensorAttention {
                    n_head: nh,
                    mask: ops::causal_mask(t, 0, DType::F32, &CPU).unwrap(),
                    dropout: (p > 0.0).then_some((dropout(p), 0)),
                    precision,
                    score_bytes: 4 * t * t * heads,
                };
                take_launches();
                attention.apply(&x[0]).unwrap()
            })
        })
    })
}

#[test]
fn attention_by_chunks() {
    assert_eq!(attention(0.0), [[(13, 26), (34, 63)], [(16, 34), (41, 79)]]);
    assert_eq!(attention(0.2), [[(30, 45), (85, 118)], [(34, 54), (93, 135)]]);
}

#[test]
fn embeddings() {
    let count = |v: usize, ids: Vec<u32>| {
        let tokens = Tokens::new(&ids, 1, ids.len(), v, &CPU).unwrap();
        launches(&[&[v, 3]], |x| ops::embedding(&x[0], &tokens).unwrap())
    };
    assert_eq!(count(65, vec![3; 1000]), (1, 4));
    assert_eq!(count(257, vec![3; 100]), (1, 6));
    assert_eq!(count(257, vec![3; 1000]), (1, 10));
    assert_eq!(count(257, vec![3; 20_000]), (1, 14));
}

#[test]
fn head_with_loss() {
    let targets = Tensor::new(&[1u32, 0, 3, 2], &CPU).unwrap();
    let count = |precision| {
        [4, 1].map(|rows| {
            launches(&[&[4, 5], &[7, 5]], |x| ops::head_loss(&x[0], &x[1], &targets, precision, 4 * 7 * rows).unwrap())
        })
    };
    assert_eq!(PRECISIONS.map(count), [[(8, 14), (36, 60)], [(11, 20), (42, 75)]]);
}

/// The whole model, for a vocabulary of characters and scores that fit a chunk.
#[test]
fn a_forward_and_backward_pass_is_linear_in_the_layers() {
    let count = |n_layer, p, precision| {
        let config = GptConfig { dropout: p, ..shape(65, 8, n_layer, 2, 4) };
        let values = to_tensors(&config, &lively_params(&config, 1), DType::F32, &CPU).unwrap();
        let ids = Random::new(2).tokens(16, 65);
        let targets = Tensor::from_slice(&ids, 16, &CPU).unwrap();
        let shapes: Vec<&[usize]> = values.iter().map(Tensor::dims).collect();
        launches(&shapes, |params| {
            let gpt = Gpt::new(&config, params).unwrap().with_precision(precision);
            gpt.losses(&Tokens::new(&ids, 2, 8, 65, &CPU).unwrap(), &targets, Some(&dropout(p))).unwrap()
        })
    };
    for (p, precision, base, layer) in [
        (0.0, Precision::F32, (30, 43), (42, 91)),
        (0.2, Precision::F32, (48, 46), (95, 116)),
        (0.0, Precision::Bf16, (33, 49), (57, 119)),
        (0.2, Precision::Bf16, (51, 52), (111, 145)),
    ] {
        let [one, two, six] = [1, 2, 6].map(|n_layer| count(n_layer, p, precision));
        let a_layer = (two.0 - one.0, two.1 - one.1);
        assert_eq!(six, (one.0 + 5 * a_layer.0, one.1 + 5 * a_layer.1));
        assert_eq!(((one.0 - a_layer.0, one.1 - a_layer.1), a_layer), (base, layer), "dropout {p}, {precision:?}");
    }
}
