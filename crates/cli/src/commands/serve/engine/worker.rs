//! The thread that owns the decoder of a model's weights.

use std::{
    path::Path,
    sync::{Arc, mpsc},
    thread::{Builder, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::Context;

use super::{
    Options,
    queue::{Closing, Queue},
    scheduler::Scheduler,
    stats::Counters,
};
use crate::generator::Generator;

/// A thread with its queue.
pub struct Worker {
    pub generator: Arc<Generator>,
    pub queue: Arc<Queue>,
    thread: JoinHandle<()>,
}

impl Worker {
    /// Opens the model of a folder and starts its thread, which has a decoder when this returns.
    pub fn start(folder: &Path, options: &Options, counters: &Arc<Counters>) -> anyhow::Result<Self> {
        let generator = Arc::new(Generator::open(folder, None)?);
        let queue = Arc::new(Queue::new(options.queue, options.slots));
        let (ready, is_ready) = mpsc::sync_channel(1);
        let thread = {
            let (generator, queue, counters) = (Arc::clone(&generator), Arc::clone(&queue), Arc::clone(counters));
            let (opening, slots) = (options.opening.clone(), options.slots);
            Builder::new().name("engine".into()).spawn(move || {
                // Whoever waits for a thread that has panicked would wait forever.
                let _closed = CloseAtEnd(&queue);
                match generator.batch_decoder(&opening, slots) {
                    Ok(decoder) => {
                        drop(ready.send(Ok(())));
                        Scheduler::new(decoder, generator.tokenizer(), Arc::clone(&queue), counters).run();
                    }
                    Err(error) => drop(ready.send(Err(error))),
                }
            })?
        };
        is_ready.recv().context("the engine's thread ended before it began")??;
        Ok(Self { generator, queue, thread })
    }

    /// Whether the thread has ended.
    pub fn is_over(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for the thread's end.
    pub fn wait(&self, longest: Duration) {
        let start = Instant::now();
        while !self.is_over() && start.elapsed() < longest {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Closes a queue when the thread that serves it ends, and ends the jobs in it.
struct CloseAtEnd<'q>(&'q Queue);

impl Drop for CloseAtEnd<'_> {
    fn drop(&mut self) {
        self.0.close(Closing::At(Instant::now()));
        // Their readers see that there is nothing more.
        drop(self.0.take_over(|_| true));
    }
}
