//! A row's logits have the same bits whatever it is batched with, in whatever place, on however many threads; so a
//! sequence has the same text alone and among others.

use std::{ops::ControlFlow, process::Command};

use crate::common::{Random, Tested, for_each_decoder, lively_params, shape};
use tinygpt_model::{ContextPolicy, Generation, GptConfig, Mlp, TensorDecoder, cpu::CpuDecoder, generate};
use tinygpt_sampler::{Sampler, SamplingParams};

const WINDOWS: [ContextPolicy; 2] = [ContextPolicy::Slide, ContextPolicy::Half];

/// Large enough that matrix products of eight rows and of one would go to different kernels if they were joined.
fn shapes() -> [GptConfig; 3] {
    [
        shape(65, 64, 2, 4, 32),
        GptConfig { bias: true, mlp: Mlp::GeluNew, ..shape(300, 40, 2, 6, 16) },
        GptConfig { bias: true, ..shape(33, 7, 1, 1, 20) },
    ]
}

for_each_decoder!(
    a_rows_logits_are_bit_identical_alone_among_eight_and_with_other_mates,
    mates_that_are_out_of_the_ordinary_do_not_matter,
    sequence_four_has_the_same_text_alone_and_as_the_fifth_of_eight,
    rows_that_end_early_leave_the_others_as_they_are,
);

fn decoder<D: Tested>(config: &GptConfig, window: ContextPolicy) -> D {
    D::open(config, lively_params(config, 9), window).unwrap()
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|x| x.to_bits()).collect()
}

/// The logits' bits of each row, `[row][step]`, for rows that start from `prompt` and go on with tokens of their own.
fn run<D: Tested>(config: &GptConfig, window: ContextPolicy, prompt: &[u32], rows: &[Vec<u32>]) -> Vec<Vec<Vec<u32>>> {
    let mut decoder = decoder::<D>(config, window);
    let mut logits = decoder.start(prompt, rows.len()).unwrap().to_host().unwrap();
    let mut all = vec![Vec::new(); rows.len()];
    for n in 0..=rows[0].len() {
        for (row, logits) in logits.chunks(config.vocab_size).enumerate() {
            all[row].push(bits(logits));
        }
        if n < rows[0].len() {
            let tokens: Vec<u32> = rows.iter().map(|row| row[n]).collect();
            logits = decoder.step(&tokens).unwrap().to_host().unwrap();
        }
    }
    all
}

/// A prompt of about two thirds of the context, and eight texts that go beyond its end: past both windows' first move
/// and some steps further.
fn texts(config: &GptConfig, seed: u64) -> (Vec<u32>, Vec<Vec<u32>>) {
    let mut random = Random::new(seed);
    let prompt = config.block_size * 2 / 3;
    let n = config.block_size - prompt + 6;
    let rows = (0..8).map(|_| random.tokens(n, config.vocab_size)).collect();
    (random.tokens(prompt, config.vocab_size), rows)
}

fn a_rows_logits_are_bit_identical_alone_among_eight_and_with_other_mates<D: Tested>() {
    for config in shapes() {
        for window in WINDOWS {
            let (prompt, rows) = texts(&config, 1);
            let (_, others) = texts(&config, 2);
            let label = format!("{config:?}, {window:?}");
            let among_eight = run::<D>(&config, window, &prompt, &rows);
            for row in [0, 5] {
                let alone = run::<D>(&config, window, &prompt, &rows[row..=row]);
                assert!(alone[0] == among_eight[row], "row {row} alone: {label}");
            }
            // Row 5 in the place 5 of eight others, and in the place 1 of three.
            let mut mates = others.clone();
            mates[5].clone_from(&rows[5]);
            assert!(run::<D>(&config, window, &prompt, &mates)[5] == among_eight[5], "other mates: {label}");
            let three = [others[0].clone(), rows[5].clone(), others[1].clone()];
            assert!(run::<D>(&config, window, &prompt, &three)[1] == among_eight[5], "another place: {label}");
            // The comparison would see a difference.
            assert!(among_eight[4] != among_eight[5], "{label}");
        }
    }
}

fn mates_that_are_out_of_the_ordinary_do_not_matter<D: Tested>() {
    let config = &shapes()[0];
    let (prompt, rows) = texts(config, 3);
    for window in WINDOWS {
        let alone = run::<D>(config, window, &prompt, &rows[5..6]);
        // All rows equal, and all mates one token over and over.
        let equal = run::<D>(config, window, &prompt, &vec![rows[5].clone(); 8]);
        assert!(equal.iter().all(|row| *row == alone[0]), "{window:?}");
        let mut mates = vec![vec![0; rows[5].len()]; 8];
        mates[5].clone_from(&rows[5]);
        assert!(run::<D>(config, window, &prompt, &mates)[5] == alone[0], "{window:?}");
    }
}

