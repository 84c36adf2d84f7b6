//! Angles that are scaled as Llama 3's. llama.cpp has no keys for them but a tensor: what the frequency of each pair of a head's
//! channels is divided by (`LlamaModel.generate_extra_tensors` of its converter). What these factors were computed from stands
//! under keys of our own, and is found in the factors of files without these.

use std::f64::consts::TAU;

use super::{Gguf, writer::GgufValue};
use crate::{
    GptConfig,
    config::{RopeFrequencies, RopeScaling},
};

/// The tensor of the factors, `(head_size / 2)`.
pub(super) const ROPE_FACTORS: &str = "rope_freqs.weight";

const OWN_FACTOR: &str = "tinygpt.rope.factor";
const OWN_LOW: &str = "tinygpt.rope.low_freq_factor";
const OWN_HIGH: &str = "tinygpt.rope.high_freq_factor";
const OWN_ORIGINAL: &str = "tinygpt.rope.original_context_length";

/// How far, relative to it, a factor in a file may be from the one that its frequencies give: both are rounded to f32.
const TOLERANCE: f64 = 3e-7;

/// The keys of our own for a network whose angles are scaled as Llama 3's.
pub(super) fn describe(config: &GptConfig) -> Vec<(String, GgufValue)> {
    let numbers = [
        (OWN_FACTOR, config.rope_factor),
        (OWN_LOW, config.rope_low_freq_factor),
        (OWN_HIGH, config.rope_high_freq_factor),
    ];
    let mut keys: Vec<_> = numbers.into_iter().map(|(key, x)| (key.to_owned(), GgufValue::F32(x as f32))).collect();
    keys.push((OWN_ORIGINAL.to_owned(), GgufValue::U32(config.rope_original_block_size as u32))); // at most 2^24
    keys
}

/// The factors of this network, one for each pair of a head's channels.
pub(super) fn factors(config: &GptConfig) -> Vec<f32> {
    config.rope_frequencies().divisors_of_pairs(config.head_size() / 2).into_iter().map(|x| x as f32).collect()
}

/// Sets the scaling whose factors a file has, if it scales anything; `config` has the base and the heads of the network.
///
/// # Errors
/// Which tensor is not of its shape, or that the factors are not those of Llama 3's formula: with the numbers of our own keys, or
/// where there are none, with waves that fit between once and four times into the context of pretraining interpolated.
pub(super) fn read(gguf: &Gguf<'_>, config: &mut GptConfig) -> Result<(), String> {
    let Some(tensor) = gguf.tensor(ROPE_FACTORS) else { return Ok(()) };
    let pairs = config.head_size() / 2;
    if tensor.shape != [pairs] {
        return Err(format!("{ROPE_FACTORS} has shape {:?}, the model needs [{pairs}]", tensor.shape));
    }
    let factors: Vec<f64> = tensor.kind.decode(tensor.bytes).into_iter().map(f64::from).collect();
    if factors.iter().all(|&factor| factor == 1.0) {
        return Ok(());
    }
    let plain = RopeFrequencies::unscaled(config.rope_theta);
    let found = match own_keys(gguf, plain)? {
        Some(own) => Some(own),
        None => published(&factors, plain),
    };
    let Some(found) = found.filter(|found| gives(found, &factors)) else {
        return Err(format!("{ROPE_FACTORS} is not what Llama 3's scaling of its angles would be"));
    };
    config.rope_scaling = found.scaling;
    config.rope_factor = found.factor;
    config.rope_low_freq_factor = found.low_freq_factor;
    config.rope_high_freq_factor = found.high_freq_factor;
    config.rope_original_block_size = found.original_block_size;
    Ok(())
}

/// What our own keys say, where they are there.
fn own_keys(gguf: &Gguf<'_>, plain: RopeFrequencies) -> Result<Option<RopeFrequencies>, String> {
    let numbers = (gguf.number(OWN_FACTOR)?, gguf.number(OWN_LOW)?, gguf.number(OWN_HIGH)?, gguf.whole(OWN_ORIGINAL)?);
    let (Some(factor), Some(low_freq_factor), Some(high_freq_factor), Some(original_block_size)) = numbers else {
        return Ok(None);
    };
    let scaling = RopeScaling::Llama3;
    Ok(Some(RopeFrequencies { scaling, factor, low_freq_factor, high_freq_factor, original_block_size, ..plain }))
}

