//! The engine of a model: a thread that owns the decoder and computes the texts of all requests side by side.
//!
//! `request.rs` is what it is asked for and tells, `queue.rs` where requests wait, `scheduler.rs` the loop of the thread, `row.rs`
//! a text in a slot, `worker.rs` the thread of one set of weights, and `reload.rs` how new weights are seen.

mod queue;
mod reload;
mod request;
mod row;
mod scheduler;
mod stats;
#[cfg(test)]
pub mod testing;
#[cfg(test)]
mod tests;
mod worker;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::bail;
use tinygpt_model::{ModelError, Tokenizer, checkpoint::WEIGHTS_FILE, ngram::is_ngram_folder};
use tinygpt_sampler::Sampler;
use tinygpt_trainer::run::Best;
use tokio::sync::{mpsc::Receiver, oneshot};

use self::{
    queue::Closing,
    reload::{Attempts, WeightsSeen},
    row::{Events, Job, LogitsJob, TextJob},
    stats::Counters,
    worker::{Common, Model, Worker},
};
pub use self::{
    request::{EndedBy, Event, Failure, GeneratedToken, Measured, Refused, TextRequest},
    stats::Stats,
};
use crate::{
    args::{OpeningArgs, ServeArgs},
    generator::Generator,
    output::Usage,
};

/// How often a folder is looked at for new weights.
const RELOAD_EVERY: Duration = Duration::from_secs(1);

/// How an engine works.
#[derive(Debug, Clone)]
pub struct Options {
    /// Texts that are computed side by side.
    pub slots: usize,
    /// Requests that may wait.
    pub queue: usize,
    /// The longest that a text may take, waiting included.
    pub timeout: Duration,
    pub opening: OpeningArgs,
}

impl From<&ServeArgs> for Options {
    fn from(args: &ServeArgs) -> Self {
        Self {
            slots: args.slots.into(),
            queue: args.queue.into(),
            timeout: Duration::from_secs(args.timeout),
            opening: args.opening.clone(),
        }
    }
}

/// A handle to the engine of a model. The last that is dropped ends it.
#[derive(Clone)]
pub struct Engine(Arc<Shared>);

struct Shared {
    common: Common,
    /// The same for all weights.
    tokenizer: Tokenizer,
    folder: PathBuf,
    /// Held for moments only: requests and metrics wait for it.
    workers: Mutex<Workers>,
    /// The weights that were looked at last. Held by a reload, of which there is one at a time, from its begin to its end.
    seen: Mutex<WeightsSeen>,
}

/// The threads of an engine.
struct Workers {
    /// That of the weights that new requests get.
    current: Arc<Worker>,
    /// That of the weights before, which ends when its last text does.
    retiring: Option<Arc<Worker>>,
    /// Whether the engine shuts down: no thread is started any more.
    closed: bool,
}

impl Engine {
    /// Opens the model of a folder and starts its thread.
    ///
    /// # Errors
    /// When it cannot be opened, or should be reloaded and is no network whose weights are one file.
    pub fn start(id: String, folder: &Path, args: &ServeArgs) -> anyhow::Result<Self> {
        if args.reload && (is_ngram_folder(folder) || !folder.join(WEIGHTS_FILE).is_file()) {
            let refused = format!("--reload: no {WEIGHTS_FILE} of a network in {}", folder.display());
            return Err(Usage(refused).into());
        }
        let engine = Self::open(id, folder, args.into())?;
        if args.reload {
            engine.reload_when_there_are_new_weights()?;
        }
        Ok(engine)
    }

    /// [`Engine::start`], which never reloads by itself.
    pub fn open(id: String, folder: &Path, options: Options) -> anyhow::Result<Self> {
        // Looked at before they are read: what comes in between is seen as new.
        let seen = WeightsSeen::look(folder);
        let common = Common { id, options, counters: Arc::new(Counters::default()) };
        let worker = Worker::start(Model::open(folder)?, &common)?;
        Ok(Self(Arc::new(Shared {
            tokenizer: worker.generator.tokenizer().clone(),
            folder: folder.to_owned(),
            common,
            workers: Mutex::new(Workers { current: Arc::new(worker), retiring: None, closed: false }),
            seen: Mutex::new(seen),
        })))
    }

