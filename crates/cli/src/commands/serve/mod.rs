//! `tinygpt serve`: models over HTTP, and a page.

mod engine;
mod http;
mod page;

use std::{net::SocketAddr, path::Path};

use anyhow::Context;
use tinygpt_trainer::RunDir;

use crate::{
    args::ServeArgs,
    hub,
    output::{Usage, print_stdout},
};
use engine::Engine;

/// What all requests share.
pub struct Served {
    /// The models, that of requests without a model's name first.
    pub engines: Vec<Engine>,
}

pub fn run(args: &ServeArgs) -> anyhow::Result<()> {
    if !args.host.is_loopback() && args.api_key.is_none() && !args.insecure {
        let refused = format!(
            "--host {}: other machines could reach it; give an --api-key that they must send, or --insecure",
            args.host
        );
        return Err(Usage(refused).into());
    }
    let folders = match args.models.as_slice() {
        [] => vec![RunDir::latest(&args.runs)?.path().to_owned()],
        given => given.iter().map(|path| Ok(hub::folder(path)?.into_owned())).collect::<anyhow::Result<_>>()?,
    };
    let engines: Vec<Engine> =
        folders.iter().map(|folder| Engine::start(id_of(folder), folder, args)).collect::<anyhow::Result<_>>()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(serve(args, Served { engines }))
}

/// The name of a model in requests: that of its folder.
fn id_of(folder: &Path) -> String {
    folder.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned())
}

async fn serve(args: &ServeArgs, served: Served) -> anyhow::Result<()> {
    let address = SocketAddr::new(args.host, args.port);
    let listener =
        tokio::net::TcpListener::bind(address).await.with_context(|| format!("cannot listen at {address}"))?;
    print_stdout(&format!("http://{}\n", listener.local_addr()?))?;
    Ok(axum::serve(listener, http::router(served)).await?)
}
