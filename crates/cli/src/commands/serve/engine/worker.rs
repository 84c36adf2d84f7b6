//! The thread that owns the decoder of a model's weights.

use std::{
    sync::{Arc, mpsc},
    thread::{Builder, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::Context;
use tinygpt_model::BatchDecoder;

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

/// A thread with its queue.
pub struct Worker {
    pub generator: Arc<Generator>,
    pub queue: Arc<Queue>,
    thread: JoinHandle<()>,
}

impl Worker {
    /// Starts the thread of a model, which has a decoder when this returns.
    pub fn start(generator: Generator, shared: &Common) -> anyhow::Result<Self> {
        let (opening, slots) = (shared.options.opening.clone(), shared.options.slots);
        Self::with_decoder(generator, shared, move |generator| generator.batch_decoder(&opening, slots))
    }

    /// [`Worker::start`] with another decoder.
    pub fn with_decoder(
        generator: Generator,
        shared: &Common,
        open: impl FnOnce(&Generator) -> anyhow::Result<Box<dyn BatchDecoder + '_>> + Send + 'static,
    ) -> anyhow::Result<Self> {
        let Common { id, options, counters } = shared;
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
        Ok(Self { generator, queue, thread })
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
