//! Texts that are decoded side by side have, bit by bit, the logits that each has alone, whatever the order in which they join,
//! pause and leave.

use crate::common::{Random, lively_params, shape};
use tinygpt_model::{
    BatchDecoder, ContextPolicy, Decoder, Device, GptConfig, Mlp, ModelError, NextLogits,
    batch_decode::LoneDecoders,
    checkpoint::open_batch_decoder,
    config::{Norm, Position},
    cpu::{CpuBatchDecoder, CpuDecoder, DecodeFormats, KvCacheFormat, WeightFormat},
};

const POLICIES: [ContextPolicy; 2] = [ContextPolicy::Slide, ContextPolicy::Half];

/// GPT-2's network, one with uneven sizes, and Qwen3's with heads of keys and values that serve several heads of queries.
fn shapes() -> [GptConfig; 3] {
    let qwen = GptConfig {
        norm: Norm::Rms,
        position: Position::Rope,
        qk_norm: true,
        mlp: Mlp::Swiglu,
        n_kv_head: 2,
        ..shape(70, 18, 3, 4, 16)
    };
    [GptConfig { bias: true, ..shape(65, 24, 2, 4, 16) }, shape(33, 7, 1, 1, 20), qwen]
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|x| x.to_bits()).collect()
}

/// A text: a prompt, and the tokens that follow it whatever the logits say.
#[derive(Clone)]
struct Text {
    prompt: Vec<u32>,
    tokens: Vec<u32>,
}

impl Text {
    fn random(random: &mut Random, config: &GptConfig) -> Self {
        let prompt = random.between(1, config.block_size + 3);
        let tokens = random.between(0, config.block_size + 4);
        Self { prompt: random.tokens(prompt, config.vocab_size), tokens: random.tokens(tokens, config.vocab_size) }
    }

    /// The bits of the logits behind the prompt and each token, from a decoder of its own.
    fn alone(&self, decoder: &mut dyn Decoder) -> Vec<Vec<u32>> {
        let mut all = vec![bits(&decoder.start(&self.prompt, 1).unwrap().to_host().unwrap())];
        for &token in &self.tokens {
            all.push(bits(&decoder.step(&[token]).unwrap().to_host().unwrap()));
        }
        all
    }
}

/// A text in a slot.
struct Running {
    text: usize,
    told: Vec<Vec<u32>>,
    next: Next,
}

#[derive(PartialEq)]
enum Next {
    Token,
    Step,
    Prompt,
}

/// Decodes texts in slots in an order that a seed decides: texts begin late, pause, are interrupted in their prompts and begin
/// in slots that others left. Returns the logits' bits of each, and the largest number of texts in one step.
fn side_by_side(decoder: &mut dyn BatchDecoder, texts: &[Text], random: &mut Random) -> (Vec<Vec<Vec<u32>>>, usize) {
    let v = decoder.vocab_size();
    let mut slots: Vec<Option<Running>> = (0..decoder.slots()).map(|_| None).collect();
    let mut finished = vec![Vec::new(); texts.len()];
    let (mut waiting, mut most) = (0, 0);
    while waiting < texts.len() || slots.iter().any(Option::is_some) {
        // New texts.
        for (slot, running) in slots.iter_mut().enumerate() {
            if running.is_none() && waiting < texts.len() && random.unit() < 0.4 {
                decoder.begin(slot, &texts[waiting].prompt).unwrap();
                *running = Some(Running { text: waiting, told: Vec::new(), next: Next::Prompt });
                waiting += 1;
            }
        }
        // A part of the work of a prompt; mostly, that of the same slot as before.
        let in_prompt = slots.iter().position(|slot| slot.as_ref().is_some_and(|text| text.next == Next::Prompt));
        if let Some(first) = in_prompt {
            let slot = if random.unit() < 0.1 { random.between(0, slots.len() - 1) } else { first };
            if let Some(running) = slots[slot].as_mut().filter(|text| text.next == Next::Prompt)
                && let Some(logits) = decoder.prompt_part(slot).unwrap()
            {
                running.told.push(bits(logits));
                running.next = Next::Token;
            }
        }
        // Tokens, and the ends of texts.
        for (slot, place) in slots.iter_mut().enumerate() {
            let Some(running) = place.as_mut().filter(|text| text.next == Next::Token) else { continue };
            let Some(&token) = texts[running.text].tokens.get(running.told.len() - 1) else {
                finished[running.text] = std::mem::take(&mut running.told);
                decoder.release(slot);
                *place = None;
                continue;
            };
            if random.unit() < 0.8 {
                running.next = match decoder.append(slot, token).unwrap() {
                    NextLogits::Step => Next::Step,
                    NextLogits::Prompt => Next::Prompt,
                };
            }
        }
        // A step of some of them, in any order.
        let waits = |slot: &usize| slots[*slot].as_ref().is_some_and(|text| text.next == Next::Step);
        let mut step: Vec<usize> = (0..slots.len()).filter(waits).filter(|_| random.unit() < 0.9).collect();
        if random.coin() {
            step.reverse();
        }
        most = most.max(step.len());
        let logits = decoder.step(&step).unwrap();
        assert_eq!(logits.len(), step.len() * v);
        for (&slot, logits) in step.iter().zip(logits.chunks(v)) {
            let running = slots[slot].as_mut().unwrap();
            running.told.push(bits(logits));
            running.next = Next::Token;
        }
    }
    (finished, most)
}