/// The scaling with the bounds that all published models have, 1 and 4, that may have given these factors.
fn published(factors: &[f64], plain: RopeFrequencies) -> Option<RopeFrequencies> {
    let frequencies = plain.of_pairs(factors.len());
    let factor = *factors.last()?;
    let (low, high) = (plain.low_freq_factor, plain.high_freq_factor);
    let scaled = |original: f64| RopeFrequencies {
        scaling: RopeScaling::Llama3,
        factor,
        original_block_size: original as usize,
        ..plain
    };
    // So many waves of a pair fit into the context of pretraining if it is interpolated; that tells the context.
    let interpolated = frequencies.iter().zip(factors).filter(|(_, divisor)| (1.0 < **divisor) && (**divisor < factor));
    let mut originals = interpolated.map(|(frequency, divisor)| {
        let smooth = (1.0 / divisor - 1.0 / factor) / (1.0 - 1.0 / factor);
        ((low + smooth * (high - low)) * TAU / frequency).round()
    });
    if let Some(original) = originals.find(|&original| gives(&scaled(original), factors)) {
        return Some(scaled(original));
    }
    // Of no pair: every context between two bounds gives the same factors. Those of published models are powers of two.
    let unscaled = frequencies.iter().zip(factors).filter(|(_, divisor)| **divisor == 1.0);
    let least = unscaled.map(|(frequency, _)| (high * TAU / frequency).ceil()).fold(1.0, f64::max);
    let power = least.log2().ceil().exp2();
    [power, least].into_iter().map(scaled).find(|found| gives(found, factors))
}

/// Whether a scaling has these factors.
fn gives(scaling: &RopeFrequencies, factors: &[f64]) -> bool {
    let expected = scaling.divisors_of_pairs(factors.len());
    expected.iter().zip(factors).all(|(expected, found)| (found / expected - 1.0).abs() <= TOLERANCE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn llama3(theta: f64, factor: f64, original_block_size: usize) -> RopeFrequencies {
        let scaling = RopeScaling::Llama3;
        RopeFrequencies { scaling, factor, original_block_size, ..RopeFrequencies::unscaled(theta) }
    }

    /// As a file has them.
    fn rounded(scaling: RopeFrequencies, pairs: usize) -> Vec<f64> {
        scaling.divisors_of_pairs(pairs).into_iter().map(|x| f64::from(x as f32)).collect()
    }

    #[test]
    fn the_scaling_of_published_models_is_found_in_its_factors() {
        // Llama 3.1 and 3.2, and heads so small that no pair is interpolated.
        for (scaling, pairs) in [
            (llama3(500_000.0, 8.0, 8192), 64),
            (llama3(500_000.0, 32.0, 8192), 32),
            (llama3(10_000.0, 2.5, 1000), 24),
            (llama3(500_000.0, 8.0, 32), 2),
        ] {
            let plain = RopeFrequencies::unscaled(scaling.theta);
            assert_eq!(published(&rounded(scaling, pairs), plain), Some(scaling));
        }
    }

    #[test]
    fn factors_of_another_formula_are_not_taken_for_it() {
        let plain = RopeFrequencies::unscaled(500_000.0);
        let factors = rounded(llama3(500_000.0, 8.0, 8192), 64);
        let other_bounds = RopeFrequencies { high_freq_factor: 3.0, ..llama3(500_000.0, 8.0, 8192) };
        let changed = |at: usize, x: f64| {
            let mut factors = factors.clone();
            factors[at] = x;
            factors
        };
        for factors in [
            rounded(other_bounds, 64),
            changed(0, 1.001),
            changed(31, f64::NAN),
            changed(31, 0.0),
            changed(63, f64::INFINITY),
            changed(63, f64::NAN),
            changed(63, -8.0),
            vec![0.0; 64],
            Vec::new(),
        ] {
            assert_eq!(published(&factors, plain), None, "{factors:?}");
        }
    }
}