    /// The model's name in requests.
    pub fn id(&self) -> &str {
        &self.0.common.id
    }

    /// From text to tokens and back.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.0.tokenizer
    }

    /// The folder of the model.
    pub fn folder(&self) -> &Path {
        &self.0.folder
    }

    /// The model that new requests get, and the evaluation of its weights where a run tells it.
    pub fn model(&self) -> (Arc<Generator>, Option<Best>) {
        let current = self.0.current();
        (Arc::clone(&current.generator), current.best)
    }

    /// The model that new requests get.
    pub fn generator(&self) -> Arc<Generator> {
        self.model().0
    }

    /// Queues the texts of a request, all of them or none. What they become is told to the receivers, which are in their order; a
    /// text is given up once its receiver is dropped. A reader that is many tokens behind stops its text until it has caught up.
    ///
    /// # Errors
    /// When not as many texts may wait, the engine is shutting down or has failed, or one has a rule or a token that cannot be.
    pub fn submit_all(&self, requests: Vec<TextRequest>) -> Result<Vec<Receiver<Event>>, Refused> {
        let texts: Vec<_> = requests.into_iter().map(|request| self.text_job(request)).collect::<Result<_, _>>()?;
        let (jobs, receivers) = texts.into_iter().unzip();
        self.send(jobs)?;
        Ok(receivers)
    }

    /// [`Engine::submit_all`] of one text.
    #[cfg(test)]
    pub fn submit(&self, request: TextRequest) -> Result<Receiver<Event>, Refused> {
        let (job, receiver) = self.text_job(request)?;
        self.send(vec![job])?;
        Ok(receiver)
    }

    /// The logits of the token after a prompt, `[V]`.
    pub async fn logits(&self, prompt: Vec<u32>) -> Result<Result<Vec<f32>, ModelError>, Refused> {
        let (answer, logits) = oneshot::channel();
        let worker = self.send(vec![Job::Logits(LogitsJob { prompt, answer })])?;
        logits.await.map_err(|_| if worker.has_failed() { Refused::EngineFailed } else { Refused::ShuttingDown })
    }

    /// Whether the thread that new requests get works: not once it has panicked.
    pub fn is_alive(&self) -> bool {
        !self.0.current().has_failed()
    }

    /// What the engine is doing.
    pub fn stats(&self) -> Stats {
        let workers = self.0.workers();
        let slots = self.0.common.options.slots;
        let (mut queued, mut running) = (0, 0);
        for worker in workers.all() {
            let (waiting, in_slots) = worker.queue.counts();
            queued += waiting;
            running += in_slots;
        }
        self.0.common.counters.stats((queued, running, slots))
    }

    /// Takes no more requests, lets those that are there go on for some time, and ends the rest. Blocks meanwhile.
    pub fn shut_down(&self, longest: Duration) {
        let workers = self.0.close(longest);
        // A step, and a part of a prompt, come to their ends first.
        workers.iter().for_each(|worker| worker.wait(longest + Duration::from_secs(2)));
    }

    /// Serves new weights where there are any: new requests get them, those that are there go on with the ones that they began
    /// with. Returns whether it did. Not before the texts of the last change have ended, and not once the engine shuts down.
    ///
    /// # Errors
    /// When the new model cannot be opened, which is tried again when it is asked for, or is no other state of the same one: such weights
    /// are not looked at again. The old one goes on.
    pub fn reload(&self) -> anyhow::Result<bool> {
        let mut seen = self.0.seen();
        let Some(current) = self.0.workers().replaceable() else { return Ok(false) };
        let Some(now) = seen.look_again(&self.0.folder) else { return Ok(false) };
        let model = Model::open(&self.0.folder)?;
        if !model.generator.is_same_but_for_weights(&current.generator) {
            *seen = now;
            bail!("another network or tokenizer is in {} now: start serve anew for it", self.0.folder.display());
        }
        let worker = Worker::start(model, &self.0.common)?;
        *seen = now;
        let mut workers = self.0.workers();
        if workers.closed {
            worker.queue.close(Closing::WhenDone);
            return Ok(false);
        }
        let old = std::mem::replace(&mut workers.current, Arc::new(worker));
        old.queue.close(Closing::WhenDone);
        workers.retiring = Some(old);
        self.0.common.counters.reloaded();
        Ok(true)
    }

    /// Looks for new weights now and then, for as long as there is a handle.
    fn reload_when_there_are_new_weights(&self) -> anyhow::Result<()> {
        let shared = Arc::downgrade(&self.0);
        std::thread::Builder::new().name("reload".into()).spawn(move || {
            // What is tried again fails again, mostly.
            let (mut told, mut attempts) = (None, Attempts::default());
            loop {
                std::thread::sleep(RELOAD_EVERY);
                let Some(shared) = shared.upgrade() else { return };
                let engine = Self(shared);
                let weights = WeightsSeen::look(engine.folder());
                if !attempts.is_due(&weights, Instant::now()) {
                    continue;
                }
                let result = engine.reload();
                attempts.made(result.is_ok(), weights, Instant::now());
                let error = match result {
                    Ok(new) => {
                        if new {
                            notice!("{}: new weights", engine.id());
                        }
                        None
                    }
                    Err(error) => Some(format!("{error:#}")),
                };
                if let Some(error) = error.as_ref().filter(|error| told.as_ref() != Some(*error)) {
                    notice!("{}: the new weights are not served: {error}", engine.id());
                }
                told = error;
            }
        })?;
        Ok(())
    }

    /// Refuses what cannot become a text.
    fn check(&self, request: &TextRequest) -> Result<Sampler, Refused> {
        let vocab_size = self.0.current().generator.vocab_size();
        let biased = request.rules.logit_bias.iter().map(|(token, _)| token);
        if let Some(token) = request.prompt.iter().chain(biased).find(|&&token| token as usize >= vocab_size) {
            return Err(Refused::BadRequest(format!("token {token} is not below the vocabulary size {vocab_size}")));
        }
        if request.prompt.is_empty() {
            return Err(Refused::BadRequest(ModelError::EmptyPrompt.to_string()));
        }
        let sampler = Sampler::new(request.rules.clone()).and_then(|sampler| match request.adaptive {
            Some(threshold) => sampler.with_adaptive(threshold),
            None => Ok(sampler),
        });
        sampler.map_err(|error| Refused::BadRequest(error.to_string()))
    }

    /// A text that may wait, and its reader.
    fn text_job(&self, request: TextRequest) -> Result<(Job, Receiver<Event>), Refused> {
        let sampler = self.check(&request)?;
        let (events, receiver) = Events::new();
        let deadline = Instant::now() + self.0.common.options.timeout;
        Ok((Job::Text(Box::new(TextJob { request, sampler, events, deadline })), receiver))
    }

    /// Queues jobs; gives the thread that has them.
    fn send(&self, jobs: Vec<Job>) -> Result<Arc<Worker>, Refused> {
        // Held until the jobs are in the queue: a reload closes it behind them.
        let workers = self.0.workers();
        workers.current.queue.submit(jobs)?;
        Ok(Arc::clone(&workers.current))
    }
}

impl Shared {
    fn workers(&self) -> MutexGuard<'_, Workers> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn current(&self) -> Arc<Worker> {
        Arc::clone(&self.workers().current)
    }

    fn seen(&self) -> MutexGuard<'_, WeightsSeen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets all threads end within some time, and starts no others.
    fn close(&self, longest: Duration) -> Vec<Arc<Worker>> {
        let mut workers = self.workers();
        workers.closed = true;
        let all: Vec<_> = workers.all().cloned().collect();
        all.iter().for_each(|worker| worker.queue.close(Closing::At(Instant::now() + longest)));
        all
    }
}

impl Workers {
    fn all(&self) -> impl Iterator<Item = &Arc<Worker>> {
        std::iter::once(&self.current).chain(&self.retiring)
    }

    /// The thread that another may take the place of now.
    fn replaceable(&mut self) -> Option<Arc<Worker>> {
        self.retiring.take_if(|worker| worker.is_over());
        (!self.closed && self.retiring.is_none()).then(|| Arc::clone(&self.current))
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.close(Duration::ZERO);
    }
}
