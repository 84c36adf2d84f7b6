//! The cache changes nothing but the speed: logits and greedy text with it and without it, inside the context, at its
//! end and far beyond.

use crate::common::{
    Random, Tested, arg_max, cached, for_each_decoder, ids, lively_params, relative_error, shape, uncached,
};
use candle_core::{DType, Device, Tensor};
use tinygpt_model::{
    ContextPolicy, Decoder, Gpt, GptConfig, Logits, Mlp, ModelError,
    config::{Norm, Position},
    params::to_tensors,
};

const CPU: Device = Device::Cpu;
const TOLERANCE: f64 = 1e-4;

fn model(config: &GptConfig, seed: u64) -> Gpt {
    Gpt::new(config, &to_tensors(config, &lively_params(config, seed), DType::F32, &CPU).unwrap()).unwrap()
}

for_each_decoder!(
    greedy_text_is_the_same_with_and_without_the_cache_far_beyond_the_context,
    greedy_text_is_the_same_for_small_contexts_and_prompts_around_their_size,
    rows_with_texts_of_their_own_agree_with_the_uncached_model_beyond_the_context,
    starting_again_forgets_the_earlier_text,
    the_decoder_names_what_is_wrong_and_goes_on_afterwards,
    parameters_that_do_not_fit_the_shape_are_refused_by_name,
);

fn decoder<D: Tested>(config: &GptConfig, seed: u64, window: ContextPolicy) -> D {
    D::open(config, lively_params(config, seed), window).unwrap()
}

fn random_shape(random: &mut Random) -> GptConfig {
    let (n_head, head_size) = (random.between(1, 4), random.between(1, 9));
    // One channel has nothing left after its mean is taken.
    let head_size = if n_head == 1 { head_size.max(2) } else { head_size };
    GptConfig {
        bias: random.coin(),
        mlp: if random.coin() { Mlp::Gelu } else { Mlp::GeluNew },
        norm: if random.coin() { Norm::Layer } else { Norm::Rms },
        position: if random.coin() && head_size % 2 == 0 { Position::Rope } else { Position::Learned },
        rope_theta: 100.0,
        tie_embeddings: random.coin(),
        head_size: if random.coin() { head_size + 2 } else { 0 },
        norm_eps: if random.coin() { 0.01 } else { 0.0 },
        ..shape(random.between(2, 40), random.between(1, 20), random.between(1, 3), n_head, head_size)
    }
}

/// Random token rows of one length.
fn random_rows(random: &mut Random, rows: usize, t: usize, vocab_size: usize) -> Vec<Vec<u32>> {
    (0..rows).map(|_| random.tokens(t, vocab_size)).collect()
}

/// The columns `from..to` of token rows.
fn columns(rows: &[Vec<u32>], from: usize, to: usize) -> Vec<Vec<u32>> {
    rows.iter().map(|row| row[from..to].to_vec()).collect()
}

/// Feeds the rows in chunks of these lengths and compares every position of every row.
fn assert_chunks_agree(gpt: &Gpt, rows: &[Vec<u32>], chunks: &[usize]) {
    let label = format!("{:?}, {} rows, chunks {chunks:?}", gpt.config(), rows.len());
    let reference = uncached(gpt, rows);
    let mut cache = gpt.new_cache(rows.len()).unwrap();
    assert_eq!(cache.rows(), rows.len());
    assert!(cache.is_empty());
    let mut at = 0;
    for &chunk in chunks {
        let logits = cached(gpt, &columns(rows, at, at + chunk), &mut cache);
        for (row, (got, expected)) in logits.iter().zip(&reference).enumerate() {
            for (position, got) in got.iter().enumerate() {
                let error = relative_error(got, &expected[at + position]);
                assert!(error < TOLERANCE, "row {row}, position {}: {error:.1e}: {label}", at + position);
            }
        }
        at += chunk;
        assert_eq!(cache.len(), at);
    }
}

