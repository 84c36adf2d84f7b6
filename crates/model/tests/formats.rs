//! Rounded weights and caches: logits near those of the model itself, from the prompt and from every later step, for any matrix.

use crate::common::{Random, lively_params, relative_error, shape};
use tinygpt_model::{
    ContextPolicy, Decoder, GptConfig,
    cpu::{CpuDecoder, DecodeFormats, KvCacheFormat, WeightFormat},
};

/// Logits behind the prompt and behind each of the tokens, of one row alone.
fn logits(config: &GptConfig, params: &[Vec<f32>], formats: impl Into<DecodeFormats>, tokens: &[u32]) -> Vec<Vec<f32>> {
    let slices: Vec<&[f32]> = params.iter().map(Vec::as_slice).collect();
    let mut decoder = CpuDecoder::new(config, &slices, ContextPolicy::Slide, formats).unwrap();
    let mut all = vec![decoder.start(&tokens[..20], 1).unwrap().to_host().unwrap().into_owned()];
    for &token in &tokens[20..] {
        all.push(decoder.step(&[token]).unwrap().to_host().unwrap().into_owned());
    }
    all
}

#[test]
fn rounded_weights_give_logits_near_those_of_the_model() {
    for config in [shape(50, 40, 2, 3, 16), GptConfig { bias: true, ..shape(33, 30, 1, 2, 20) }] {
        let params = lively_params(&config, 5);
        let tokens = Random::new(6).tokens(config.block_size + 3, config.vocab_size);
        let exact = logits(&config, &params, WeightFormat::F32, &tokens);
        for (format, tolerance) in [(WeightFormat::Bf16, 0.05), (WeightFormat::Int8, 0.1)] {
            let rounded = logits(&config, &params, format, &tokens);
            assert_ne!(rounded, exact, "{format:?}");
            for (position, (rounded, exact)) in rounded.iter().zip(&exact).enumerate() {
                let error = relative_error(rounded, exact);
                assert!(error < tolerance, "{format:?} at {position}: {error}");
            }
        }
        // Random weights of 4 bits move a product by a tenth, which two layers make more: that they are near shows in the mean.
        let rounded = logits(&config, &params, WeightFormat::Int4, &tokens);
        let errors = rounded.iter().zip(&exact).map(|(rounded, exact)| relative_error(rounded, exact));
        let mean = errors.sum::<f64>() / exact.len() as f64;
        assert!(mean < 0.5, "Int4: {mean}");
    }
}

/// Weights as they are, and keys and values in bf16.
const CACHE_IN_BF16: DecodeFormats = DecodeFormats { weights: WeightFormat::F32, kv_cache: KvCacheFormat::Bf16 };

#[test]
fn a_cache_in_bf16_gives_logits_near_those_of_the_model_behind_those_of_the_prompt_itself() {
    let config = shape(50, 40, 2, 3, 16);
    let params = lively_params(&config, 5);
    let tokens = Random::new(6).tokens(config.block_size, config.vocab_size);
    let [exact, rounded] = [DecodeFormats::default(), CACHE_IN_BF16].map(|f| logits(&config, &params, f, &tokens));
    assert_eq!(rounded[0], exact[0], "a prompt attends to what is not rounded yet");
    for (position, (rounded, exact)) in rounded.iter().zip(&exact).enumerate().skip(1) {
        assert_ne!(rounded, exact, "{position}");
        let error = relative_error(rounded, exact);
        assert!(error < 0.02, "{position}: {error}");
    }
}

#[test]
fn a_weight_that_is_no_number_shows_in_every_format() {
    let config = shape(50, 40, 2, 3, 16);
    let mut params = lively_params(&config, 5);
    params[3][7] = f32::NAN;
    for format in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Int8, WeightFormat::Int4] {
        let logits = logits(&config, &params, format, &[1; 21]);
        assert!(logits.iter().flatten().any(|x| x.is_nan()), "{format:?}");
    }
}

/// Different code multiplies one row, several, and 64 or more, which are computed in tiles (`MIN_TILED_ROWS` in
/// `cpu/decode/matrix.rs`), and others the rounded weights of 8 and 4 bits. The counts here reach each, and both sides of the border.
#[test]
fn a_row_has_the_bits_it_has_alone_among_any_number_of_rows() {
    let config = shape(50, 40, 2, 3, 16);
    let params = lively_params(&config, 5);
    let slices: Vec<&[f32]> = params.iter().map(Vec::as_slice).collect();
    let of_weights = [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Int8, WeightFormat::Int4];
    for format in of_weights.map(DecodeFormats::from).into_iter().chain([CACHE_IN_BF16]) {
        let open = || CpuDecoder::new(&config, &slices, ContextPolicy::Slide, format).unwrap();
        for rows in [1, 2, 17, 63, 64, 65] {
            let (mut many, mut one) = (open(), open());
            let mut random = Random::new(9);
            many.start(&[1, 2, 3], rows).unwrap();
            one.start(&[1, 2, 3], 1).unwrap();
            for step in 0..10 {
                let tokens = random.tokens(rows, config.vocab_size);
                let among = many.step(&tokens).unwrap().to_host().unwrap()[(rows - 1) * 50..].to_vec();
                let alone = one.step(&tokens[rows - 1..]).unwrap().to_host().unwrap();
                assert_eq!(alone, among, "{format:?}, the last of {rows} rows at step {step}");
            }
        }
    }
}
