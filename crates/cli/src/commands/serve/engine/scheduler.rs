//! The loop of the engine's thread: requests get slots, prompts are computed in parts, and all texts that have a token make a
//! step together.

use std::{
    collections::VecDeque,
    ops::ControlFlow,
    sync::Arc,
    time::{Duration, Instant},
};

use rayon::prelude::*;
use tinygpt_model::{BatchDecoder, ModelError, NextLogits, Tokenizer};

use super::{
    queue::{Closing, Queue},
    request::{EndedBy, Failure},
    row::{Drawn, Job, LogitsJob, Row},
    stats::Counters,
};

/// How often texts whose readers are behind are looked at where there are no others.
const SLOW_READERS: Duration = Duration::from_millis(5);
/// From this cost of the draws of a step on, several threads draw: the logits that are read, and as many for the rest of a draw.
const MIN_PARALLEL_DRAWS: usize = 1 << 15;
const DRAW_COST: usize = 1 << 10;

/// What has a slot.
enum Occupant<'m> {
    Text { row: Box<Row<'m>>, phase: Phase },
    Logits(LogitsJob),
}

/// What a text waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Parts of prompt work.
    Prompt,
    /// To be given this token, which was drawn.
    Token(u32),
    /// The step that comes now.
    Step,
}

/// The texts of a decoder.
pub struct Scheduler<'m> {
    decoder: Box<dyn BatchDecoder + 'm>,
    tokenizer: &'m Tokenizer,
    queue: Arc<Queue>,
    counters: Arc<Counters>,
    slots: Vec<Option<Occupant<'m>>>,
    /// The slots with prompt work, in the order in which it came up.
    prompts: VecDeque<usize>,
    /// How long the last step took: what prompts may take between two.
    step_time: Duration,
    /// What prompts have taken since then.
    prompt_time: Duration,
}

impl<'m> Scheduler<'m> {
    pub fn new(
        decoder: Box<dyn BatchDecoder + 'm>,
        tokenizer: &'m Tokenizer,
        queue: Arc<Queue>,
        counters: Arc<Counters>,
    ) -> Self {
        let slots = (0..decoder.slots()).map(|_| None).collect();
        let (step_time, prompt_time) = (Duration::ZERO, Duration::ZERO);
        Self { decoder, tokenizer, queue, counters, slots, prompts: VecDeque::new(), step_time, prompt_time }
    }

    /// Computes requests until the queue is closed and they are done.
    pub fn run(&mut self) {
        loop {
            let closing = self.queue.closing();
            self.end_what_is_over(closing);
            self.admit();
            let is_empty = self.slots.iter().all(Option::is_none);
            if is_empty {
                if closing.is_some() {
                    return;
                }
                self.queue.wait();
            } else if self.is_time_for_prompts() {
                self.work_on_prompt();
            } else if self.has_ready_rows() {
                self.step();
            } else {
                std::thread::sleep(SLOW_READERS);
            }
        }
    }

    /// Ends the texts, and the waiting requests, whose readers are gone or whose time is over.
    fn end_what_is_over(&mut self, closing: Option<Closing>) {
        let now = Instant::now();
        let shut_down = matches!(closing, Some(Closing::At(moment)) if moment <= now);
        let reason = if shut_down { EndedBy::ShutDown } else { EndedBy::TimedOut };
        for job in self.queue.take_over(|job| shut_down || job.is_cancelled() || job.is_late(now)) {
            job.end(reason);
        }
        for slot in 0..self.slots.len() {
            let is_over = match &self.slots[slot] {
                Some(Occupant::Text { row, .. }) => shut_down || row.is_cancelled() || row.is_late(now),
                Some(Occupant::Logits(job)) => shut_down || job.answer.is_closed(),
                None => false,
            };
            if is_over {
                self.end(slot, Ok(reason));
            }
        }
    }

    /// Gives free slots to the requests that wait.
    fn admit(&mut self) {
        while let Some(slot) = self.slots.iter().position(Option::is_none) {
            let Some(job) = self.queue.take() else { return };
            if matches!(&job, Job::Text(job) if job.request.max_new_tokens == 0) {
                self.queue.give_back();
                job.end(EndedBy::Length);
                continue;
            }
            if let Err(error) = self.decoder.begin(slot, job.prompt()) {
                self.queue.give_back();
                job.fail(error);
                continue;
            }
            self.counters.began(job.prompt().len());
            self.prompts.push_back(slot);
            self.slots[slot] = Some(match job {
                Job::Text(job) => {
                    Occupant::Text { row: Box::new(Row::new(self.tokenizer, *job)), phase: Phase::Prompt }
                }
                Job::Logits(job) => Occupant::Logits(job),
            });
        }
    }

