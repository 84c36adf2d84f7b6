//! Losses in sliding windows, of a GPT.

use tinygpt_model::{
    Device, Gpt, GptConfig, init_params,
    language_model::{cross_entropy_of, open_language_model},
    params::to_tensors,
};
use tinygpt_trainer::{
    data::Split,
    sliding::{Sliding, sliding_loss},
};

/// The sum of the losses of all tokens but the first: that of token `i` from the last position of a forward pass of its own,
/// over the tokens that its window holds.
fn by_hand(config: &GptConfig, params: &[Vec<f32>], text: &[u32], Sliding { context, stride }: Sliding) -> f64 {
    let gpt = Gpt::new(config, &to_tensors(config, params, candle_core::DType::F32, &Device::Cpu).unwrap()).unwrap();
    let loss = |i: usize| {
        let seen = if i <= context { i } else { context - stride + (i - context - 1) % stride + 1 };
        let ids = candle_core::Tensor::from_slice(&text[i - seen..i], (1, seen), &Device::Cpu).unwrap();
        let logits: Vec<Vec<f32>> = gpt.forward(&ids, None).unwrap().squeeze(0).unwrap().to_vec2().unwrap();
        cross_entropy_of(&logits[seen - 1], text[i])
    };
    (1..text.len()).map(loss).sum()
}

#[test]
fn every_stride_is_the_direct_computation_on_texts_of_any_length() {
    let config = GptConfig { vocab_size: 11, block_size: 9, n_layer: 2, n_head: 2, n_embd: 16, ..GptConfig::default() };
    // Large weights: a model that has an opinion.
    let params: Vec<Vec<f32>> =
        init_params(&config, 3).into_iter().map(|values| values.into_iter().map(|x| 5.0 * x).collect()).collect();
    let text: Vec<u32> = (0..50u32).map(|i| (i * i + 3 * i / 7) % 11).collect();
    for len in [2, 3, 9, 10, 11, 50] {
        for (context, stride) in [(1, 1), (9, 1), (9, 4), (9, 9), (5, 5), (7, 3)] {
            let (text, sliding) = (&text[..len], Sliding { context, stride });
            let mut model = open_language_model(&config, &params, &Device::Cpu).unwrap();
            let split = Split::whole(text.to_vec().into(), None);
            let loss = sliding_loss(model.as_mut(), &split, sliding, &mut |_, _| Ok(())).unwrap().evaluation;
            let expected = by_hand(&config, &params, text, sliding) / (len - 1) as f64;
            assert_eq!(loss.tokens, len as u64 - 1);
            assert!((loss.loss - expected).abs() < 1e-5, "{len} {sliding:?}: {} {expected}", loss.loss);
        }
    }
    let one = Split::whole(vec![3].into(), None);
    let mut model = open_language_model(&config, &params, &Device::Cpu).unwrap();
    let error = sliding_loss(model.as_mut(), &one, Sliding { context: 9, stride: 9 }, &mut |_, _| Ok(())).unwrap_err();
    assert!(error.to_string().contains("has 1 tokens"), "{error}");
}
