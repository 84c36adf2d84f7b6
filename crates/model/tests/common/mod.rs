//! What the tests of the model share: random numbers from fixed seeds, small models whose weights are far from zero.
#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used, reason = "test code")]

use candle_core::{DType, Device, Tensor};
use tinygpt_model::{
    ContextPolicy, Decoder, Gpt, GptConfig, KvCache, Mlp, TensorDecoder,
    cpu::{CpuDecoder, WeightFormat},
    init_params, param_specs,
    params::Init,
};
use tinygpt_sampler::{RngDomain, philox_at, unit_f64};

pub(crate) mod gradients;

/// Random numbers of a test: the same on every run and machine.
pub(crate) struct Random {
    seed: u64,
    drawn: u64,
}

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed, drawn: 0 }
    }

    /// Uniform in [0, 1).
    pub(crate) fn unit(&mut self) -> f64 {
        self.drawn += 1;
        let [low, high, ..] = philox_at(self.seed, RngDomain::Noise, self.drawn, u32::MAX);
        unit_f64(low, high)
    }

    /// Uniform in `[-1, 1)`.
    pub(crate) fn signed(&mut self) -> f64 {
        2.0 * self.unit() - 1.0
    }

    /// Uniform among `from..=to`.
    pub(crate) fn between(&mut self, from: usize, to: usize) -> usize {
        from + (self.unit() * (to - from + 1) as f64) as usize
    }

    pub(crate) fn coin(&mut self) -> bool {
        self.unit() < 0.5
    }

    pub(crate) fn tokens(&mut self, n: usize, vocab_size: usize) -> Vec<u32> {
        (0..n).map(|_| self.between(0, vocab_size - 1) as u32).collect()
    }

    pub(crate) fn values(&mut self, n: usize) -> Vec<f64> {
        (0..n).map(|_| self.signed()).collect()
    }
}

/// A shape without dropout.
pub(crate) fn shape(
    vocab_size: usize,
    block_size: usize,
    n_layer: usize,
    n_head: usize,
    head_size: usize,
) -> GptConfig {
    GptConfig {
        vocab_size,
        block_size,
        n_layer,
        n_head,
        n_embd: n_head * head_size,
        dropout: 0.0,
        bias: false,
        mlp: Mlp::Gelu,
        ..GptConfig::default()
    }
}

/// Initial weights made larger, and norms and biases moved off their ones and zeros, so that every part of the model
/// has a say in the logits and every gradient is well above rounding.
pub(crate) fn lively_params(config: &GptConfig, seed: u64) -> Vec<Vec<f32>> {
    let mut random = Random::new(seed ^ 0x5EED);
    param_specs(config)
        .iter()
        .zip(init_params(config, seed))
        .map(|(spec, values)| {
            let fan_in = spec.shape[0] as f64;
            let scale = match spec.init {
                Init::Normal(std) if spec.name.contains(".h.") => 1.5 / (std * fan_in.sqrt()),
                Init::Normal(std) => 0.3 / std,
                Init::Ones | Init::Zeros => 1.0,
            };
            let noise = match spec.init {
                Init::Normal(_) => 0.0,
                Init::Ones | Init::Zeros => 0.3,
            };
            values.into_iter().map(|x| (f64::from(x) * scale + noise * random.signed()) as f32).collect()
        })
        .collect()
}

/// `(rows, T)` ids.
pub(crate) fn ids(rows: &[Vec<u32>]) -> Tensor {
    Tensor::from_vec(rows.concat(), (rows.len(), rows[0].len()), &Device::Cpu).unwrap()
}

/// Logits of [`Gpt::forward`], `[row][position][token]`.
pub(crate) fn uncached(gpt: &Gpt, rows: &[Vec<u32>]) -> Vec<Vec<Vec<f32>>> {
    gpt.forward(&ids(rows), None).unwrap().to_vec3().unwrap()
}

/// Logits of [`Gpt::forward_cached`], `[row][position][token]`.
pub(crate) fn cached(gpt: &Gpt, rows: &[Vec<u32>], cache: &mut KvCache) -> Vec<Vec<Vec<f32>>> {
    gpt.forward_cached(&ids(rows), cache).unwrap().to_vec3().unwrap()
}

/// The largest difference over the largest value of the reference.
pub(crate) fn relative_error(got: &[f32], reference: &[f32]) -> f64 {
    assert_eq!(got.len(), reference.len());
    let mut difference = 0.0f64;
    let mut largest = 0.0f64;
    for (&a, &b) in got.iter().zip(reference) {
        assert!(a.is_finite() && b.is_finite(), "{a} against {b}");
        difference = difference.max((f64::from(a) - f64::from(b)).abs());
        largest = largest.max(f64::from(b).abs());
    }
    difference / largest
}

/// The lowest index among the largest values.
pub(crate) fn arg_max(logits: &[f32]) -> u32 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    logits.iter().position(|&x| x == largest).unwrap() as u32
}

/// A decoder that the tests open.
pub(crate) trait Tested: Decoder + Sized {
    fn open(config: &GptConfig, params: Vec<Vec<f32>>, window: ContextPolicy) -> tinygpt_model::Result<Self>;
}

impl Tested for TensorDecoder {
    fn open(config: &GptConfig, params: Vec<Vec<f32>>, window: ContextPolicy) -> tinygpt_model::Result<Self> {
        Self::new(config, &params, window, DType::F32, &Device::Cpu)
    }
}

impl Tested for CpuDecoder<'static> {
    fn open(config: &GptConfig, params: Vec<Vec<f32>>, window: ContextPolicy) -> tinygpt_model::Result<Self> {
        // Small, and a test ends soon.
        let params: Vec<&[f32]> = params.into_iter().map(|values| &*values.leak()).collect();
        Self::new(config, &params, window, WeightFormat::F32)
    }
}

/// Every test of both decoders.
#[allow(unused_macros, reason = "each test file uses a part")]
macro_rules! for_each_decoder {
    ($($test:ident),* $(,)?) => {
        mod tensor_ops {
            $(#[test] fn $test() { super::$test::<tinygpt_model::TensorDecoder>() })*
        }
        mod cpu {
            $(#[test] fn $test() { super::$test::<tinygpt_model::cpu::CpuDecoder<'static>>() })*
        }
    };
}
#[allow(unused_imports, reason = "each test file uses a part")]
pub(crate) use for_each_decoder;