/// Holds texts in slots to the same ones alone. Returns the largest number of texts in one step.
fn compare(
    (config, policy, format): (&GptConfig, ContextPolicy, DecodeFormats),
    slots: usize,
    texts: &[Text],
    seed: u64,
) -> usize {
    let params = lively_params(config, seed);
    let params: Vec<&[f32]> = params.iter().map(Vec::as_slice).collect();
    let mut batch = CpuBatchDecoder::new(config, &params, policy, format, slots).unwrap();
    let (together, most) = side_by_side(&mut batch, texts, &mut Random::new(seed + 1000));
    let mut lone = CpuDecoder::new(config, &params, policy, format).unwrap();
    for (i, (text, together)) in texts.iter().zip(&together).enumerate() {
        assert!(text.alone(&mut lone) == *together, "text {i} of seed {seed}: {config:?}, {policy:?}, {format:?}");
    }
    // The comparison would see a difference.
    assert!(together.iter().flatten().any(|logits| *logits != together[0][0]));
    most
}

fn random_texts(config: &GptConfig, count: usize, seed: u64) -> Vec<Text> {
    let mut random = Random::new(seed);
    (0..count).map(|_| Text::random(&mut random, config)).collect()
}

fn check(config: &GptConfig, policy: ContextPolicy, format: DecodeFormats, slots: usize, count: usize, seed: u64) {
    let most = compare((config, policy, format), slots, &random_texts(config, count, seed), seed);
    assert!(most * 2 > slots, "{most} texts at a time in {slots} slots");
}

#[test]
fn texts_have_the_same_bits_side_by_side_as_alone_in_any_order_of_joining_and_leaving() {
    for (seed, config) in (1..).zip(shapes()) {
        for policy in POLICIES {
            let cache_in_bf16 = DecodeFormats { kv_cache: KvCacheFormat::Bf16, ..WeightFormat::Int8.into() };
            let of_weights = [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Int8, WeightFormat::Int4];
            for format in of_weights.map(DecodeFormats::from).into_iter().chain([cache_in_bf16]) {
                check(&config, policy, format, 5, 16, seed);
            }
        }
    }
}

#[test]
fn texts_of_every_number_of_rows_have_the_same_bits() {
    let config = &shapes()[2];
    for slots in [1, 2, 3, 9, 17] {
        check(config, ContextPolicy::Half, DecodeFormats::default(), slots, 2 * slots + 2, 20 + slots as u64);
    }
}

