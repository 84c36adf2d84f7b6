//! How many requests a client has at a time.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::{
    extract::{Request, State},
    http::{Method, StatusCode},
    middleware::Next,
    response::Response,
};

use super::{error::ApiError, in_progress::holding};

/// Who asks, as far as a connection tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Client(pub IpAddr);

/// The requests of each client that are being answered.
#[derive(Debug, Clone)]
pub struct PerClient {
    /// The most of one client; none where there is no limit.
    most: Option<usize>,
    /// Those with one at least.
    running: Arc<Mutex<HashMap<Client, usize>>>,
}

impl PerClient {
    pub fn new(most: Option<usize>) -> Self {
        Self { most, running: Arc::default() }
    }

    /// A place for one more request of a client, until it is dropped.
    ///
    /// # Errors
    /// 429, when the client has as many as it may.
    pub fn begin(&self, client: Client) -> Result<Place, ApiError> {
        let mut running = self.running();
        let of_client = running.entry(client).or_default();
        if let Some(most) = self.most.filter(|&most| *of_client >= most) {
            let message = format!("{most} requests of this client are being answered: come back when one of them is");
            return Err(ApiError::new(StatusCode::TOO_MANY_REQUESTS, message).with_code("too_many_of_client"));
        }
        *of_client += 1;
        drop(running);
        Ok(Place { client, of: self.clone() })
    }

    fn running(&self) -> MutexGuard<'_, HashMap<Client, usize>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that counts.
#[derive(Debug)]
pub struct Place {
    client: Client,
    of: PerClient,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut running = self.of.running();
        if let Some(count) = running.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                running.remove(&self.client);
            }
        }
    }
}

/// Refuses a request of a client that has as many as it may. What is only read costs little, and a page reads several things at once.
pub async fn limit(State(clients): State<PerClient>, request: Request, next: Next) -> Result<Response, ApiError> {
    let client = request.extensions().get::<Client>().copied();
    match client.filter(|_| request.method() == Method::POST) {
        Some(client) => {
            let place = clients.begin(client)?;
            Ok(holding(next.run(request).await, place))
        }
        None => Ok(next.run(request).await),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "test code")]
mod tests {
    use super::*;

    #[test]
    fn a_client_has_as_many_places_as_it_may_and_takes_none_from_others() {
        let [one, other] = [1, 2].map(|n| Client(IpAddr::from([192, 0, 2, n])));
        let clients = PerClient::new(Some(2));
        let places = [clients.begin(one).unwrap(), clients.begin(one).unwrap()];
        let refused = clients.begin(one).unwrap_err();
        assert_eq!((refused.status.as_u16(), refused.code), (429, Some("too_many_of_client")));
        let of_other = clients.begin(other).unwrap();
        drop(places);
        assert!(clients.begin(one).is_ok());
        drop(of_other);
        assert!(clients.running().is_empty(), "nothing is kept of clients that are gone");
    }

    #[test]
    fn without_a_limit_there_is_none() {
        let clients = PerClient::new(None);
        let places: Vec<_> = (0..1000).map(|_| clients.begin(Client(IpAddr::from([127, 0, 0, 1]))).unwrap()).collect();
        assert_eq!(places.len(), 1000);
    }
}
