//! The comparison against `generate`, and each number against one computed by hand from the model's logits.

use std::ops::ControlFlow;

use candle_core::DType;
use tinygpt_model::{
    ContextPolicy, Device, Generation, TensorDecoder, TokenizerError, Windows,
    checkpoint::open_decoder,
    cpu::WeightFormat,
    generate, init_params,
    language_model::{cross_entropy_of, each_row},
    open_language_model,
};
use tinygpt_sampler::{Row, entropy, oracle};

use super::{statistics::find_loop, *};

/// A small model whose distributions are far from uniform, and its tokenizer.
struct Small {
    config: GptConfig,
    params: Vec<Vec<f32>>,
    tokenizer: Tokenizer,
}

impl Small {
    /// A model of the tokenizer's tokens with a context of `block_size`.
    fn new(tokenizer: Tokenizer, block_size: usize) -> Self {
        let (vocab_size, n_embd) = (tokenizer.vocab_size(), 16);
        let config = GptConfig { vocab_size, block_size, n_layer: 1, n_head: 2, n_embd, ..GptConfig::default() };
        let larger = |values: Vec<f32>| values.into_iter().map(|x| 12.0 * x).collect();
        let params = init_params(&config, 3).into_iter().map(larger).collect();
        Self { config, params, tokenizer }
    }

    fn chars(block_size: usize) -> Self {
        Self::new(Tokenizer::train_char([Ok::<_, TokenizerError>("\n abcde")]).unwrap(), block_size)
    }

    /// Of two words and a token that ends a text.
    fn ending() -> Self {
        let json = r#"{"version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
            "decoder": null, "pre_tokenizer": {"type": "Whitespace"},
            "added_tokens": [{"id": 2, "content": "<|endoftext|>", "single_word": false, "lstrip": false, "rstrip": false,
                              "normalized": false, "special": true}],
            "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "<|endoftext|>": 2}, "unk_token": "a"}}"#;
        let tokenizer = Tokenizer::from_bytes(json.as_bytes()).unwrap();
        assert_eq!(tokenizer.end_of_text(), Some(2));
        Self::new(tokenizer, 16)
    }

    fn model(&self) -> Box<dyn LanguageModel> {
        open_language_model(&self.config, &self.params, &Device::Cpu).unwrap()
    }

    fn decoder(&self) -> Box<dyn Decoder + '_> {
        let params: Vec<&[f32]> = self.params.iter().map(Vec::as_slice).collect();
        open_decoder(&self.config, &params, ContextPolicy::Slide, WeightFormat::F32, &Device::Cpu).unwrap()
    }

    /// The decoder of any device, here on the CPU: its logits are tensors.
    fn tensor_decoder(&self) -> TensorDecoder {
        TensorDecoder::new(&self.config, &self.params, ContextPolicy::Slide, DType::F32, &Device::Cpu).unwrap()
    }

    fn lab<'a>(&'a self, strategies: &'a [Strategy], prompts: &'a [Prompt], samples: usize) -> Lab<'a> {
        let (tokenizer, grammar) = (&self.tokenizer, None);
        let rows_at_once = rows_at_once(&self.config);
        Lab { strategies, prompts, samples, max_new_tokens: 12, seed: 5, rows_at_once, tokenizer, grammar }
    }

    fn run(&self, lab: Lab<'_>) -> Vec<StrategyReport> {
        lab.run(self.decoder().as_mut(), self.model().as_mut(), &mut |_, _| Ok(())).unwrap()
    }

    fn prompts<const N: usize>(&self, texts: [&str; N]) -> [Prompt; N] {
        texts.map(|text| Prompt::new(text.into(), &self.tokenizer).unwrap())
    }

    /// The log-probability of a text behind a prompt, by the losses of its tokens in one window.
    fn logprob(&self, prompt: &[u32], text: &[u32]) -> f64 {
        let ids = [prompt, text].concat();
        let windows = Windows { ids: &ids[..ids.len() - 1], cols: ids.len() - 1, from: prompt.len() - 1 };
        let losses =
            each_row(self.model().as_mut(), windows, |place, logits| cross_entropy_of(logits, ids[place + 1])).unwrap();
        -losses.iter().sum::<f64>()
    }
}

