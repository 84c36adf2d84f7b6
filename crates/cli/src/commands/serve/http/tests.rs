//! What clients are told of engines that fail or never come to an end, which those of the program do not.

#![allow(clippy::unwrap_used, reason = "test code")]

use std::{path::Path, time::Duration};

use axum::{body::to_bytes, response::IntoResponse};

use super::*;
use crate::{
    args::ServeArgs,
    commands::serve::engine::testing::{Endless, HOUR, engine_of, model, wait_for},
};

/// A server of an engine whose decoder never comes to an end, or panics.
fn served(folder: &Path, decoder: Endless) -> Arc<Served> {
    #[derive(clap::Parser)]
    struct Serve {
        #[command(flatten)]
        args: ServeArgs,
    }
    let args = <Serve as clap::Parser>::parse_from(["serve", "--device", "cpu"]).args;
    Arc::new(Served::new(&args, vec![engine_of(folder, decoder, HOUR)], vec![None]))
}

/// The status of an answer, and what it says to its end.
async fn told<R: IntoResponse>(result: Result<R, ApiError>) -> (u16, String) {
    let response = result.map_or_else(IntoResponse::into_response, IntoResponse::into_response);
    let status = response.status().as_u16();
    let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

/// What is answered to a request for a text.
async fn complete(served: &Arc<Served>, limit: Duration, body: Value) -> (u16, String) {
    let fields = Fields::parse(body.to_string().as_bytes()).unwrap();
    told(completions::completions(State(Arc::clone(served)), RequestTime::starts(limit), fields).await).await
}

#[tokio::test]
async fn a_text_that_a_panic_cuts_is_answered_with_why_and_so_is_who_watches() {
    for stream in [false, true] {
        let folder = model(14);
        let served = served(folder.path(), Endless { slots: 2, panics: true });
        assert_eq!(told(health(State(Arc::clone(&served))).await).await.0, 200);
        let request = json!({ "prompt": "a", "n": 3, "stream": stream });
        let (status, cut) = complete(&served, HOUR, request.clone()).await;
        // The head of a stream has gone out when the engine fails.
        assert_eq!(status, if stream { 200 } else { 503 }, "{cut}");
        assert!(cut.contains("\"code\":\"engine_failed\"") && !cut.contains("[DONE]"), "{cut}");
        let (status, refused) = complete(&served, HOUR, request).await;
        assert_eq!(status, 503);
        assert!(refused.contains("the engine of the model has failed"), "{refused}");
        let (status, health) = told(health(State(Arc::clone(&served))).await).await;
        assert_eq!(status, 503);
        assert!(health.contains("`test`: the engine of the model has failed"), "{health}");
        let (status, metrics) = told(metrics::metrics(State(served)).await).await;
        assert_eq!(status, 200);
        for nothing in ["running_texts", "queued_texts"] {
            let line = format!("tinygpt_{nothing}{{model=\"test\"}} 0\n");
            assert!(metrics.contains(&line), "{metrics}");
        }
    }
}

#[tokio::test]
async fn a_request_whose_time_is_over_is_told_so_wherever_it_is() {
    let folder = model(14);
    let served = served(folder.path(), Endless { slots: 1, panics: false });
    let short = Duration::from_millis(50);
    let running = {
        let served = Arc::clone(&served);
        tokio::spawn(async move { complete(&served, HOUR, json!({ "prompt": "a" })).await })
    };
    tokio::task::spawn_blocking({
        let engine = served.engines[0].clone();
        move || wait_for("the slot is taken", || engine.stats().running == 1)
    })
    .await
    .unwrap();
    // In the queue, in a stream, and before the text, with the logits of a prompt.
    for (request, status) in [
        (json!({ "prompt": "a" }), 503),
        (json!({ "prompt": "a", "stream": true }), 200),
        (json!({ "prompt": "ab", "echo": true, "logprobs": 0 }), 503),
    ] {
        let (answered, late) = complete(&served, short, request.clone()).await;
        assert_eq!(answered, status, "{request}: {late}");
        assert!(late.contains("\"code\":\"timeout\""), "{request}: {late}");
    }
    running.abort();
    // Nothing of them is left behind, nor of the text that nobody waits for any more.
    tokio::task::spawn_blocking({
        let engine = served.engines[0].clone();
        move || wait_for("nothing is left", || engine.stats().running + engine.stats().queued == 0)
    })
    .await
    .unwrap();
}
