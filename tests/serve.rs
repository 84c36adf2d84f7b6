//! `tinygpt serve`, as clients see it.

#[path = "serve/api.rs"]
mod api;
#[path = "serve/rough_clients.rs"]
mod rough_clients;
#[path = "serve/start_and_end.rs"]
mod start_and_end;

use crate::common::{http_server::Server, trained};

/// A server of the shared run.
fn server() -> Server {
    Server::start(trained(), &["run"])
}