/// Every rule at least once, and beam search.
fn strategies() -> Vec<Strategy> {
    let more = "[[strategy]]\nname = 'penalties'\nrepetition_penalty = 1.3\npresence_penalty = 0.2\n\
                frequency_penalty = 0.1\nlogit_bias = [[2, 1.5], [3, -inf]]\n\
                [[strategy]]\nname = 'cooling'\ntemperature = 2.0\ntemperature_end = 0.25\n\
                temperature_schedule = 'exponential'\n\
                [[strategy]]\nname = 'mirostat'\nmirostat_tau = 2.0\nmirostat_eta = 0.5\n\
                [[strategy]]\nname = 'typical and XTC'\ntypical_p = 0.9\nxtc_probability = 0.5\nxtc_threshold = 0.05\n\
                top_n_sigma = 2.0\ndynatemp_range = 0.5\n\
                [[strategy]]\nname = 'no repetition'\ndry_multiplier = 1.5\nno_repeat_ngram_size = 4\n";
    parse_strategies(&(DEFAULT_STRATEGIES.to_owned() + more)).unwrap()
}

#[test]
fn every_completion_is_the_text_that_generate_gives_whatever_else_is_in_the_batch() {
    // The context is full before the texts are.
    let small = Small::chars(8);
    let (strategies, prompts) = (strategies(), small.prompts(["", "abc d"]));
    let reports = small.run(small.lab(&strategies, &prompts, 3));
    for (strategy, report) in strategies.iter().zip(&reports).filter(|(strategy, _)| strategy.beam.is_none()) {
        assert_eq!((report.completions.len(), &report.name), (6, &strategy.name));
        for completion in &report.completions {
            let prompt = &prompts[completion.prompt].tokens;
            let mut sampler = strategy.sampler(5, prompt.len(), 12).unwrap();
            let request = Generation { prompt, first_sequence: completion.sample, rows: 1, max_new_tokens: 12 };
            let mut tokens = Vec::new();
            generate(small.decoder().as_mut(), &mut sampler, request, |_, token| {
                tokens.push(token);
                ControlFlow::Continue(())
            })
            .unwrap();
            assert_eq!(completion.tokens, tokens, "{}", strategy.name);
            assert_eq!(completion.text, small.tokenizer.decode(&tokens).unwrap());
            assert_eq!((completion.ended_by, completion.ends_in), (EndedBy::Length, find_loop(&tokens)));
        }
    }
    let order: Vec<_> = reports[1].completions.iter().map(|c| (c.prompt, c.sample)).collect();
    assert_eq!(order, [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]);
    let alone = small.run(small.lab(&strategies[5..6], &prompts, 3));
    assert_eq!(alone[0], reports[5], "nothing depends on what else is compared");
}

#[test]
fn logits_on_a_device_give_the_texts_that_generate_draws_there() {
    let small = Small::chars(16);
    let (strategies, prompts) = (strategies(), small.prompts(["ab"]));
    let reports = small
        .lab(&strategies, &prompts, 2)
        .run(&mut small.tensor_decoder(), small.model().as_mut(), &mut |_, _| Ok(()))
        .unwrap();
    for (strategy, report) in strategies.iter().zip(&reports).filter(|(strategy, _)| strategy.beam.is_none()) {
        let prompt = &prompts[0].tokens;
        let mut sampler = strategy.sampler(5, prompt.len(), 12).unwrap();
        let request = Generation { prompt, first_sequence: 0, rows: 2, max_new_tokens: 12 };
        let mut texts = [Vec::new(), Vec::new()];
        generate(&mut small.tensor_decoder(), &mut sampler, request, |row, token| {
            texts[row].push(token);
            ControlFlow::Continue(())
        })
        .unwrap();
        let told: Vec<_> = report.completions.iter().map(|completion| completion.tokens.clone()).collect();
        assert_eq!(told, texts, "{}", strategy.name);
    }
}