/// From 64 rows on, products go in tiles.
#[test]
fn seventy_texts_in_one_step_have_the_same_bits_as_alone() {
    let config = shape(40, 12, 2, 2, 8);
    let params = lively_params(&config, 7);
    let params: Vec<&[f32]> = params.iter().map(Vec::as_slice).collect();
    let mut random = Random::new(7);
    let mut text = || Text { prompt: random.tokens(3, 40), tokens: random.tokens(5, 40) };
    let texts: Vec<Text> = (0..70).map(|_| text()).collect();
    let slots: Vec<usize> = (0..70).collect();
    for format in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Int8, WeightFormat::Int4] {
        let mut batch = CpuBatchDecoder::new(&config, &params, ContextPolicy::Half, format, 70).unwrap();
        let mut lone = CpuDecoder::new(&config, &params, ContextPolicy::Half, format).unwrap();
        let expected: Vec<_> = texts.iter().map(|text| text.alone(&mut lone)).collect();
        for (slot, text) in texts.iter().enumerate() {
            batch.begin(slot, &text.prompt).unwrap();
            while batch.prompt_part(slot).unwrap().is_none() {}
        }
        for n in 0..5 {
            for (slot, text) in texts.iter().enumerate() {
                batch.append(slot, text.tokens[n]).unwrap();
            }
            let logits = batch.step(&slots).unwrap();
            for (row, logits) in logits.chunks(40).enumerate() {
                assert!(bits(logits) == expected[row][n + 1], "row {row}, step {n}, {format:?}");
            }
        }
    }
}

#[test]
fn texts_with_the_prompt_of_another_have_the_bits_that_they_have_alone() {
    for (seed, config) in (1..).zip(shapes()) {
        for policy in POLICIES {
            let mut texts = random_texts(&config, 30, seed);
            // The prompt of the text before, or of the one before that.
            for text in (2..texts.len()).filter(|text| text % 3 > 0) {
                texts[text].prompt = texts[text - 1 - text % 2].prompt.clone();
            }
            let most = compare((&config, policy, DecodeFormats::default()), 4, &texts, seed);
            assert!(most > 1, "texts side by side");
        }
    }
}

/// The logits' bits behind the prompt of a slot, and the parts that its work had.
fn prompt_work(batch: &mut CpuBatchDecoder<'_>, slot: usize) -> (Vec<u32>, usize) {
    for part in 1.. {
        if let Some(logits) = batch.prompt_part(slot).unwrap() {
            return (bits(logits), part);
        }
    }
    unreachable!("the work of a prompt ends")
}

#[test]
fn the_prompt_of_several_samples_is_computed_once_and_their_texts_are_as_alone() {
    let config = shape(300, 160, 2, 4, 64);
    let params = lively_params(&config, 3);
    let params: Vec<&[f32]> = params.iter().map(Vec::as_slice).collect();
    let mut random = Random::new(5);
    let prompt = random.tokens(150, 300);
    let mut text = |prompt: &[u32]| Text { prompt: prompt.to_vec(), tokens: random.tokens(4, 300) };
    let texts: Vec<Text> = (0..4).map(|_| text(&prompt)).collect();
    let other = text(&prompt[1..]);
    let mut lone = CpuDecoder::new(&config, &params, ContextPolicy::Half, WeightFormat::F32).unwrap();
    let mut batch = CpuBatchDecoder::new(&config, &params, ContextPolicy::Half, WeightFormat::F32, 3).unwrap();
    let mut parts_of = |batch: &mut CpuBatchDecoder<'_>, slot: usize, text: &Text| {
        batch.begin(slot, &text.prompt).unwrap();
        let (behind_prompt, parts) = prompt_work(batch, slot);
        let mut told = vec![behind_prompt];
        for &token in &text.tokens {
            assert!(batch.append(slot, token).unwrap() == NextLogits::Step);
            told.push(bits(batch.step(&[slot]).unwrap()));
        }
        assert!(told == text.alone(&mut lone), "slot {slot}");
        parts
    };
    assert!(parts_of(&mut batch, 0, &texts[0]) > 1, "a prompt of several parts");
    // Beside the first, which has gone on, and behind its end.
    assert_eq!(parts_of(&mut batch, 1, &texts[1]), 1);
    batch.release(0);
    assert_eq!(parts_of(&mut batch, 2, &texts[2]), 1);
    assert_eq!(parts_of(&mut batch, 0, &texts[3]), 1);
    // Another prompt is computed, also where the caches of the one before are.
    batch.release(0);
    assert!(parts_of(&mut batch, 0, &other) > 1);
    batch.release(1);
    assert!(parts_of(&mut batch, 1, &texts[1]) > 1);
    // Half of one is computed over the caches of the other, and the other computed again.
    for slot in [0, 1] {
        batch.release(slot);
    }
    batch.begin(1, &other.prompt).unwrap();
    assert!(batch.prompt_part(1).unwrap().is_none());
    batch.release(1);
    assert!(parts_of(&mut batch, 1, &texts[0]) > 1);
}