#[test]
fn cached_and_uncached_logits_agree_at_every_position_on_random_shapes() {
    let mut random = Random::new(10);
    for seed in 0..40 {
        let config = random_shape(&mut random);
        let gpt = model(&config, seed);
        let (b, t) = (random.between(1, 5), random.between(1, config.block_size));
        let rows = random_rows(&mut random, b, t, config.vocab_size);
        // A prompt, then token by token.
        let prompt = random.between(1, t);
        let mut chunks = vec![prompt];
        chunks.resize(1 + t - prompt, 1);
        assert_chunks_agree(&gpt, &rows, &chunks);
        // The prompt itself in chunks.
        let mut chunks = Vec::new();
        let mut left = t;
        while left > 0 {
            chunks.push(random.between(1, left));
            left -= chunks[chunks.len() - 1];
        }
        assert_chunks_agree(&gpt, &rows, &chunks);
    }
}

#[test]
fn a_full_context_in_one_piece_and_in_single_tokens() {
    for (bias, n_head, head_size, block_size) in [(false, 4, 8, 33), (true, 1, 16, 64), (true, 5, 3, 1)] {
        let config = GptConfig { bias, ..shape(29, block_size, 2, n_head, head_size) };
        let gpt = model(&config, 3);
        let rows = random_rows(&mut Random::new(4), 3, block_size, 29);
        assert_chunks_agree(&gpt, &rows, &[block_size]);
        assert_chunks_agree(&gpt, &rows, &vec![1; block_size]);
    }
}

#[test]
fn the_last_position_alone_has_the_logits_it_has_among_all() {
    let config = GptConfig { bias: true, ..shape(31, 12, 2, 3, 5) };
    let gpt = model(&config, 5);
    let rows = random_rows(&mut Random::new(6), 4, 12, 31);
    let reference = uncached(&gpt, &rows);
    let mut cache = gpt.new_cache(4).unwrap();
    let mut at = 0;
    for chunk in [5, 1, 4, 2] {
        let last = gpt.forward_last(&ids(&columns(&rows, at, at + chunk)), &mut cache).unwrap();
        at += chunk;
        assert_eq!(last.dims(), &[4, 31]);
        for (got, expected) in last.to_vec2::<f32>().unwrap().iter().zip(&reference) {
            assert!(relative_error(got, &expected[at - 1]) < TOLERANCE);
        }
    }
}