#[test]
fn means_are_those_of_the_oracle_over_the_models_logits() {
    let small = Small::chars(32);
    let (strategies, prompts) = (strategies(), small.prompts(["ab"]));
    let prompt = &prompts[0].tokens;
    for (strategy, report) in strategies.iter().zip(small.run(small.lab(&strategies, &prompts, 2))) {
        let completion = &report.completions[1];
        let n = completion.tokens.len();
        let ids = [&prompt[..], &completion.tokens].concat();
        let windows = Windows { ids: &ids[..ids.len() - 1], cols: ids.len() - 1, from: prompt.len() - 1 };
        let rows = each_row(small.model().as_mut(), windows, |_, logits| logits.to_vec()).unwrap();
        let mean = |values: Vec<f64>| values.iter().sum::<f64>() / values.len() as f64;
        let own = |logits: &Vec<f32>| {
            let softmax = oracle::sample(logits, &tinygpt_sampler::SamplingParams::default(), &[], 0.0).unwrap();
            entropy(&softmax.probs)
        };
        assert!((completion.model_entropy - mean(rows.iter().map(own).collect())).abs() < 1e-5, "{}", strategy.name);
        let perplexity = (-small.logprob(prompt, &completion.tokens) / n as f64).exp();
        assert!((completion.perplexity / perplexity - 1.0).abs() < 1e-5, "{}", strategy.name);
        if strategy.beam.is_some() {
            assert_eq!((completion.entropy, completion.kept, report.entropy, report.kept), (None, None, None, None));
            continue;
        }
        // What mirostat keeps depends on the draws before.
        if strategy.mirostat_tau > 0.0 {
            continue;
        }
        let mut sampler = strategy.sampler(5, prompt.len(), 12).unwrap();
        let after = rows.iter().enumerate().map(|(i, logits)| {
            let position = prompt.len() + i;
            let row = Row { logits, history: &ids[..position], sequence: 1, position: position as u64 };
            sampler.distribution(&row).unwrap()
        });
        let after: Vec<_> = after.collect();
        let kept = mean(after.iter().map(|distribution| distribution.kept().len() as f64).collect());
        assert!((completion.kept.unwrap() - kept).abs() < 1e-12, "{}", strategy.name);
        let drawn = mean(after.iter().map(|distribution| entropy(distribution.probs())).collect());
        assert!((completion.entropy.unwrap() - drawn).abs() < 1e-5, "{}", strategy.name);
        // All completions have as many tokens.
        let of_all = |value: fn(&Completion) -> f64| mean(report.completions.iter().map(value).collect());
        assert!((report.kept.unwrap() - of_all(|c| c.kept.unwrap())).abs() < 1e-12);
        assert!((report.perplexity.ln() - of_all(|c| c.perplexity.ln())).abs() < 1e-12);
    }
}

#[test]
fn a_deterministic_strategy_is_computed_once_and_told_as_often_as_others() {
    let small = Small::chars(32);
    let (strategies, prompts) = (strategies(), small.prompts(["a", "b"]));
    let mut told = Vec::new();
    let reports =
        small.lab(&strategies, &prompts, 3).run(small.decoder().as_mut(), small.model().as_mut(), &mut |done, all| {
            told.push((done, all));
            Ok(())
        });
    let greedy = &reports.unwrap()[0];
    assert!(greedy.deterministic && greedy.completions.len() == 6);
    assert!(greedy.completions[..3].iter().all(|c| c.tokens == greedy.completions[0].tokens && c.prompt == 0));
    assert_eq!(greedy.completions.iter().map(|c| c.sample).collect::<Vec<_>>(), [0, 1, 2, 0, 1, 2]);
    // Two prompts, twelve tokens; all strategies draw three texts each, but greedy and beam search one.
    let all = 2 * 12 * ((strategies.len() - 2) * 3 + 2);
    assert!(told.is_sorted() && told.iter().all(|&(_, of)| of == all));
    assert_eq!(told.last(), Some(&(all, all)));
}

#[test]
fn a_beam_of_all_texts_finds_the_most_probable_and_a_beam_of_one_is_greedy() {
    let small = Small::chars(32);
    let prompts = small.prompts(["ab"]);
    let beam = |width| Strategy { name: format!("beam {width}"), beam: Some(width), ..Strategy::default() };
    let greedy = Strategy { name: "greedy".into(), temperature: 0.0, ..Strategy::default() };
    let strategies = [greedy, beam(1), beam(4), beam(7 * 7 * 7)];
    let reports = small.run(Lab { max_new_tokens: 4, ..small.lab(&strategies, &prompts, 1) });
    let texts: Vec<&[u32]> = reports.iter().map(|report| report.completions[0].tokens.as_slice()).collect();
    assert_eq!(texts[0], texts[1]);
    let logprob = |text: &[u32]| small.logprob(&prompts[0].tokens, text);
    let all = (0..7u32.pow(4)).map(|code| [0, 1, 2, 3].map(|place| code / 7u32.pow(place) % 7));
    let best = all.max_by(|a, b| logprob(a).total_cmp(&logprob(b))).unwrap();
    assert_eq!(texts[3], best);
    assert!(logprob(texts[3]) >= logprob(texts[2]) && logprob(texts[2]) >= logprob(texts[1]));
    assert!((reports[3].perplexity - (-logprob(&best) / 4.0).exp()).abs() < 1e-5);
    // Beyond the context both see its last tokens.
    let small = Small::chars(8);
    let reports = small.run(small.lab(&strategies[..2], &prompts, 1));
    assert_eq!(reports[0].completions[0].tokens, reports[1].completions[0].tokens);
}