/// Matrices large enough that threads share them, and prompts of several parts.
#[test]
fn the_work_of_a_large_prompt_pauses_and_others_step_meanwhile() {
    let config = shape(300, 160, 2, 4, 64);
    let params = lively_params(&config, 3);
    let params: Vec<&[f32]> = params.iter().map(Vec::as_slice).collect();
    let mut random = Random::new(3);
    let texts = [8, 160].map(|n| Text { prompt: random.tokens(n, 300), tokens: random.tokens(12, 300) });
    let open = || CpuDecoder::new(&config, &params, ContextPolicy::Slide, WeightFormat::F32).unwrap();
    let expected = texts.clone().map(|text| text.alone(&mut open()));

    let mut batch = CpuBatchDecoder::new(&config, &params, ContextPolicy::Slide, WeightFormat::F32, 2).unwrap();
    batch.begin(0, &texts[0].prompt).unwrap();
    let mut first = loop {
        if let Some(logits) = batch.prompt_part(0).unwrap() {
            break vec![bits(logits)];
        }
    };
    batch.begin(1, &texts[1].prompt).unwrap();
    let (mut parts, mut second) = (0, None);
    for &token in &texts[0].tokens {
        if second.is_none() {
            parts += 1;
            second = batch.prompt_part(1).unwrap().map(bits);
        }
        assert_eq!(batch.append(0, token).unwrap(), NextLogits::Step);
        first.push(bits(batch.step(&[0]).unwrap()));
    }
    assert!(parts > 3, "{parts} parts");
    assert!(first == expected[0]);
    assert!(second.unwrap() == expected[1][0]);
}

/// What a text left in the cache of its slot is not seen by the next, not even a NaN.
#[test]
fn a_slot_of_a_text_with_nan_is_as_good_as_new() {
    let config = &shapes()[2];
    let mut params = lively_params(config, 5);
    params[0][..config.n_embd].fill(f32::NAN); // the embedding of token 0
    let params: Vec<&[f32]> = params.iter().map(Vec::as_slice).collect();
    // One slot, which the others get after the text with NaN.
    let mut batch = CpuBatchDecoder::new(config, &params, ContextPolicy::Half, WeightFormat::F32, 1).unwrap();
    let mut random = Random::new(6);
    let without: Vec<Vec<u32>> = (0..2).map(|_| (0..9).map(|_| random.between(1, 69) as u32).collect()).collect();
    let text = |i: usize| Text { prompt: without[i][..3].to_vec(), tokens: without[i][3..].to_vec() };
    let spoilt = Text { prompt: vec![0; 18], tokens: Vec::new() };
    let (all, _) = side_by_side(&mut batch, &[spoilt, text(0), text(1)], &mut random);
    assert!(all[0][0].iter().any(|&x| f32::from_bits(x).is_nan()));
    let mut lone = CpuDecoder::new(config, &params, ContextPolicy::Half, WeightFormat::F32).unwrap();
    for i in 0..2 {
        // The head is tied to the embeddings: the logit of token 0 is NaN for everyone.
        let told = |all: &[Vec<u32>]| all.iter().map(|bits| bits[1..].to_vec()).collect::<Vec<_>>();
        assert!(told(&all[i + 1]) == told(&text(i).alone(&mut lone)));
        assert!(told(&all[i + 1]).iter().flatten().all(|&x| f32::from_bits(x).is_finite()));
    }
}

