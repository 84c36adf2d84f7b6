//! What the CPU computes has the same bits on every processor: with any vector instructions, on x86-64 and on aarch64. The
//! hashes are those of all of them; `scripts/check-neon.sh` runs these tests on an emulated aarch64.
//!
//! The C library's exponentials, logarithms, sines and cosines go into the bits, and those of musl, macOS and Windows are
//! others.
#![cfg(all(target_os = "linux", target_env = "gnu"))]

use crate::common::{Random, shape};
use tinygpt_model::{
    ContextPolicy, Decoder, Device, Dropout, GptConfig, Mlp,
    config::{Norm, Position},
    cpu::{BatchRef, CpuDecoder, CpuGpt, CpuPrecision, DecodeFormats, KvCacheFormat, RowDropout, WeightFormat},
    param_specs,
};

/// GPT-2's network and what came later, at sizes that are no multiples of a vector or a tile.
fn shapes() -> [(&'static str, GptConfig); 2] {
    let gpt2 = GptConfig { bias: true, dropout: 0.1, ..shape(67, 75, 2, 3, 36) };
    let modern = GptConfig {
        norm: Norm::Rms,
        position: Position::Rope,
        qk_norm: true,
        mlp: Mlp::Swiglu,
        n_kv_head: 2,
        logit_cap: 12.0,
        ..shape(50, 70, 2, 4, 40)
    };
    [("gpt2", gpt2), ("modern", modern)]
}

/// Weights that need no function of a C library.
fn params(config: &GptConfig) -> Vec<Vec<f32>> {
    let mut random = Random::new(3);
    let values = |n: usize, around: f64, random: &mut Random| {
        random.values(n).into_iter().map(|x| (around + 0.2 * x) as f32).collect()
    };
    param_specs(config)
        .iter()
        .map(|spec| values(spec.len(), if spec.decays() { 0.0 } else { 0.5 }, &mut random))
        .collect()
}

/// The 64 bits of FNV-1a.
fn hash<'a>(values: impl IntoIterator<Item = &'a f32>) -> u64 {
    let bytes = values.into_iter().flat_map(|x| x.to_bits().to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Three updates of plain gradient descent: the hash of the losses and of all weights afterwards.
fn trained(config: &GptConfig, precision: CpuPrecision) -> u64 {
    let mut gpt = CpuGpt::new(config, precision, &params(config)).unwrap();
    let (mut random, mut losses) = (Random::new(5), Vec::new());
    for step in 0..3 {
        let (rows, cols) = (3, config.block_size);
        let [ids, targets] = [(); 2].map(|()| random.tokens(rows * cols, config.vocab_size));
        let dropout = Dropout::new(config.dropout, 7, step, &Device::Cpu);
        let masks = |row| (config.dropout > 0.0).then(|| RowDropout { dropout: dropout.clone(), row });
        losses.push(gpt.forward_backward(BatchRef { ids: &ids, targets: &targets, cols }, &masks).unwrap() as f32);
        gpt.optimizer_step(|_, params, grads| {
            params.iter_mut().zip(&*grads).for_each(|(param, grad)| *param -= 0.1 * grad);
            grads.fill(0.0);
        });
    }
    assert!(losses.iter().chain(gpt.params()).all(|x| x.is_finite()), "{losses:?}");
    hash(losses.iter().chain(gpt.params()))
}

/// The hash of the logits of a prompt that is computed in tiles, and of the steps behind it, beyond the end of the context.
fn decoded(config: &GptConfig, formats: DecodeFormats) -> u64 {
    let (params, mut random) = (params(config), Random::new(11));
    let slices: Vec<&[f32]> = params.iter().map(Vec::as_slice).collect();
    let mut decoder = CpuDecoder::new(config, &slices, ContextPolicy::Half, formats).unwrap();
    let mut all = Vec::new();
    let prompt = random.tokens(config.block_size - 3, config.vocab_size);
    all.extend_from_slice(&decoder.start(&prompt, 2).unwrap().to_host().unwrap());
    for _ in 0..6 {
        let tokens = random.tokens(2, config.vocab_size);
        all.extend_from_slice(&decoder.step(&tokens).unwrap().to_host().unwrap());
    }
    assert!(all.iter().all(|x| x.is_finite()));
    hash(&all)
}

#[test]
fn training_and_decoding_have_the_same_bits_on_every_processor() {
    let mut found = String::new();
    for (name, config) in shapes() {
        for precision in [CpuPrecision::F32, CpuPrecision::Bf16] {
            found += &format!("{name}, trained in {precision:?}: {:016x}\n", trained(&config, precision));
        }
        for format in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Int8, WeightFormat::Int4] {
            found += &format!("{name}, decoded in {format:?}: {:016x}\n", decoded(&config, format.into()));
        }
        let cache_in_bf16 = DecodeFormats { kv_cache: KvCacheFormat::Bf16, ..DecodeFormats::default() };
        found += &format!("{name}, decoded with a cache in Bf16: {:016x}\n", decoded(&config, cache_in_bf16));
    }
    let expected = "\
gpt2, trained in F32: a77fde0860766d7f
gpt2, trained in Bf16: a8c3f909e095e266
gpt2, decoded in F32: 1906a37962f5b0a6
gpt2, decoded in Bf16: b731ce7b07d9fd1e
gpt2, decoded in Int8: 338685c48273ff82
gpt2, decoded in Int4: c05e9a7788beabea
gpt2, decoded with a cache in Bf16: 051d744c04d2cecc
modern, trained in F32: 57609851f54f2654
modern, trained in Bf16: 9abd7dd3cf8f22a3
modern, decoded in F32: d04b5023d4dc3d89
modern, decoded in Bf16: aeaed57eb36ed23b
modern, decoded in Int8: f9e7cd33308adcdc
modern, decoded in Int4: 8e38a2238b7c632b
modern, decoded with a cache in Bf16: 73a166c43d054219
";
    assert_eq!(found, expected);
}
