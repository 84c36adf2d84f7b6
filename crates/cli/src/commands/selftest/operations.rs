//! Operations whose course depends on the size of a batch, which no small model reaches: dropout, and chunks of attention and of
//! the head. A device against the same tensor operations on the CPU, which the library's tests hold to plain ones.

use candle_core::{DType, Device, Shape, Tensor};
use tinygpt_model::{
    Dropout, Precision,
    dropout::MaskSource,
    ops::{LOGIT_BYTES, SCORE_BYTES, TensorAttention, causal_mask, head_loss},
};

use super::{
    check::{Check, of_tensors},
    gradients::{numbers, with_gradients},
    model::{ROUNDING, SEED},
};

/// The seed of the masks, their step, and the probability of dropout.
const DROPOUT: Dropout = Dropout { p: 0.2, seed: SEED, step: 7, source: MaskSource::Hash };

/// Makes all checks of operations on a device.
pub fn checks(device: &Device) -> anyhow::Result<Vec<Check>> {
    Ok(vec![of_masks(device)?, of_attention(device)?, of_head(device)?])
}

/// Compares the masks of a GPU bit by bit: the difference is the number of elements that differ.
fn of_masks(device: &Device) -> anyhow::Result<Check> {
    // Within a block of the hash, and over several, the last of them in part.
    let mut differences = Vec::new();
    for (site, n) in [(0, 1), (1, 1000), (5, 40_001)] {
        let mask = |device: &Device| -> anyhow::Result<Vec<f32>> {
            Ok(DROPOUT.mask(site, &Shape::from(n), DType::F32, device)?.to_vec1()?)
        };
        let (found, expected) = (mask(device)?, mask(&Device::Cpu)?);
        let differ = found.iter().zip(&expected).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
        differences
            .push((format!("{n} elements of site {site}"), (differ + found.len().abs_diff(expected.len())) as f64));
    }
    Ok(Check::new("dropout masks", "hash", 0.0, differences))
}

/// [`with_gradients`] of an operation on tensors of these shapes.
fn of_shapes(
    device: &Device,
    shapes: &[&[usize]],
    op: &dyn Fn(&[Tensor]) -> anyhow::Result<Tensor>,
) -> anyhow::Result<Vec<Vec<f32>>> {
    let tensor =
        |(place, &shape): (u32, &&[usize])| Tensor::from_vec(numbers(place, shape.iter().product()), shape, device);
    let tensors = (100..).zip(shapes).map(tensor).collect::<candle_core::Result<Vec<_>>>()?;
    with_gradients(&tensors, || op(&tensors))
}

/// The differences of a result and its gradients.
fn differences(found: &[Vec<f32>], expected: &[Vec<f32>], of: &str) -> Vec<(String, f64)> {
    let names = ["the result", "the gradient of argument 0", "the gradient of argument 1"];
    let pairs = names.iter().zip(found.iter().zip(expected));
    pairs.map(|(name, (found, expected))| (format!("{name}, {of}"), of_tensors(found, expected))).collect()
}

/// Compares attention in chunks of heads and of queries, with dropout, with one in a single chunk on the CPU.
fn of_attention(device: &Device) -> anyhow::Result<Check> {
    let (b, t, nh, hs) = (2, 40, 3, 8);
    let attention = |device: &Device, score_bytes: usize| {
        of_shapes(device, &[&[b, t, 3 * nh * hs]], &|x| {
            let mask = causal_mask(t, 0, DType::F32, device)?;
            let dropout = Some((DROPOUT, 1));
            let attention = TensorAttention { n_head: nh, mask, dropout, precision: Precision::F32, score_bytes };
            Ok(attention.apply(&x[0])?)
        })
    };
    let expected = attention(&Device::Cpu, SCORE_BYTES)?;
    let mut found = Vec::new();
    for (of, scores) in [("2 heads at once", 2 * t * t), ("17 queries at once", 17 * t)] {
        found.extend(differences(&attention(device, 4 * scores)?, &expected, of));
    }
    Ok(Check::new("attention", "chunks, dropout", ROUNDING, found))
}

/// Compares the head in chunks of rows with one in a single chunk on the CPU.
fn of_head(device: &Device) -> anyhow::Result<Check> {
    let (n, c, v) = (50, 16, 300);
    let head = |device: &Device, logit_bytes: usize| {
        of_shapes(device, &[&[n, c], &[v, c]], &|x| {
            let targets: Vec<u32> = (0..n as u32).map(|i| i * 7 % v as u32).collect();
            let targets = Tensor::from_vec(targets, n, device)?;
            Ok(head_loss(&x[0], &x[1], &targets, Precision::F32, logit_bytes)?)
        })
    };
    let expected = head(&Device::Cpu, LOGIT_BYTES)?;
    let found = differences(&head(device, 4 * v * 13)?, &expected, "13 rows at once");
    Ok(Check::new("head with its loss", "chunks", ROUNDING, found))
}
