use std::ops::ControlFlow;

use tinygpt_model::{
    Generation, GptConfig,
    constraint::{Constraint, Grammar},
    generate,
    tokenizer::StopStrings,
};
use tinygpt_sampler::SamplingParams;

use super::{row::UNREAD, testing::*, *};

/// The tokens of `tinygpt generate` for a request without stops and grammars.
fn lone_twin(generator: &Generator, options: &Options, request: &TextRequest) -> Vec<u32> {
    let mut decoder = generator.decoder(&options.opening, 1).unwrap();
    let mut sampler = Sampler::new(request.rules.clone()).unwrap();
    let TextRequest { prompt, sequence, max_new_tokens, .. } = request;
    let generation = Generation { prompt, first_sequence: *sequence, rows: 1, max_new_tokens: *max_new_tokens };
    let mut tokens = Vec::new();
    generate(decoder.as_mut(), &mut sampler, generation, |_, token| {
        tokens.push(token);
        ControlFlow::Continue(())
    })
    .unwrap();
    tokens
}

#[test]
fn sixty_four_requests_at_once_have_the_texts_of_their_lone_twins() {
    let folder = model(1);
    let engine = engine(folder.path(), 7, 64);
    let requests: Vec<TextRequest> = (0..64)
        .map(|i: u64| {
            let prompt: Vec<u32> = (0..1 + i % 30).map(|at| ((at * 7 + i) % 20) as u32).collect();
            TextRequest { sequence: i % 5, ..request(&prompt, i / 3, 1 + (i as usize * 11) % 40) }
        })
        .collect();
    let threads: Vec<_> = requests
        .iter()
        .cloned()
        .map(|request| {
            let engine = engine.clone();
            std::thread::spawn(move || read(engine.submit(request).unwrap()))
        })
        .collect();
    for (request, thread) in requests.iter().zip(threads) {
        let read = thread.join().unwrap();
        let tokens: Vec<u32> = read.tokens.iter().map(|token| token.id).collect();
        assert_eq!(read.end, Ok(EndedBy::Length));
        assert_eq!(tokens, lone_twin(&engine.generator(), &options(7, 64), request));
        assert_eq!(read.text, engine.tokenizer().decode(&tokens).unwrap());
        assert!(read.tokens.iter().all(|token| token.measured.is_none()));
    }
    wait_for("all slots are free again", || engine.stats().running == 0);
    let stats = engine.stats();
    let expected: usize = requests.iter().map(|request| request.max_new_tokens).sum();
    assert_eq!((stats.tokens, stats.queued, stats.slots), (expected as u64, 0, 7));
}

#[test]
fn stops_grammars_and_measures_are_those_of_each_text() {
    let folder = model(2);
    let engine = engine(folder.path(), 4, 8);
    let free = read(engine.submit(request(&[1], 3, 30)).unwrap());
    let stop: String = free.text.chars().skip(5).take(2).collect();
    let stops = StopStrings::new(vec![stop.clone()]).unwrap();
    let digits = Constraint::new(&Grammar::Regex("[0-9]{4}".into()), engine.tokenizer()).unwrap();
    let texts = [
        TextRequest { stops, ..request(&[1], 3, 30) },
        TextRequest { constraint: Some(digits), ..request(&[1], 3, 30) },
        TextRequest { top: Some(3), ..request(&[1], 3, 30) },
        request(&[1], 3, 0),
    ];
    let receivers = engine.submit_all(texts.into()).unwrap();
    let texts: Vec<_> = receivers.into_iter().map(read).collect();
    let told: usize = texts.iter().chain([&free]).map(|text| text.tokens.len()).sum();
    assert_eq!(engine.stats().tokens, told as u64, "an end by a grammar draws nothing");
    let [stopped, constrained, measured, nothing] = texts.try_into().unwrap();

    assert_eq!(stopped.end, Ok(EndedBy::Stop));
    assert_eq!(stopped.text, free.text[..free.text.find(&stop).unwrap()]);
    assert_eq!(constrained.end, Ok(EndedBy::Grammar));
    assert!(constrained.text.len() == 4 && constrained.text.bytes().all(|byte| byte.is_ascii_digit()));
    assert_eq!((measured.text, nothing.text.as_str(), nothing.end), (free.text, "", Ok(EndedBy::Length)));
    for token in measured.tokens {
        let Measured { logprob, rank, entropy, top } = token.measured.unwrap();
        assert!(logprob < 0.0 && entropy > 0.0 && top.len() == 3, "{logprob} {entropy}");
        match top.get(rank - 1) {
            Some(&(id, told)) => assert_eq!((id, told), (token.id, logprob)),
            None => assert!(logprob <= top[2].1),
        }
    }
}

