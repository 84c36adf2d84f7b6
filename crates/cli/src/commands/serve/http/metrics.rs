//! `GET /metrics`: what the server does, in the text format of Prometheus.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    extract::{MatchedPath, Request, State},
    http::header,
    middleware::Next,
    response::{IntoResponse, Response},
};
use prometheus_client::{
    encoding::prometheus_text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};
use tokio::time::Instant;

use super::error::ApiError;
use crate::commands::serve::Served;

/// Upper ends of the buckets of a token's time, in seconds: from a fast small model to a slow large one.
const TOKEN_BUCKETS: [f64; 14] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5];
/// Upper ends of the buckets of the time to a first token, in seconds: close enough that percentiles can be told from them.
const FIRST_TOKEN_BUCKETS: [f64; 29] = [
    0.0003, 0.0005, 0.0007, 0.001, 0.0015, 0.002, 0.003, 0.004, 0.005, 0.007, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05,
    0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0, 2.5, 10.0, 30.0, 120.0, 600.0,
];
/// Upper ends of the buckets of what is made of many tokens, in seconds.
const REQUEST_BUCKETS: [f64; 15] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 120.0, 600.0];

type ByModel<M> = Family<[(&'static str, String); 1], M>;
type HistogramByModel = Family<[(&'static str, String); 1], Histogram, fn() -> Histogram>;

/// What is counted here, and what engines count, which is set when it is asked for.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
    requests: Family<[(&'static str, String); 3], Counter>,
    prompt_tokens: ByModel<Counter>,
    generated_tokens: ByModel<Counter>,
    texts: ByModel<Counter>,
    cancelled: ByModel<Counter>,
    time_to_first_token: HistogramByModel,
    time_per_token: HistogramByModel,
    request_time: HistogramByModel,
    running: ByModel<Gauge>,
    queued: ByModel<Gauge>,
    slots: ByModel<Gauge>,
    steps: ByModel<Counter>,
    step_seconds: ByModel<Counter<f64, AtomicU64>>,
    reloads: ByModel<Counter>,
    connections: Gauge<i64, AtomicI64>,
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let by_token: fn() -> Histogram = || Histogram::new(TOKEN_BUCKETS);
        let to_first: fn() -> Histogram = || Histogram::new(FIRST_TOKEN_BUCKETS);
        let by_request: fn() -> Histogram = || Histogram::new(REQUEST_BUCKETS);
        let metrics = Self {
            registry: Arc::default(),
            requests: Family::default(),
            prompt_tokens: Family::default(),
            generated_tokens: Family::default(),
            texts: Family::default(),
            cancelled: Family::default(),
            time_to_first_token: Family::new_with_constructor(to_first),
            time_per_token: Family::new_with_constructor(by_token),
            request_time: Family::new_with_constructor(by_request),
            running: Family::default(),
            queued: Family::default(),
            slots: Family::default(),
            steps: Family::default(),
            step_seconds: Family::default(),
            reloads: Family::default(),
            connections: Gauge::default(),
        };
        let mut registry = Registry::with_prefix("tinygpt");
        metrics.register(&mut registry);
        Self { registry: Arc::new(Mutex::new(registry)), ..metrics }
    }

    fn register(&self, to: &mut Registry) {
        to.register("http_requests", "Answers by method, route and status", self.requests.clone());
        to.register("prompt_tokens", "Tokens of prompts whose texts were begun", self.prompt_tokens.clone());
        to.register("generated_tokens", "Tokens that were generated", self.generated_tokens.clone());
        to.register("texts", "Texts that were queued", self.texts.clone());
        to.register("cancelled_requests", "Requests for texts that did not come to their end", self.cancelled.clone());
        to.register("running_texts", "Texts that are computed", self.running.clone());
        to.register("queued_texts", "Texts that wait", self.queued.clone());
        to.register("slots", "Texts that can be computed side by side", self.slots.clone());
        to.register("steps", "Steps, each of one token of every running text", self.steps.clone());
        to.register("step_seconds", "What the steps took, in seconds", self.step_seconds.clone());
        to.register("reloads", "How often new weights took the place of others", self.reloads.clone());
        to.register("connections", "Open connections", self.connections.clone());
        let seconds = || Unit::Seconds;
        let first = "From the head of a request to the first token of any of its texts";
        to.register_with_unit("time_to_first_token", first, seconds(), self.time_to_first_token.clone());
        let each = "From a token of a text to its next";
        to.register_with_unit("time_per_token", each, seconds(), self.time_per_token.clone());
        let whole = "From a request for texts to the end of the last";
        to.register_with_unit("request", whole, seconds(), self.request_time.clone());
    }

    /// Counts the texts of a request that came at `started`.
    pub fn begin_texts(&self, model: &str, prompt_tokens: usize, texts: usize, started: Instant) -> TextClock {
        let label = [("model", model.to_owned())];
        self.prompt_tokens.get_or_create(&label).inc_by(prompt_tokens as u64);
        self.texts.get_or_create(&label).inc_by(texts as u64);
        TextClock {
            generated: self.generated_tokens.get_or_create_owned(&label),
            first_token: self.time_to_first_token.get_or_create_owned(&label),
            per_token: self.time_per_token.get_or_create_owned(&label),
            request: self.request_time.get_or_create_owned(&label),
            cancelled: self.cancelled.get_or_create_owned(&label),
            started,
            has_begun: false,
            last: vec![None; texts],
            has_ended: false,
        }
    }

    /// Counts a connection, until what this gives is dropped.
    pub fn connection(&self) -> OpenConnection {
        self.connections.inc();
        OpenConnection(self.connections.clone())
    }
}

/// A connection that is counted.
pub struct OpenConnection(Gauge<i64, AtomicI64>);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Times the tokens of a request.
pub struct TextClock {
    generated: Counter,
    first_token: Histogram,
    per_token: Histogram,
    request: Histogram,
    cancelled: Counter,
    started: Instant,
    has_begun: bool,
    /// When each text had its last token.
    last: Vec<Option<Instant>>,
    has_ended: bool,
}

impl TextClock {
    /// A token of a text came.
    pub fn token(&mut self, text: usize) {
        let now = Instant::now();
        self.generated.inc();
        let seconds = |since: Instant| Duration::as_secs_f64(&(now - since));
        if !std::mem::replace(&mut self.has_begun, true) {
            self.first_token.observe(seconds(self.started));
        }
        if let Some(last) = self.last[text].replace(now) {
            self.per_token.observe(seconds(last));
        }
    }

    /// The last text ended.
    pub fn end(&mut self) {
        if !std::mem::replace(&mut self.has_ended, true) {
            self.request.observe(self.started.elapsed().as_secs_f64());
        }
    }
}

impl Drop for TextClock {
    fn drop(&mut self) {
        if !self.has_ended {
            self.cancelled.inc();
        }
    }
}

/// Counts an answer.
pub async fn count(State(served): State<Arc<Served>>, request: Request, next: Next) -> Response {
    // Not the path: that is the client's, and there are too many.
    let route = request.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str).to_owned();
    // A method of the client's own would be a label of its own as well.
    let method = match request.method().as_str() {
        method @ ("GET" | "HEAD" | "POST" | "OPTIONS") => method.to_owned(),
        _ => "other".to_owned(),
    };
    let response = next.run(request).await;
    let labels = [("method", method), ("route", route), ("status", response.status().as_u16().to_string())];
    served.metrics.requests.get_or_create(&labels).inc();
    response
}

/// Tells all metrics.
pub async fn metrics(State(served): State<Arc<Served>>) -> Result<Response, ApiError> {
    let metrics = &served.metrics;
    for engine in &served.engines {
        let label = [("model", engine.id().to_owned())];
        let stats = engine.stats();
        metrics.running.get_or_create(&label).set(stats.running as i64);
        metrics.queued.get_or_create(&label).set(stats.queued as i64);
        metrics.slots.get_or_create(&label).set(stats.slots as i64);
        // Engines count for themselves: what they say is the count.
        metrics.steps.get_or_create(&label).inner().store(stats.steps, Ordering::Relaxed);
        metrics.step_seconds.get_or_create(&label).inner().store(stats.step_seconds.to_bits(), Ordering::Relaxed);
        metrics.reloads.get_or_create(&label).inner().store(stats.reloads, Ordering::Relaxed);
    }
    let mut text = String::new();
    let registry = metrics.registry.lock().unwrap_or_else(PoisonError::into_inner);
    encode(&mut text, &registry).map_err(ApiError::internal)?;
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response())
}
