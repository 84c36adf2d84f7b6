//! The requests that are being answered, which the end of the server waits for.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{
    body::{Body, Bytes, HttpBody},
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use hyper::body::{Frame, SizeHint};
use tokio::sync::watch;

/// Counts requests, each from its head to the end of its answer.
#[derive(Debug, Clone, Default)]
pub struct InProgress(Arc<watch::Sender<usize>>);

impl InProgress {
    fn begin(&self) -> Counted {
        self.0.send_modify(|count| *count += 1);
        Counted(self.clone())
    }

    /// How many there are now.
    pub fn count(&self) -> usize {
        *self.0.borrow()
    }

    /// Waits until there is none.
    pub async fn none(&self) {
        // The sender lives as long as this.
        self.0.subscribe().wait_for(|&count| count == 0).await.ok();
    }
}

/// A request that is counted.
struct Counted(InProgress);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.0.send_modify(|count| *count -= 1);
    }
}

/// Counts a request. Its answer has ended when the body is dropped: a stream of events goes on long after its head.
pub async fn track(State(requests): State<InProgress>, request: Request, next: Next) -> Response {
    let counted = requests.begin();
    holding(next.run(request).await, counted)
}

/// Keeps something until an answer has been told to its end.
pub fn holding(response: Response, held: impl Send + Unpin + 'static) -> Response {
    response.map(|body| Body::new(HoldingBody { body, _held: held }))
}

struct HoldingBody<T> {
    body: Body,
    _held: T,
}

impl<T: Unpin> HttpBody for HoldingBody<T> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