#[test]
fn the_logits_behind_a_prompt_are_those_of_the_decoder() {
    let folder = model(3);
    let engine = engine(folder.path(), 2, 2);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let logits = runtime.block_on(engine.logits(vec![4, 5, 6])).unwrap().unwrap();
    let generator = engine.generator();
    let mut decoder = generator.decoder(&OPENING, 1).unwrap();
    assert_eq!(logits, *decoder.start(&[4, 5, 6], 1).unwrap().to_host().unwrap());
    let refused = runtime.block_on(engine.logits(vec![1000])).unwrap();
    assert!(matches!(refused, Err(ModelError::TokenOutOfRange { id: 1000, .. })));
    assert!(matches!(runtime.block_on(engine.logits(Vec::new())).unwrap(), Err(ModelError::EmptyPrompt)));
    wait_for("no slot is held", || engine.stats().running == 0);
}

#[test]
fn a_reader_that_goes_away_frees_its_slot() {
    let folder = model(4);
    let engine = engine(folder.path(), 1, 4);
    for round in 0..20 {
        let mut endless = engine.submit(request(&[1], round, ENDLESS)).unwrap();
        let waiting = engine.submit(request(&[2], round, ENDLESS)).unwrap();
        if round % 2 == 0 {
            endless.blocking_recv().unwrap();
        }
        drop((endless, waiting));
    }
    assert_eq!(read(engine.submit(request(&[1], 1, 3)).unwrap()).end, Ok(EndedBy::Length));
    wait_for("nobody waits and nobody runs", || (engine.stats().running, engine.stats().queued) == (0, 0));
}

#[test]
fn more_requests_than_may_wait_are_refused_and_taken_again_once_there_is_room() {
    let folder = model(5);
    let engine = engine(folder.path(), 1, 2);
    let mut taken: Vec<_> = (0..3).map(|seed| engine.submit(request(&[1], seed, ENDLESS)).unwrap()).collect();
    assert_eq!(engine.submit(request(&[1], 9, 1)).unwrap_err(), Refused::QueueFull);
    // Whoever went away makes room, waiting or not.
    taken.pop();
    let last = engine.submit(request(&[1], 9, 1)).unwrap();
    assert_eq!(engine.submit(request(&[1], 9, 1)).unwrap_err(), Refused::QueueFull);
    drop(taken);
    assert_eq!(read(last).end, Ok(EndedBy::Length));
}