#[test]
fn texts_end_at_their_last_token_and_a_beam_ranks_those_that_have_ended_with_the_others() {
    let small = Small::ending();
    let prompts = small.prompts(["a b"]);
    let strategies = [
        Strategy { name: "beam".into(), beam: Some(27), ..Strategy::default() },
        Strategy { name: "draws".into(), ..Strategy::default() },
    ];
    let reports = small.run(Lab { max_new_tokens: 4, ..small.lab(&strategies, &prompts, 40) });
    // Every text of four tokens, cut behind the first that ends it.
    let cut = |text: [u32; 4]| text[..text.iter().position(|&token| token == 2).map_or(4, |at| at + 1)].to_vec();
    let all = (0..81u32).map(|code| cut([0, 1, 2, 3].map(|place| code / 3u32.pow(place) % 3)));
    let logprob = |text: &Vec<u32>| small.logprob(&prompts[0].tokens, text);
    let best = all.max_by(|a, b| logprob(a).total_cmp(&logprob(b))).unwrap();
    assert_eq!(reports[0].completions[0].tokens, best);
    let ended: Vec<_> = reports[1].completions.iter().filter(|c| c.ended_by == EndedBy::Stop).collect();
    assert!(!ended.is_empty() && ended.len() < 40, "{} of 40 ended", ended.len());
    for completion in ended {
        let (last, before) = completion.tokens.split_last().unwrap();
        assert!(*last == 2 && !before.contains(&2) && !completion.text.contains("endoftext"));
        assert_eq!(completion.text.split_whitespace().count(), before.len());
    }
}

#[test]
fn equal_hypotheses_are_in_the_order_of_their_tokens() {
    // All logits are 0: every text is as probable as every other.
    let mut small = Small::chars(32);
    small.params.iter_mut().flatten().for_each(|x| *x = 0.0);
    let prompts = small.prompts(["a"]);
    let strategies = [Strategy { name: "beam".into(), beam: Some(3), ..Strategy::default() }];
    let report = &small.run(small.lab(&strategies, &prompts, 1))[0];
    assert_eq!(report.completions[0].tokens, [0; 12]);
    assert_eq!(report.first_loop.map(|found| (found.period, found.start)), Some((1, 0)));
    assert!((report.perplexity - 7.0).abs() < 1e-9 && (report.model_entropy - 7f64.ln()).abs() < 1e-9);
}

#[test]
fn a_model_that_is_not_a_number_is_refused() {
    let mut small = Small::chars(32);
    small.params.iter_mut().flatten().for_each(|x| *x = f32::NAN);
    let prompts = small.prompts(["a"]);
    for strategy in [Strategy::default(), Strategy { beam: Some(2), ..Strategy::default() }] {
        let strategies = [strategy];
        let lab = small.lab(&strategies, &prompts, 1);
        let error = lab.run(small.decoder().as_mut(), small.model().as_mut(), &mut |_, _| Ok(())).unwrap_err();
        assert!(error.to_string().contains("is NaN"), "{error}");
    }
}

#[test]
fn the_rows_of_a_large_model_are_decoded_in_several_batches() {
    let config =
        |n_embd, n_layer, block_size| GptConfig { n_embd, n_layer, block_size, n_head: 1, ..GptConfig::default() };
    assert_eq!(rows_at_once(&config(96, 2, 256)), MAX_ROWS);
    // 72 MiB a row.
    assert_eq!(rows_at_once(&config(768, 12, 1024)), 7);
    assert_eq!(rows_at_once(&config(1 << 14, 64, 4096)), 1);
}
