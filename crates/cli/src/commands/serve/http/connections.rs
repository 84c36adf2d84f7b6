//! Connections: how many, how long they may take, and how they end.

use std::{pin::pin, sync::Arc, time::Duration};

use axum::Router;
use hyper::{
    body::Incoming,
    server::conn::http1,
    service::{Service, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
};
use tokio_io_timeout::TimeoutStream;

use super::{in_progress::InProgress, limits, metrics::Metrics, per_client::Client};
use crate::commands::serve::{engine::Engine, signals::Signals};

/// What requests have, after their grace, to say that they were ended: an engine ends a step, or a part of a prompt, first.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// What the last bytes of answers have to go out, and clients to close.
const FLUSH: Duration = Duration::from_secs(1);
/// What a server without free handles waits before it accepts again.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// What the end of a server concerns.
pub struct Ending {
    pub engines: Vec<Engine>,
    pub requests: InProgress,
    /// How long requests may go on that run when the server is told to end.
    pub grace: Duration,
}

/// Serves until a first signal; then no connection is taken, and requests that run may go on for a while, or until a second
/// signal. Texts that run longer end with an error. Tells how many requests were cut off without a word.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    metrics: &Metrics,
    mut signals: Signals,
    ending: Ending,
) -> usize {
    let (end, ends) = watch::channel(false);
    let free = Arc::new(Semaphore::new(limits::CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = signals.next() => break,
            // Connections that have ended are forgotten.
            Some(_) = connections.join_next() => {}
            accepted = accept(&listener, &free) => {
                let Some((stream, client, permit)) = accepted else { continue };
                let (router, ends, open) = (router.clone(), ends.clone(), metrics.connection());
                connections.spawn(async move {
                    connection(stream, client, router, ends).await;
                    drop((permit, open));
                });
            }
        }
    }
    drop(listener);
    end.send_replace(true);
    let Ending { engines, requests, grace } = ending;
    for engine in engines {
        tokio::task::spawn_blocking(move || engine.shut_down(grace));
    }
    let all_closed = async { while connections.join_next().await.is_some() {} };
    // A connection without a request, such as one whose head never comes to its end, is not waited for.
    let all_answered = async {
        tokio::time::timeout(grace + LAST_WORDS, requests.none()).await.ok();
        tokio::time::sleep(FLUSH).await;
    };
    tokio::select! {
        () = all_closed => {}
        () = all_answered => {}
        () = signals.next() => {}
    }
    requests.count()
}

/// Takes a connection once there is room for it: others wait in the system's queue.
async fn accept(listener: &TcpListener, free: &Arc<Semaphore>) -> Option<(TcpStream, Client, OwnedSemaphorePermit)> {
    let permit = Arc::clone(free).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, address)) => Some((stream, Client(address.ip()), permit)),
        Err(_) => {
            tokio::time::sleep(ACCEPT_AGAIN).await;
            None
        }
    }
}

/// Answers the requests of a connection, one after the other.
async fn connection(stream: TcpStream, client: Client, router: Router, mut ends: watch::Receiver<bool>) {
    // A token is sent when it is there; without it, it only comes later.
    stream.set_nodelay(true).ok();
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(limits::WRITE_SECONDS));
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(client);
        router.call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits::HEAD_SECONDS)
        .max_header_size(limits::HEAD_BYTES)
        .serve_connection(TokioIo::new(Box::pin(stream)), service);
    let mut connection = pin!(connection);
    tokio::select! {
        // What goes wrong with a connection is the client's affair: it has gone, or is told.
        _ = connection.as_mut() => return,
        _ = ends.wait_for(|&ends| ends) => {}
    }
    connection.as_mut().graceful_shutdown();
    connection.await.ok();
}
