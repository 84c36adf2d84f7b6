//! The thread that owns the decoder of a model's weights.

use std::{
    path::Path,
    sync::{Arc, mpsc},
    thread::{Builder, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::Context;
use tinygpt_model::BatchDecoder;
use tinygpt_trainer::{RunDir, run::Best};

use super::{
    Options,
    queue::{Closing, Queue},
    request::Refused,
    scheduler::Scheduler,
    stats::Counters,
};
use crate::generator::Generator;

/// What all threads of an engine share.
pub struct Common {
    /// The model's name in requests.
    pub id: String,
    pub options: Options,
    pub counters: Arc<Counters>,
}

/// A model as it was opened: new weights are another one.
pub struct Model {
    pub generator: Generator,
    /// The evaluation of its weights, the best ones of their run; none of what is no run of ours.
    pub best: Option<Best>,
}

impl Model {
    /// Opens the model of a folder.
    pub fn open(folder: &Path) -> anyhow::Result<Self> {
        // A run saves its state just before the weights that it names. Where it does so meanwhile, the state may be that of other
        // weights; with --reload these are seen to be new afterwards, and are opened again.
        let best = RunDir::open(folder).ok().and_then(best_of);
        Ok(Self { generator: Generator::open(folder, None)?, best })
    }
}

/// The best evaluation of a run that has saved a state. A state that cannot be read is told of: the weights can be served without it.
fn best_of(run: RunDir) -> Option<Best> {
    let last = run.last();
    if !last.exists() {
        return None;
    }
    match last.read_state() {
        Ok(state) => state.best,
        Err(error) => {
            notice!("the step and the loss of the weights are not known: {error}");
            None
        }
    }
}

/// A thread with its queue.
pub struct Worker {
    pub generator: Arc<Generator>,
    pub best: Option<Best>,
    pub queue: Arc<Queue>,
    thread: JoinHandle<()>,
}

impl Worker {
    /// Starts the thread of a model, which has a decoder when this returns.
    pub fn start(model: Model, shared: &Common) -> anyhow::Result<Self> {
        let (opening, slots) = (shared.options.opening.clone(), shared.options.slots);
        Self::with_decoder(model, shared, move |generator| generator.batch_decoder(&opening, slots))
    }

    /// [`Worker::start`] with another decoder.
    pub fn with_decoder(
        model: Model,
        shared: &Common,
        open: impl FnOnce(&Generator) -> anyhow::Result<Box<dyn BatchDecoder + '_>> + Send + 'static,
    ) -> anyhow::Result<Self> {
        let Common { id, options, counters } = shared;
        let Model { generator, best } = model;
        let generator = Arc::new(generator);
        let queue = Arc::new(Queue::new(options.queue, options.slots));
        let (ready, is_ready) = mpsc::sync_channel(1);
        let thread = {
            let (generator, queue, counters) = (Arc::clone(&generator), Arc::clone(&queue), Arc::clone(counters));
            let id = id.clone();
            Builder::new().name("engine".into()).spawn(move || match open(&generator) {
                Ok(decoder) => {
                    drop(ready.send(Ok(())));
                    let mut scheduler = Scheduler::new(decoder, generator.tokenizer(), Arc::clone(&queue), counters);
                    // Dropped before the texts of a thread that panics: whoever misses their ends learns why.
                    let _closed = CloseAtEnd { id: &id, queue: &queue };
                    scheduler.run();
                }
                Err(error) => drop(ready.send(Err(error))),
            })?
        };
        is_ready.recv().context("the engine's thread ended before it began")??;
        Ok(Self { generator, best, queue, thread })
    }

    /// Whether the thread has ended.
    pub fn is_over(&self) -> bool {
        self.thread.is_finished()
    }

    /// Whether the thread has panicked.
    pub fn has_failed(&self) -> bool {
        self.queue.closing() == Some(Closing::Failed)
    }

    /// Waits for the thread's end.
    pub fn wait(&self, longest: Duration) {
        let start = Instant::now();
        while !self.is_over() && start.elapsed() < longest {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Closes a queue when the thread that serves it ends, and ends the jobs in it: whoever waits for a thread that has panicked would
/// wait forever.
struct CloseAtEnd<'q> {
    id: &'q str,
    queue: &'q Queue,
}

impl Drop for CloseAtEnd<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.queue.close(Closing::Failed);
            notice!("{}: {}", self.id, Refused::EngineFailed);
        } else {
            self.queue.close(Closing::At(Instant::now()));
        }
        // Their readers see that there is nothing more.
        drop(self.queue.take_over(|_| true));
    }
}