/// Later tokens have no influence on earlier positions.
#[test]
fn logits_depend_on_earlier_tokens_only() {
    let config = shape(17, 9, 2, 2, 4);
    let gpt = model(&config, 7);
    let base = Random::new(8).tokens(9, 17);
    let reference = uncached(&gpt, std::slice::from_ref(&base));
    for changed in 0..9 {
        let mut row = base.clone();
        row[changed] = (row[changed] + 1) % 17;
        let logits = uncached(&gpt, &[row]);
        for position in 0..9 {
            let same = logits[0][position] == reference[0][position];
            assert_eq!(same, position < changed, "token {changed} changed, position {position}");
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Text
// ---------------------------------------------------------------------------------------------------------------------

/// Which tokens are the context of the next one, by definition.
fn context(tokens: &[u32], prompt: usize, block_size: usize, window: ContextPolicy) -> &[u32] {
    let start = match window {
        ContextPolicy::Slide => tokens.len().saturating_sub(block_size),
        ContextPolicy::Half => {
            // The context begins with the end of the prompt and grows until it has block_size tokens; the token that
            // does not fit any more leaves its last half, that token included.
            let half = (block_size / 2).max(1);
            let mut start = prompt.saturating_sub(block_size);
            for end in prompt..=tokens.len() {
                if end - start > block_size {
                    start = end - half;
                }
            }
            start
        }
    };
    &tokens[start..]
}

/// Greedy text without any cache: the whole context through [`Gpt::forward`] for every token.
fn plain_greedy(gpt: &Gpt, prompt: &[u32], n: usize, window: ContextPolicy) -> (Vec<u32>, Vec<Vec<f32>>) {
    let (mut tokens, mut all) = (prompt.to_vec(), Vec::new());
    for _ in 0..n {
        let context = context(&tokens, prompt.len(), gpt.config().block_size, window);
        let logits = uncached(gpt, &[context.to_vec()])[0].pop().unwrap();
        tokens.push(arg_max(&logits));
        all.push(logits);
    }
    (tokens.split_off(prompt.len()), all)
}

/// Greedy text and its logits from the decoder, for `rows` equal rows.
fn decoded_greedy(decoder: &mut dyn Decoder, prompt: &[u32], n: usize, rows: usize) -> (Vec<u32>, Vec<Vec<f32>>) {
    let vocab_size = decoder.vocab_size();
    let (mut tokens, mut all) = (Vec::new(), Vec::new());
    let mut logits = decoder.start(prompt, rows).unwrap().to_host().unwrap().into_owned();
    loop {
        assert_eq!(logits.len(), rows * vocab_size);
        for row in logits.chunks(vocab_size) {
            assert_eq!(row, &logits[..vocab_size], "equal rows have equal logits");
        }
        logits.truncate(vocab_size);
        tokens.push(arg_max(&logits));
        all.push(logits);
        if tokens.len() == n {
            return (tokens, all);
        }
        logits = decoder.step(&vec![tokens[tokens.len() - 1]; rows]).unwrap().to_host().unwrap().into_owned();
    }
}

fn assert_text_agrees<D: Tested>(
    config: &GptConfig,
    seed: u64,
    prompt: &[u32],
    n: usize,
    rows: usize,
    window: ContextPolicy,
) {
    let label = format!("{config:?}, prompt of {}, {rows} rows, {window:?}", prompt.len());
    let (text, logits) = decoded_greedy(&mut decoder::<D>(config, seed, window), prompt, n, rows);
    let (expected, reference) = plain_greedy(&model(config, seed), prompt, n, window);
    for (position, (got, reference)) in logits.iter().zip(&reference).enumerate() {
        let error = relative_error(got, reference);
        assert!(error < TOLERANCE, "token {position}: {error:.1e}: {label}");
    }
    assert_eq!(text, expected, "{label}");
}

fn greedy_text_is_the_same_with_and_without_the_cache_far_beyond_the_context<D: Tested>() {
    for (seed, config, prompt) in [
        (20, shape(31, 16, 2, 4, 6), 1),
        (21, GptConfig { bias: true, mlp: Mlp::GeluNew, ..shape(50, 12, 3, 3, 5) }, 5),
        (22, shape(23, 8, 1, 1, 11), 8),
    ] {
        let prompt = Random::new(seed).tokens(prompt, config.vocab_size);
        for window in [ContextPolicy::Slide, ContextPolicy::Half] {
            for rows in [1, 3] {
                assert_text_agrees::<D>(&config, seed, &prompt, 3 * config.block_size, rows, window);
            }
        }
    }
}

fn greedy_text_is_the_same_for_small_contexts_and_prompts_around_their_size<D: Tested>() {
    for block_size in [1, 2, 3, 5] {
        let config = shape(19, block_size, 2, 2, 4);
        for prompt in 1..=2 * block_size + 2 {
            let prompt = Random::new(30 + prompt as u64).tokens(prompt, 19);
            for window in [ContextPolicy::Slide, ContextPolicy::Half] {
                assert_text_agrees::<D>(&config, 31, &prompt, 3 * block_size + 2, 2, window);
            }
        }
    }
}

/// Greedy text could repeat one token; these rows are random and differ from each other.
fn rows_with_texts_of_their_own_agree_with_the_uncached_model_beyond_the_context<D: Tested>() {
    let config = GptConfig { bias: true, ..shape(27, 10, 2, 3, 4) };
    let gpt = model(&config, 40);
    let mut random = Random::new(41);
    let prompt = random.tokens(4, 27);
    let steps = random_rows(&mut random, 3, 25, 27);
    for window in [ContextPolicy::Slide, ContextPolicy::Half] {
        let mut decoder = decoder::<D>(&config, 40, window);
        decoder.start(&prompt, 3).unwrap();
        for n in 1..=25 {
            let tokens: Vec<u32> = steps.iter().map(|row| row[n - 1]).collect();
            let logits = decoder.step(&tokens).unwrap().to_host().unwrap();
            for (row, got) in logits.chunks(27).enumerate() {
                let text = [&prompt[..], &steps[row][..n]].concat();
                let context = context(&text, 4, 10, window).to_vec();
                let reference = uncached(&gpt, &[context])[0].pop().unwrap();
                let error = relative_error(got, &reference);
                assert!(error < TOLERANCE, "{window:?}, row {row}, step {n}: {error:.1e}");
            }
        }
    }
}

#[test]
fn the_windows_keep_what_they_promise() {
    let tokens: Vec<u32> = (0..20).collect();
    let lengths = |window| (3..=20).map(|n| context(&tokens[..n], 3, 6, window).len()).collect::<Vec<_>>();
    assert_eq!(lengths(ContextPolicy::Slide), [3, 4, 5, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6]);
    assert_eq!(lengths(ContextPolicy::Half), [3, 4, 5, 6, 3, 4, 5, 6, 3, 4, 5, 6, 3, 4, 5, 6, 3, 4]);
    let after_a_long_prompt =
        (9..=14).map(|n| context(&tokens[..n], 9, 6, ContextPolicy::Half).len()).collect::<Vec<_>>();
    assert_eq!(after_a_long_prompt, [6, 3, 4, 5, 6, 3]);
}

fn starting_again_forgets_the_earlier_text<D: Tested>() {
    let config = shape(19, 6, 2, 2, 4);
    for window in [ContextPolicy::Slide, ContextPolicy::Half] {
        let mut used = decoder::<D>(&config, 50, window);
        decoded_greedy(&mut used, &[1, 2, 3], 11, 4);
        let again = decoded_greedy(&mut used, &[7, 8], 11, 2);
        assert_eq!(again, decoded_greedy(&mut decoder::<D>(&config, 50, window), &[7, 8], 11, 2));
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The cache's rows, its end, and errors
// ---------------------------------------------------------------------------------------------------------------------

#[test]
fn the_rows_of_a_repeated_cache_share_no_storage() {
    let config = shape(29, 8, 2, 2, 5);
    let gpt = model(&config, 60);
    let prompt = Random::new(61).tokens(3, 29);
    for rows in [1, 3] {
        let mut single = gpt.new_cache(1).unwrap();
        cached(&gpt, std::slice::from_ref(&prompt), &mut single);
        let mut repeated = single.repeat(rows).unwrap();
        assert_eq!((repeated.rows(), repeated.len()), (rows, 3));
        // Each row goes on with tokens of its own, after which the single one goes on with others.
        let own: Vec<Vec<u32>> = (0..rows as u32).map(|row| vec![row, row + 5]).collect();
        let first = cached(&gpt, &columns(&own, 0, 1), &mut repeated);
        let alone = cached(&gpt, &[vec![20, 21]], &mut single);
        let second = cached(&gpt, &columns(&own, 1, 2), &mut repeated);

        let expected = |own: &[u32]| uncached(&gpt, &[[&prompt[..], own].concat()])[0].split_off(3);
        for (row, own) in own.iter().enumerate() {
            let expected = expected(own);
            assert!(relative_error(&first[row][0], &expected[0]) < TOLERANCE);
            assert!(relative_error(&second[row][0], &expected[1]) < TOLERANCE);
        }
        let expected = expected(&[20, 21]);
        assert!(relative_error(&alone[0].concat(), &expected.concat()) < TOLERANCE);
    }
}

#[test]
fn only_a_cache_of_one_row_can_be_repeated() {
    let gpt = model(&shape(5, 4, 1, 1, 2), 1);
    for rows in [1, 2, 3] {
        assert!(gpt.new_cache(2).unwrap().repeat(rows).is_err(), "{rows}");
    }
}

#[test]
fn a_cleared_cache_starts_from_the_first_position() {
    let config = shape(29, 6, 2, 2, 5);
    let gpt = model(&config, 62);
    let mut cache = gpt.new_cache(1).unwrap();
    let row = vec![vec![1, 2, 3, 4, 5, 6]];
    let first = cached(&gpt, &row, &mut cache);
    cache.clear();
    assert!(cache.is_empty());
    assert_eq!(cached(&gpt, &row, &mut cache), first);
}

fn context_full(result: tinygpt_model::Result<Tensor>) -> (usize, usize) {
    match result {
        Err(ModelError::ContextFull { positions, block_size }) => (positions, block_size),
        other => panic!("expected ContextFull, got {other:?}"),
    }
}

#[test]
fn more_positions_than_the_context_are_an_error_and_leave_the_cache_as_it_was() {
    let config = shape(29, 6, 2, 2, 5);
    let gpt = model(&config, 63);
    let row = Random::new(64).tokens(7, 29);
    let take = |from: usize, to: usize| ids(&[row[from..to].to_vec()]);
    assert_eq!(context_full(gpt.forward(&take(0, 7), None)), (7, 6));
    let mut cache = gpt.new_cache(1).unwrap();
    assert_eq!(context_full(gpt.forward_cached(&take(0, 7), &mut cache)), (7, 6));
    gpt.forward_cached(&take(0, 4), &mut cache).unwrap();
    assert_eq!(context_full(gpt.forward_cached(&take(4, 7), &mut cache)), (7, 6));
    assert_eq!(context_full(gpt.forward_last(&take(4, 7), &mut cache)), (7, 6));
    assert_eq!(cache.len(), 4);
    let logits = gpt.forward_cached(&take(4, 6), &mut cache).unwrap().to_vec3::<f32>().unwrap();
    let reference = uncached(&gpt, &[row[..6].to_vec()]);
    assert!(relative_error(&logits[0].concat(), &reference[0][4..].concat()) < TOLERANCE);
    assert_eq!(context_full(gpt.forward_cached(&take(6, 7), &mut cache)), (7, 6));
}

#[test]
fn no_positions_a_wrong_row_count_and_unknown_tokens_are_errors() {
    let gpt = model(&shape(29, 6, 2, 2, 5), 65);
    let nothing = Tensor::zeros((1, 0), DType::U32, &CPU).unwrap();
    let mut cache = gpt.new_cache(2).unwrap();
    assert!(matches!(gpt.forward(&nothing, None), Err(ModelError::NoPositions)));
    assert!(matches!(gpt.forward_cached(&nothing, &mut cache), Err(ModelError::NoPositions)));
    for rows in [1, 3] {
        assert!(gpt.forward_cached(&ids(&vec![vec![1, 2]; rows]), &mut cache).is_err(), "{rows} rows into two");
        assert!(cache.is_empty());
    }
    assert!(gpt.forward(&ids(&[vec![1, 29]]), None).is_err());
    assert!(gpt.forward_cached(&ids(&[vec![1, 29], vec![1, 1]]), &mut cache).is_err());
}

fn the_decoder_names_what_is_wrong_and_goes_on_afterwards<D: Tested>() {
    let config = shape(29, 6, 2, 2, 5);
    for window in [ContextPolicy::Slide, ContextPolicy::Half] {
        let mut decoder = decoder::<D>(&config, 66, window);
        assert!(matches!(decoder.step(&[]), Err(ModelError::RowCount { expected: 0, got: 0 })), "before any start");
        assert!(matches!(decoder.step(&[1]), Err(ModelError::RowCount { expected: 0, got: 1 })));
        assert!(matches!(decoder.start(&[], 1), Err(ModelError::EmptyPrompt)));
        assert!(matches!(decoder.start(&[1], 0), Err(ModelError::NoRows)));
        let unknown = |r: tinygpt_model::Result<Logits<'_>>| {
            matches!(r, Err(ModelError::TokenOutOfRange { id: 29, vocab_size: 29 }))
        };
        assert!(unknown(decoder.start(&[1, 29], 1)));
        assert!(unknown(decoder.start(&[29, 0, 0, 0, 0, 0, 0, 0], 1)), "also where it would not be in the context");

        let reference = decoded_greedy(&mut decoder, &[3, 4], 9, 2).1;
        let mut logits = decoder.start(&[3, 4], 2).unwrap().to_host().unwrap().into_owned();
        for expected in &reference {
            assert_eq!(logits[..29], expected[..], "an error must not change what follows");
            assert!(matches!(decoder.step(&[1]), Err(ModelError::RowCount { expected: 2, got: 1 })));
            assert!(matches!(decoder.step(&[1, 2, 3]), Err(ModelError::RowCount { expected: 2, got: 3 })));
            assert!(unknown(decoder.step(&[0, 29])));
            assert!(unknown(decoder.start(&[29], 1)), "a start that fails changes nothing either");
            logits = decoder.step(&[arg_max(expected); 2]).unwrap().to_host().unwrap().into_owned();
        }
    }
}

fn parameters_that_do_not_fit_the_shape_are_refused_by_name<D: Tested>() {
    let config = shape(29, 6, 1, 2, 5);
    let mut values = lively_params(&config, 1);
    values[3].pop();
    let error = D::open(&config, values.clone(), ContextPolicy::Slide).err().unwrap().to_string();
    assert!(error.contains("transformer.h.0.attn.c_attn.weight"), "{error}");
    values.pop();
    let error = D::open(&config, values, ContextPolicy::Slide).err().unwrap();
    assert!(matches!(error, ModelError::ParamCount { expected: 9, got: 8 }), "{error}");
}