    /// Whether a text has a token to step with, and room for the next.
    fn has_ready_rows(&self) -> bool {
        let ready = |occupant: &Occupant<'_>| match occupant {
            Occupant::Text { row, phase: Phase::Token(_) } => row.has_room(),
            _ => false,
        };
        self.slots.iter().flatten().any(ready)
    }

    /// Whether there is prompt work, and it has not taken about as long as a step where other texts wait for one.
    fn is_time_for_prompts(&self) -> bool {
        !self.prompts.is_empty() && (self.prompt_time < self.step_time || !self.has_ready_rows())
    }

    /// Computes a part of the first prompt. One only: whoever went away meanwhile, and an end of the engine, is seen before the next.
    fn work_on_prompt(&mut self) {
        let Some(&slot) = self.prompts.front() else { return };
        let start = Instant::now();
        match self.decoder.prompt_part(slot) {
            Ok(None) => {}
            Ok(Some(logits)) => {
                self.prompts.pop_front();
                match &mut self.slots[slot] {
                    Some(Occupant::Text { row, .. }) => {
                        let drawn = row.draw(logits, &self.counters);
                        self.go_on(slot, drawn);
                    }
                    Some(Occupant::Logits(_)) => {
                        let logits = logits.to_vec();
                        if let Some(Occupant::Logits(job)) = self.free(slot) {
                            // Nobody may be there any more.
                            drop(job.answer.send(Ok(logits)));
                        }
                    }
                    None => {}
                }
            }
            Err(error) => self.end(slot, Err(error)),
        }
        let time = start.elapsed();
        self.prompt_time += time;
        self.counters.worked_on_prompts(time);
    }

    /// Computes one position of each text that has a token.
    fn step(&mut self) {
        self.prompt_time = Duration::ZERO;
        let start = Instant::now();
        let mut slots = Vec::with_capacity(self.slots.len());
        for slot in 0..self.slots.len() {
            let Some(Occupant::Text { row, phase }) = &mut self.slots[slot] else { continue };
            let &mut Phase::Token(token) = phase else { continue };
            if !row.has_room() {
                continue;
            }
            match self.decoder.append(slot, token) {
                Ok(NextLogits::Step) => {
                    *phase = Phase::Step;
                    slots.push(slot);
                }
                Ok(NextLogits::Prompt) => {
                    *phase = Phase::Prompt;
                    self.prompts.push_back(slot);
                }
                Err(error) => self.end(slot, Err(error)),
            }
        }
        if slots.is_empty() {
            return;
        }
        let logits = match self.decoder.step(&slots) {
            Ok(logits) => logits,
            Err(error) => {
                let failure = Failure::from(error);
                for slot in slots {
                    self.fail(slot, failure.clone());
                }
                return;
            }
        };
        // Slots are in order, and so are the rows that step.
        let stepping = self.slots.iter_mut().flatten().filter_map(|occupant| match occupant {
            Occupant::Text { row, phase: Phase::Step } => Some(row),
            _ => None,
        });
        let mut rows: Vec<_> = stepping.zip(logits.chunks_exact(logits.len() / slots.len())).collect();
        let counters = &*self.counters;
        let drawn: Vec<_> = if logits.len() + DRAW_COST * rows.len() >= MIN_PARALLEL_DRAWS {
            rows.par_iter_mut().map(|(row, logits)| row.draw(logits, counters)).collect()
        } else {
            rows.iter_mut().map(|(row, logits)| row.draw(logits, counters)).collect()
        };
        self.step_time = start.elapsed();
        self.counters.stepped(slots.len(), self.step_time);
        for (slot, drawn) in slots.into_iter().zip(drawn) {
            self.go_on(slot, drawn);
        }
    }

    /// Goes on with a text after a draw.
    fn go_on(&mut self, slot: usize, drawn: Result<Drawn, Failure>) {
        match drawn {
            Ok(ControlFlow::Continue(token)) => {
                if let Some(Occupant::Text { phase, .. }) = &mut self.slots[slot] {
                    *phase = Phase::Token(token);
                }
            }
            Ok(ControlFlow::Break(by)) => self.end(slot, Ok(by)),
            Err(failure) => self.fail(slot, failure),
        }
    }

    /// Ends a text that cannot go on.
    fn fail(&mut self, slot: usize, failure: Failure) {
        if let Some(Occupant::Text { row, .. }) = self.free(slot) {
            row.end(Err(failure));
        }
    }

    /// Ends what is in a slot.
    fn end(&mut self, slot: usize, by: Result<EndedBy, ModelError>) {
        match self.free(slot) {
            Some(Occupant::Text { row, .. }) => row.end(by.map_err(Failure::from)),
            Some(Occupant::Logits(job)) => {
                // An answer that is dropped says that there will be none.
                if let Err(error) = by {
                    drop(job.answer.send(Err(error)));
                }
            }
            None => {}
        }
    }

    /// Frees a slot, and gives what was in it, whose end is told afterwards: whoever hears of it finds the slot free.
    fn free(&mut self, slot: usize) -> Option<Occupant<'m>> {
        self.prompts.retain(|&other| other != slot);
        self.decoder.release(slot);
        self.queue.give_back();
        self.slots[slot].take()
    }
}
