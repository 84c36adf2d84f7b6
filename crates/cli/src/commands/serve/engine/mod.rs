//! The engine of a model: a thread that owns the decoder and computes the texts of all requests.

mod text;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{SyncSender, TrySendError, sync_channel},
    },
};

use tinygpt_model::{
    ModelError, Tokenizer,
    constraint::Constraint,
    generate_with,
    language_model::{NextToken, most_probable},
    tokenizer::StopStrings,
};
use tinygpt_sampler::{Sampler, SamplingParams};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use self::text::Text;
use crate::{args::ServeArgs, generator::Generator};

/// A text to generate.
#[derive(Debug, Clone)]
pub struct TextRequest {
    /// What it starts with; at least one token.
    pub prompt: Vec<u32>,
    pub rules: SamplingParams,
    /// Greedy wherever the largest probability, after all rules, exceeds this.
    pub adaptive: Option<f64>,
    /// The number of the sample: what its draws depend on, beside the seed.
    pub sequence: u64,
    pub max_new_tokens: usize,
    /// The text ends before the first of these.
    pub stops: StopStrings,
    /// How many of the most probable tokens are told beside each token; none of the model's distribution is told without.
    pub top: Option<usize>,
    /// What the text must be.
    pub constraint: Option<Constraint>,
}

/// What is told of a text as it grows.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    Token(GeneratedToken),
    Ended {
        by: EndedBy,
        /// The text that was held back, as the possible start of a stop or the part of a character.
        rest: String,
    },
    /// Why the text could not go on.
    Failed(String),
}

/// A token that was drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct GeneratedToken {
    pub id: u32,
    /// The text that this token settles; empty where a character or a possible stop is unfinished.
    pub piece: String,
    /// In the model's own distribution, where it was asked for.
    pub measured: Option<Measured>,
}

/// A token in the model's own distribution: temperature 1, before penalties, grammars and all other rules.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// In nats.
    pub logprob: f64,
    /// From 1, of the most probable.
    pub rank: usize,
    /// Of the distribution, in nats.
    pub entropy: f64,
    /// The most probable tokens with their log-probabilities, that one first.
    pub top: Vec<(u32, f64)>,
}

impl Measured {
    /// A token in the distribution of logits `[V]`, with the `top` most probable ones.
    pub fn of(logits: &[f32], id: u32, top: usize) -> Self {
        let distribution = NextToken::of(logits);
        let logit = logits[id as usize];
        let before = |(other, &x): (usize, &f32)| x > logit || (x == logit && other < id as usize);
        let logprob = |(id, logit): (u32, f32)| (id, distribution.logprob(logit));
        Self {
            logprob: distribution.logprob(logit),
            rank: 1 + logits.iter().enumerate().filter(|&at| before(at)).count(),
            entropy: distribution.entropy,
            top: most_probable(logits, top).into_iter().map(logprob).collect(),
        }
    }
}

/// How busy an engine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    /// Texts that are computed.
    pub running: usize,
    /// Texts that wait.
    pub queued: usize,
    /// Texts that can be computed side by side.
    pub slots: usize,
}

/// Why a text ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndedBy {
    Stop,
    Length,
    Grammar,
}

/// Why a request was not taken.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("all texts that may wait are waiting: come back in a moment")]
    QueueFull,
    #[error("the server is shutting down")]
    ShuttingDown,
}

/// A handle to the engine of a model.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
    requests: SyncSender<Work>,
}

struct Shared {
    id: String,
    generator: Generator,
    running: AtomicUsize,
    queued: AtomicUsize,
}

/// What the engine's thread does.
enum Work {
    Text(Box<TextRequest>, tokio::sync::mpsc::UnboundedSender<Event>),
    Logits(Vec<u32>, tokio::sync::oneshot::Sender<Result<Vec<f32>, ModelError>>),
}

impl Engine {
    /// Opens the model of a folder and starts its thread.
    pub fn start(id: String, folder: &Path, args: &ServeArgs) -> anyhow::Result<Self> {
        let generator = Generator::open(folder, None)?;
        let shared = Arc::new(Shared { id, generator, running: AtomicUsize::new(0), queued: AtomicUsize::new(0) });
        let (requests, queue) = sync_channel(usize::from(args.queue));
        let on_thread = Arc::clone(&shared);
        let how = (args.window.into(), args.weights.into(), args.device);
        std::thread::Builder::new().name("engine".into()).spawn(move || {
            let generator = &on_thread.generator;
            let mut decoder = match generator.decoder(how, 1) {
                Ok(decoder) => decoder,
                Err(error) => return notice!("{error:#}"),
            };
            while let Ok(work) = queue.recv() {
                match work {
                    Work::Logits(prompt, answer) => {
                        let logits = decoder.start(&prompt, 1).and_then(|logits| Ok(logits.to_host()?.into_owned()));
                        answer.send(logits).ok();
                    }
                    Work::Text(request, events) => {
                        on_thread.queued.fetch_sub(1, Ordering::Relaxed);
                        let sampler = Sampler::new(request.rules.clone()).and_then(|sampler| match request.adaptive {
                            Some(threshold) => sampler.with_adaptive(threshold),
                            None => Ok(sampler),
                        });
                        let mut sampler = match sampler {
                            Ok(sampler) => sampler,
                            Err(error) => {
                                events.send(Event::Failed(error.to_string())).ok();
                                continue;
                            }
                        };
                        let mut text = Text::new(generator.tokenizer(), &request, events);
                        let generation = text.generation();
                        on_thread.running.store(1, Ordering::Relaxed);
                        let result = generate_with(decoder.as_mut(), &mut sampler, generation, &mut text);
                        on_thread.running.store(0, Ordering::Relaxed);
                        text.end(result);
                    }
                }
            }
        })?;
        Ok(Self { shared, requests })
    }

    /// The model's name in requests.
    pub fn id(&self) -> &str {
        &self.shared.id
    }

    /// From text to tokens and back.
    pub fn tokenizer(&self) -> &Tokenizer {
        self.shared.generator.tokenizer()
    }

    /// The model.
    pub fn generator(&self) -> &Generator {
        &self.shared.generator
    }

    /// How busy the engine is.
    pub fn stats(&self) -> Stats {
        let now = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        Stats { running: now(&self.shared.running), queued: now(&self.shared.queued), slots: 1 }
    }

    /// Queues a text. What it becomes is told to the receiver; the text is given up once that is dropped.
    pub fn submit(&self, request: TextRequest) -> Result<UnboundedReceiver<Event>, Refused> {
        let (events, receiver) = unbounded_channel();
        self.shared.queued.fetch_add(1, Ordering::Relaxed);
        self.send(Work::Text(Box::new(request), events)).inspect_err(|_| {
            self.shared.queued.fetch_sub(1, Ordering::Relaxed);
        })?;
        Ok(receiver)
    }

    /// The logits of the token after a prompt, `[V]`.
    pub async fn logits(&self, prompt: Vec<u32>) -> Result<Result<Vec<f32>, ModelError>, Refused> {
        let (answer, logits) = tokio::sync::oneshot::channel();
        self.send(Work::Logits(prompt, answer))?;
        logits.await.map_err(|_| Refused::ShuttingDown)
    }

    fn send(&self, work: Work) -> Result<(), Refused> {
        self.requests.try_send(work).map_err(|error| match error {
            TrySendError::Full(_) => Refused::QueueFull,
            TrySendError::Disconnected(_) => Refused::ShuttingDown,
        })
    }
}
