//! `tinygpt serve`: models over HTTP, and a page.

mod engine;
mod http;
mod page;
mod signals;

use std::{
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::Context;
use tinygpt_trainer::RunDir;
use tokio::sync::Semaphore;

use self::{
    engine::Engine,
    http::{
        ChatTemplate,
        connections::{self, Ending},
        error::ApiError,
        in_progress::InProgress,
        metrics::Metrics,
        per_client::PerClient,
        security::{self, Guard},
    },
    page::Page,
    signals::Signals,
};
use crate::{
    args::ServeArgs,
    hub,
    output::{Interrupted, Usage, print_stdout},
    units::seconds_since_1970,
};

/// What all requests share.
pub struct Served {
    /// The models, that of requests without a model's name first.
    pub engines: Vec<Engine>,
    /// Those of the models, where they have one.
    chat_templates: Vec<Option<ChatTemplate>>,
    guard: Guard,
    page: Page,
    metrics: Metrics,
    /// Turns of grammars that are read.
    grammars: Arc<Semaphore>,
    /// Those that are being answered.
    requests: InProgress,
    /// And how many of them a client may have.
    clients: PerClient,
    /// The longest that a request may take.
    pub timeout: Duration,
    /// The most texts of a request: as many as may wait.
    max_texts: usize,
    /// When the server started, in seconds since 1970.
    started: u64,
}

impl Served {
    /// A server of these models.
    fn new(args: &ServeArgs, engines: Vec<Engine>, chat_templates: Vec<Option<ChatTemplate>>) -> Self {
        Self {
            engines,
            chat_templates,
            guard: Guard::new(args),
            page: Page::new(args.runs.clone()),
            metrics: Metrics::new(),
            grammars: Arc::new(Semaphore::new(http::limits::GRAMMARS)),
            requests: InProgress::default(),
            clients: PerClient::new(args.per_client.map(usize::from)),
            timeout: Duration::from_secs(args.timeout),
            max_texts: usize::from(args.queue).max(1),
            started: seconds_since_1970(SystemTime::now()) as u64,
        }
    }

    /// The model of a name, or without one the first.
    pub fn engine(&self, name: Option<&str>) -> Result<&Engine, ApiError> {
        let Some(name) = name else { return Ok(&self.engines[0]) };
        self.engines.iter().find(|engine| engine.id() == name).ok_or_else(|| {
            let names: Vec<_> = self.engines.iter().map(Engine::id).collect();
            ApiError::no_model(name, &names)
        })
    }

    /// The chat template of a model.
    fn chat_template(&self, id: &str) -> Option<&ChatTemplate> {
        let at = self.engines.iter().position(|engine| engine.id() == id)?;
        self.chat_templates[at].as_ref()
    }
}

pub fn run(args: &ServeArgs) -> anyhow::Result<()> {
    if !args.host.is_loopback() && args.api_key.is_none() && !args.insecure {
        let refused = format!(
            "--host {}: other machines could reach it; give an --api-key that they must send, or --insecure",
            args.host
        );
        return Err(Usage(refused).into());
    }
    if args.api_key.as_ref().is_some_and(|key| !security::is_key(key)) {
        let refused =
            "--api-key: a key is made of ASCII letters, digits and signs, without spaces: no header has others";
        return Err(Usage(refused.into()).into());
    }
    let models = models(args)?;
    // Before the models are opened, which may take long.
    let address = SocketAddr::new(args.host, args.port);
    let listener = TcpListener::bind(address).with_context(|| format!("cannot listen at {address}"))?;
    listener.set_nonblocking(true)?;
    let engines =
        models.iter().map(|(id, path)| Engine::start(id.clone(), path, args)).collect::<anyhow::Result<Vec<_>>>()?;
    let template = |engine: &Engine| ChatTemplate::of_model(engine.folder(), engine.tokenizer());
    let chat_templates = engines.iter().map(template).collect::<anyhow::Result<_>>()?;
    let served = Served::new(args, engines, chat_templates);
    let engines = served.engines.clone();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let cut = runtime.block_on(serve(listener, served, Duration::from_secs(args.grace)));
    // Work that is not waited for ends with the program.
    runtime.shutdown_background();
    match cut? {
        0 => {
            // No request waits for a text, hence none is waited for.
            engines.iter().for_each(|engine| engine.shut_down(Duration::ZERO));
            Ok(())
        }
        cut => Err(Interrupted(format!("interrupted: {cut} requests were cut off")).into()),
    }
}

/// The names of the models in requests, and where they are.
fn models(args: &ServeArgs) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let given = match args.models.as_slice() {
        [] => vec![RunDir::latest(&args.runs)?.path().to_owned()],
        given => given.to_vec(),
    };
    let mut models: Vec<(String, PathBuf)> = Vec::new();
    for path in given {
        let id = id_of(&path);
        if models.iter().any(|(other, _)| *other == id) {
            return Err(Usage(format!("two models are named `{id}`: requests could not tell them apart")).into());
        }
        models.push((id, hub::folder(&path)?.into_owned()));
    }
    Ok(models)
}

/// The name of a model in requests: that of its folder, or of the hub.
fn id_of(path: &Path) -> String {
    match path.to_str().and_then(|path| path.strip_prefix("hf:")) {
        Some(name) => name.to_owned(),
        None => path.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned()),
    }
}

/// Answers requests until a signal; tells how many were cut off.
async fn serve(listener: TcpListener, served: Served, grace: Duration) -> anyhow::Result<usize> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let signals = Signals::listen()?;
    let metrics = served.metrics.clone();
    let ending = Ending { engines: served.engines.clone(), requests: served.requests.clone(), grace };
    print_stdout(&format!("http://{}\n", listener.local_addr()?))?;
    Ok(connections::serve(listener, http::router(served), &metrics, signals, ending).await)
}