/// Texts of `rows` sequences from `first_sequence` on.
fn generated<D: Tested>(
    config: &GptConfig,
    window: ContextPolicy,
    first_sequence: u64,
    rows: usize,
    n: usize,
) -> Vec<Vec<u32>> {
    let rules = SamplingParams { temperature: 0.9, top_k: 40, top_p: 0.95, seed: 11, ..SamplingParams::default() };
    let prompt = &Random::new(4).tokens(config.block_size / 2, config.vocab_size)[..];
    let mut texts = vec![Vec::new(); rows];
    generate(
        &mut decoder::<D>(config, window),
        &mut Sampler::new(rules).unwrap(),
        Generation { prompt, first_sequence, rows, max_new_tokens: n },
        |row, token| {
            texts[row].push(token);
            ControlFlow::Continue(())
        },
    )
    .unwrap();
    texts
}

fn sequence_four_has_the_same_text_alone_and_as_the_fifth_of_eight<D: Tested>() {
    for config in shapes() {
        for window in WINDOWS {
            let n = config.block_size / 2 + 8;
            let eight = generated::<D>(&config, window, 0, 8, n);
            assert!(eight.iter().all(|text| text.len() == n));
            assert_eq!(generated::<D>(&config, window, 4, 1, n), eight[4..5], "{config:?}, {window:?}");
            assert_eq!(generated::<D>(&config, window, 3, 3, n), eight[3..6], "{config:?}, {window:?}");
            for (a, text) in eight.iter().enumerate() {
                assert!(eight[a + 1..].iter().all(|other| other != text), "sequences must differ");
            }
        }
    }
}

/// A row that ends early keeps its place and does not change the others; nothing more is asked of it.
fn rows_that_end_early_leave_the_others_as_they_are<D: Tested>() {
    let config = &shapes()[0];
    let full = generated::<D>(config, ContextPolicy::Slide, 0, 4, 20);
    let prompt = &Random::new(4).tokens(config.block_size / 2, config.vocab_size)[..];
    let rules = SamplingParams { temperature: 0.9, top_k: 40, top_p: 0.95, seed: 11, ..SamplingParams::default() };
    let ends = [3, 20, 1, 7];
    let mut texts = vec![Vec::new(); 4];
    generate(
        &mut decoder::<D>(config, ContextPolicy::Slide),
        &mut Sampler::new(rules).unwrap(),
        Generation { prompt, first_sequence: 0, rows: 4, max_new_tokens: 20 },
        |row, token| {
            texts[row].push(token);
            if texts[row].len() == ends[row] { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        },
    )
    .unwrap();
    for row in 0..4 {
        assert_eq!(texts[row], full[row][..ends[row]], "row {row}");
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Threads. Their number comes from the environment, so each count is a process of its own.
// ---------------------------------------------------------------------------------------------------------------------

/// FNV-1a over all bits.
fn digest(all: &[Vec<Vec<u32>>]) -> u64 {
    all.iter()
        .flatten()
        .flatten()
        .fold(0xCBF2_9CE4_8422_2325, |hash, &bits| (hash ^ u64::from(bits)).wrapping_mul(0x0100_0000_01B3))
}

#[test]
#[ignore = "run by logits_have_the_same_bits_on_one_and_on_two_threads, in processes of its own"]
fn print_digests() {
    print_digests_of::<TensorDecoder>();
    print_digests_of::<CpuDecoder<'static>>();
}

#[expect(clippy::print_stdout, reason = "how the other process gets the result")]
fn print_digests_of<D: Tested>() {
    for config in shapes() {
        for window in WINDOWS {
            let (prompt, rows) = texts(&config, 5);
            let eight = run::<D>(&config, window, &prompt, &rows);
            assert!(run::<D>(&config, window, &prompt, &rows[5..6])[0] == eight[5]);
            println!("\ndigest {:016x}", digest(&eight));
        }
    }
}

#[test]
fn logits_have_the_same_bits_on_one_and_on_two_threads() {
    let digests = |threads: &str| -> Vec<String> {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "rows::print_digests", "--ignored", "--nocapture"])
            .env("RAYON_NUM_THREADS", threads)
            .env("CANDLE_NUM_THREADS", threads)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{threads} threads: {text}");
        text.lines().filter(|line| line.starts_with("digest ")).map(str::to_owned).collect()
    };
    let one = digests("1");
    assert_eq!(one.len(), 2 * shapes().len() * WINDOWS.len());
    assert_eq!(one, digests("2"));
    assert_eq!(one, digests("3"), "more threads than cores");
}