#[test]
fn requests_that_cannot_become_texts_are_refused_with_the_reason() {
    let folder = model(5);
    let engine = engine(folder.path(), 1, 2);
    let rules = |rules| TextRequest { rules, ..request(&[1], 1, 3) };
    for (bad, reason) in [
        (request(&[], 1, 3), "the prompt is empty"),
        (request(&[0, 5000], 1, 3), "token 5000 is not below the vocabulary size 39"),
        (rules(SamplingParams { top_p: 7.0, ..SamplingParams::default() }), "top_p"),
        (rules(SamplingParams { logit_bias: vec![(77, 1.0)], ..SamplingParams::default() }), "token 77 is not"),
    ] {
        match engine.submit(bad) {
            Err(Refused::BadRequest(why)) => assert!(why.contains(reason), "{why}"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(engine.stats().running, 0);
}

#[test]
fn a_text_with_nan_fails_alone() {
    let folder = tempfile::tempdir().unwrap();
    // The head is a matrix of its own, so the embedding of token 0 spoils the texts that have it, and no others.
    let untied = |config: &mut GptConfig| config.tie_embeddings = false;
    write(folder.path(), 6, untied, |config, params| params[0][..config.n_embd].fill(f32::NAN));
    let engine = engine(folder.path(), 4, 8);
    let banned = |seed| {
        let mut request = request(&[1, 2], seed, 12);
        request.rules.logit_bias = vec![(0, f32::NEG_INFINITY)];
        request
    };
    let good: Vec<_> = (0..3).map(|seed| engine.submit(banned(seed)).unwrap()).collect();
    let bad = engine.submit(request(&[1, 0], 1, 12)).unwrap();
    let why = read(bad).end.unwrap_err();
    assert!(matches!(&why, Failure::Model(why) if why.contains("NaN")), "{why}");
    for (seed, good) in good.into_iter().enumerate() {
        let read = read(good);
        let tokens: Vec<u32> = read.tokens.iter().map(|token| token.id).collect();
        assert_eq!(tokens, lone_twin(&engine.generator(), &options(1, 1), &banned(seed as u64)));
    }
    wait_for("its slot is free", || engine.stats().running == 0);
}

#[test]
fn a_reader_that_is_far_behind_stops_its_text_and_no_other() {
    let folder = model(7);
    let engine = engine(folder.path(), 2, 2);
    let behind = engine.submit(request(&[1], 1, UNREAD + 300)).unwrap();
    wait_for("it waits", || behind.len() >= UNREAD);
    assert_eq!(read(engine.submit(request(&[1], 2, 40)).unwrap()).tokens.len(), 40);
    assert_eq!(behind.len(), UNREAD, "it did not go on meanwhile");
    let read = read(behind);
    let tokens: Vec<u32> = read.tokens.iter().map(|token| token.id).collect();
    assert_eq!(tokens, lone_twin(&engine.generator(), &options(1, 1), &request(&[1], 1, UNREAD + 300)));
}

#[test]
fn a_text_that_takes_too_long_ends_where_it_is() {
    let folder = model(8);
    let options = Options { timeout: Duration::from_millis(50), ..options(1, 4) };
    let engine = Engine::open("test".into(), folder.path(), options).unwrap();
    let texts: Vec<_> = (0..3).map(|seed| engine.submit(request(&[1], seed, ENDLESS)).unwrap()).collect();
    for text in texts {
        assert_eq!(read(text).end, Ok(EndedBy::TimedOut), "running, unread or waiting");
    }
}

#[test]
fn a_shutdown_lets_texts_come_to_their_ends() {
    let folder = model(9);
    let engine = engine(folder.path(), 1, 4);
    let texts: Vec<_> = (0..3).map(|seed| engine.submit(request(&[1], seed, 20)).unwrap()).collect();
    engine.shut_down(HOUR);
    assert!(texts.into_iter().all(|text| read(text).end == Ok(EndedBy::Length)), "those that waited too");
    assert_eq!(engine.submit(request(&[1], 1, 1)).unwrap_err(), Refused::ShuttingDown);
}

#[test]
fn a_shutdown_whose_time_is_over_ends_all_texts_where_they_are() {
    let folder = model(9);
    let engine = engine(folder.path(), 1, 4);
    let texts: Vec<_> = (0..3).map(|seed| engine.submit(request(&[1], seed, ENDLESS)).unwrap()).collect();
    engine.shut_down(Duration::ZERO);
    assert!(texts.into_iter().all(|text| read(text).end == Ok(EndedBy::ShutDown)));
}

#[test]
fn the_engine_ends_with_its_last_handle() {
    let folder = model(9);
    let engine = engine(folder.path(), 1, 4);
    let endless = engine.submit(request(&[1], 2, ENDLESS)).unwrap();
    let other = engine.clone();
    drop(engine);
    assert_eq!(other.stats().slots, 1);
    drop(other);
    assert_eq!(read(endless).end, Ok(EndedBy::ShutDown));
}

#[test]
fn new_weights_are_for_new_texts_and_the_others_keep_theirs() {
    let folder = model(10);
    let engine = engine(folder.path(), 2, 4);
    assert!(!engine.reload().unwrap(), "nothing is new");
    let mut old = engine.submit(request(&[1], 1, UNREAD + 50)).unwrap();
    let first = old.blocking_recv().unwrap();
    let of_old = lone_twin(&engine.generator(), &options(1, 1), &request(&[1], 1, UNREAD + 50));

    write(folder.path(), 11, |_| {}, |_, _| {});
    wait_for("the new weights are seen", || engine.reload().unwrap());
    let new = read(engine.submit(request(&[1], 1, 30)).unwrap());
    let tokens: Vec<u32> = new.tokens.iter().map(|token| token.id).collect();
    assert_eq!(tokens, lone_twin(&engine.generator(), &options(1, 1), &request(&[1], 1, 30)));
    assert_ne!(tokens, of_old[..30]);

    write(folder.path(), 12, |_| {}, |_, _| {});
    assert!(!engine.reload().unwrap(), "the weights before are in use still");
    wait_for("the text of the old weights runs", || engine.stats().running == 1);
    let rest = read(old);
    let Event::Token(first) = first else { panic!("{first:?}") };
    let tokens: Vec<u32> = std::iter::once(first).chain(rest.tokens).map(|token| token.id).collect();
    assert_eq!(tokens, of_old);
    wait_for("the newest weights are served", || engine.reload().unwrap());
    assert_eq!(engine.stats().reloads, 2);
}

#[test]
fn what_an_engine_does_is_told_while_it_reloads() {
    let folder = model(10);
    let engine = engine(folder.path(), 2, 4);
    let _reload = engine.0.seen();
    assert_eq!(read(engine.submit(request(&[1], 1, 3)).unwrap()).end, Ok(EndedBy::Length));
    assert_eq!(engine.stats().slots, 2);
    engine.shut_down(HOUR);
}

#[test]
fn reload_is_refused_where_there_are_no_weights_that_could_change() {
    #[derive(clap::Parser)]
    struct Serve {
        #[command(flatten)]
        args: ServeArgs,
    }
    let args = <Serve as clap::Parser>::parse_from(["serve", "--reload", "--device", "cpu"]).args;
    let start = |folder: &Path| Engine::start("test".into(), folder, &args);
    let folder = model(10);
    assert!(start(folder.path()).is_ok());
    std::fs::write(folder.path().join("ngram.json"), "").unwrap();
    let refused = |folder: &Path| {
        let error = start(folder).err().expect("an error");
        assert!(error.is::<Usage>());
        let expected = format!("--reload: no model.safetensors of a network in {}", folder.display());
        assert_eq!(error.to_string(), expected);
    };
    refused(folder.path());
    let gguf = folder.path().join("model.gguf");
    std::fs::rename(folder.path().join("model.safetensors"), &gguf).unwrap();
    refused(&gguf);
}

#[test]
fn no_reload_opens_an_engine_again_that_was_shut_down() {
    let folder = model(10);
    let engine = engine(folder.path(), 2, 4);
    engine.shut_down(HOUR);
    write(folder.path(), 11, |_| {}, |_, _| {});
    assert!(!engine.reload().unwrap());
    assert_eq!(engine.submit(request(&[1], 1, 1)).unwrap_err(), Refused::ShuttingDown);
    assert_eq!(engine.stats().reloads, 0);
}

#[test]
fn new_weights_that_cannot_be_opened_yet_are_tried_again() {
    let folder = model(10);
    let engine = engine(folder.path(), 2, 4);
    write(folder.path(), 11, |_| {}, |_, _| {});
    let (config, aside) = (folder.path().join("config.json"), folder.path().join("aside"));
    std::fs::rename(&config, &aside).unwrap();
    assert!(engine.reload().is_err());
    assert!(engine.reload().is_err());
    std::fs::rename(&aside, &config).unwrap();
    assert!(engine.reload().unwrap());
}

#[test]
fn another_network_in_the_folder_is_refused_and_the_old_one_goes_on() {
    let folder = model(13);
    let engine = engine(folder.path(), 2, 4);
    let before = read(engine.submit(request(&[1], 1, 20)).unwrap());
    write(folder.path(), 13, |config| config.n_layer = 3, |_, _| {});
    let error = engine.reload().unwrap_err().to_string();
    assert!(error.contains("another network or tokenizer"), "{error}");
    assert!(!engine.reload().unwrap(), "it is not looked at twice");
    assert_eq!(read(engine.submit(request(&[1], 1, 20)).unwrap()), before);
}

#[test]
fn an_engine_whose_thread_panicked_says_so_until_there_is_another() {
    let folder = model(14);
    let engine = engine_of(folder.path(), Endless { slots: 1, panics: true }, HOUR);
    assert!(engine.is_alive());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    assert_eq!(runtime.block_on(engine.logits(vec![1])).unwrap_err(), Refused::EngineFailed);
    assert!(!engine.is_alive());
    assert_eq!((engine.stats().running, engine.stats().queued), (0, 0), "nothing is computed any more");
    assert_eq!(engine.submit(request(&[1], 1, 1)).unwrap_err(), Refused::EngineFailed);
    write(folder.path(), 15, |_| {}, |_, _| {});
    assert!(engine.reload().unwrap() && engine.is_alive());
    assert_eq!(read(engine.submit(request(&[1], 1, 3)).unwrap()).end, Ok(EndedBy::Length));
}

#[test]
fn a_stop_that_a_longer_one_held_back_is_why_the_text_ended() {
    let folder = model(2);
    let engine = engine(folder.path(), 1, 1);
    let free = read(engine.submit(request(&[1], 3, 30)).unwrap()).text;
    // A token is a character. This one is the first of its kind, and the last of the text.
    let last = (1..30).find(|&at| !free[..at].contains(&free[at..=at])).unwrap();
    // The longer one begins before it, and never comes.
    let longer = format!("{}~", &free[last - 1..=last]);
    let stops = StopStrings::new(vec![longer, free[last..=last].to_owned()]).unwrap();
    let stopped = read(engine.submit(TextRequest { stops, ..request(&[1], 3, last + 1) }).unwrap());
    assert_eq!((stopped.text.as_str(), stopped.end), (&free[..last], Ok(EndedBy::Stop)));
}

#[test]
fn a_long_prompt_is_given_up_when_its_reader_goes_its_time_is_over_or_the_engine_shuts_down() {
    let folder = model(14);
    let endless = || Endless { slots: 2, panics: false };
    let engine = engine_of(folder.path(), endless(), HOUR);
    let (gone, stays) = (engine.submit(request(&[1], 1, 1)).unwrap(), engine.submit(request(&[1], 2, 1)).unwrap());
    wait_for("both have slots", || engine.stats().running == 2);
    drop(gone);
    wait_for("one slot is free again", || engine.stats().running == 1);
    engine.shut_down(Duration::ZERO);
    assert_eq!(read(stays).end, Ok(EndedBy::ShutDown));

    let engine = engine_of(folder.path(), endless(), Duration::from_millis(50));
    assert_eq!(read(engine.submit(request(&[1], 1, 1)).unwrap()).end, Ok(EndedBy::TimedOut));
}

#[test]
fn whoever_hears_of_the_end_of_a_text_finds_its_slot_free() {
    let folder = model(5);
    let engine = engine(folder.path(), 1, 0);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for seed in 0..200 {
        let text = engine.submit(request(&[1], seed, (seed % 3) as usize)).expect("the slot of the text before");
        assert_eq!(read(text).end, Ok(EndedBy::Length));
        if seed % 10 == 0 {
            runtime.block_on(engine.logits(vec![1])).expect("the slot of the text before").unwrap();
            assert!(runtime.block_on(engine.logits(vec![1000])).expect("the slot of the logits before").is_err());
        }
    }
}

#[test]
fn the_texts_of_a_request_wait_together_or_not_at_all() {
    let folder = model(14);
    let engine = engine_of(folder.path(), Endless { slots: 1, panics: false }, HOUR);
    let texts = |n: u64| (0..n).map(|seed| request(&[1], seed, 1)).collect::<Vec<_>>();
    let _running = engine.submit(request(&[1], 1, 1)).unwrap();
    wait_for("it runs", || (engine.stats().running, engine.stats().queued) == (1, 0));
    assert_eq!(engine.submit_all(texts(5)).unwrap_err(), Refused::QueueFull);
    assert_eq!(engine.stats().queued, 0);
    let mut bad = texts(2);
    bad[1].prompt.clear();
    assert!(matches!(engine.submit_all(bad), Err(Refused::BadRequest(_))));
    assert_eq!(engine.stats().queued, 0);
    let taken = engine.submit_all(texts(3)).unwrap();
    assert_eq!((taken.len(), engine.stats().queued), (3, 3));
    assert_eq!(engine.submit_all(texts(2)).unwrap_err(), Refused::QueueFull);
    assert_eq!(engine.submit_all(texts(1)).unwrap().len(), 1);
}

/// Tokens a second, and the longest that a text waits for a token while a long prompt joins, of the model in the folder
/// `TINYGPT_MODEL`: `cargo test --release --workspace --bin tinygpt -- --ignored --nocapture engine::tests::figures`.
#[test]
#[ignore = "a measurement"]
#[expect(clippy::print_stderr, reason = "it tells what it measured")]
fn figures() {
    let folder = PathBuf::from(std::env::var_os("TINYGPT_MODEL").expect("the folder of a model"));
    for rows in [1, 32, 64] {
        let engine = Engine::open("test".into(), &folder, options(rows, rows)).unwrap();
        let n = 200;
        let mut best = 0.0f64;
        for _ in 0..5 {
            let start = Instant::now();
            let texts: Vec<_> =
                (0..rows as u64).map(|seed| engine.submit(request(&[1, 2, 3, 4], seed, n)).unwrap()).collect();
            texts.into_iter().for_each(|text| drop(read(text)));
            best = best.max((rows * n) as f64 / start.elapsed().as_secs_f64());
        }
        eprintln!("{rows} rows: {best:.0} tokens/s, {:?}", engine.stats());
    }
    let long: Vec<u32> = match &*engine(&folder, 1, 1).generator() {
        Generator::Network(checkpoint) => (0..checkpoint.config().block_size as u32).map(|i| i % 50).collect(),
        Generator::Ngrams(..) => panic!("a network"),
    };
    let engine = engine(&folder, 9, 9);
    let pauses = |join: bool| {
        let mut text = engine.submit(request(&[1, 2], 1, 150)).unwrap();
        let (mut last, mut pauses, mut joined) = (Instant::now(), Vec::new(), Vec::new());
        while let Some(Event::Token(_)) = text.blocking_recv() {
            pauses.push(last.elapsed().as_secs_f64() * 1e3);
            last = Instant::now();
            if join && pauses.len() % 15 == 0 {
                joined.push(engine.submit(request(&long, 1, 1)).unwrap());
            }
        }
        pauses.sort_by(f64::total_cmp);
        pauses
    };
    for join in [false, true] {
        let pauses = pauses(join);
        let at = |part: f64| pauses[((pauses.len() - 1) as f64 * part) as usize];
        eprintln!(
            "long prompts join: {join}: ms a token, median {:.2}, 90% {:.2}, most {:.2}",
            at(0.5),
            at(0.9),
            at(1.0)
        );
    }
}