#[test]
fn a_slot_is_asked_for_what_it_can_do_or_says_what_it_waits_for() {
    let config = &shapes()[1];
    let params = lively_params(config, 1);
    let params: Vec<&[f32]> = params.iter().map(Vec::as_slice).collect();
    let open =
        || Ok(Box::new(CpuDecoder::new(config, &params, ContextPolicy::Half, WeightFormat::F32)?) as Box<dyn Decoder>);
    let mut batch = CpuBatchDecoder::new(config, &params, ContextPolicy::Half, WeightFormat::F32, 2).unwrap();
    let mut lone = LoneDecoders::new(33, 2, Box::new(open));
    for decoder in [&mut batch as &mut dyn BatchDecoder, &mut lone] {
        let said = |result: Result<(), ModelError>| match result {
            Err(ModelError::Slot { slot, reason }) => format!("{slot} {reason}"),
            other => panic!("{other:?}"),
        };
        assert_eq!(said(decoder.begin(2, &[1])), "2 does not exist");
        assert_eq!(said(decoder.prompt_part(0).map(drop)), "0 has no text");
        assert!(matches!(decoder.begin(0, &[]), Err(ModelError::EmptyPrompt)));
        assert!(matches!(decoder.begin(0, &[33]), Err(ModelError::TokenOutOfRange { id: 33, vocab_size: 33 })));
        decoder.begin(0, &[1]).unwrap();
        assert_eq!(said(decoder.begin(0, &[1])), "0 waits for the work of a prompt");
        assert_eq!(said(decoder.append(0, 1).map(drop)), "0 waits for the work of a prompt");
        while decoder.prompt_part(0).unwrap().is_none() {}
        assert_eq!(said(decoder.step(&[0]).map(drop)), "0 waits for a token");
        assert!(matches!(decoder.append(0, 33), Err(ModelError::TokenOutOfRange { .. })));
        decoder.append(0, 2).unwrap();
        assert_eq!(said(decoder.append(0, 2).map(drop)), "0 waits for a step");
        assert_eq!(said(decoder.step(&[0, 0]).map(drop)), "0 is named twice");
        assert_eq!(said(decoder.step(&[0, 1]).map(drop)), "1 has no text");
        assert_eq!(decoder.step(&[0]).unwrap().len(), 33);
        decoder.release(0);
        decoder.release(7);
        assert_eq!(said(decoder.step(&[0]).map(drop)), "0 has no text");
        decoder.begin(0, &[3]).unwrap();
    }
}

/// What runs on a GPU, on the CPU.
#[test]
fn a_decoder_for_each_text_gives_what_it_gives_alone() {
    use candle_core::DType;
    use tinygpt_model::TensorDecoder;

    let config = &shapes()[2];
    let values = lively_params(config, 8);
    let open = || {
        let decoder = TensorDecoder::new(config, &values, ContextPolicy::Half, DType::F32, &Device::Cpu)?;
        Ok(Box::new(decoder) as Box<dyn Decoder>)
    };
    let mut random = Random::new(8);
    let texts: Vec<Text> = (0..5).map(|_| Text::random(&mut random, config)).collect();
    let mut batch = LoneDecoders::new(config.vocab_size, 3, Box::new(open));
    let (together, _) = side_by_side(&mut batch, &texts, &mut random);
    for (text, together) in texts.iter().zip(&together) {
        assert!(text.alone(open().unwrap().as_mut()) == *together);
    }
}

#[test]
fn the_batch_decoder_of_the_cpu_is_the_one_that_shares_passes() {
    let config = &shapes()[1];
    let params = lively_params(config, 1);
    let params: Vec<&[f32]> = params.iter().map(Vec::as_slice).collect();
    let policy = ContextPolicy::Slide;
    let decoder = open_batch_decoder(config, &params, policy, WeightFormat::F32, (&Device::Cpu, 3)).unwrap();
    assert_eq!((decoder.slots(), decoder.vocab_size()), (3, 33));
}
