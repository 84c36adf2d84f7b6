//! The keys of a request, read one by one, so that an error names the key.

use axum::{
    body::Bytes,
    extract::{FromRequest, Request, rejection::BytesRejection},
    http::{StatusCode, header},
};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{error::ApiError, limits::BODY_SECONDS};

/// The object that a request's body is. What is not taken out of it in the end is an unknown key.
#[derive(Debug, Clone)]
pub struct Fields {
    keys: Map<String, Value>,
    /// The length of the body.
    bytes: usize,
}

impl Fields {
    /// The keys of a JSON text.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let not_json = |error: String| ApiError::bad_request(format!("the body is not JSON: {error}"));
        let text = std::str::from_utf8(body).map_err(|error| not_json(error.to_string()))?;
        match serde_json::from_str(text).map_err(|error| not_json(error.to_string()))? {
            Value::Object(keys) => Ok(Self { keys, bytes: body.len() }),
            _ => Err(ApiError::bad_request("the body must be a JSON object")),
        }
    }

    /// The length of the body that they came in.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes a key out; null is as if it were not there.
    pub fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, ApiError> {
        match self.keys.shift_remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_json::from_value(value).map(Some).map_err(|error| ApiError::bad_param(name, error)),
        }
    }

    /// Takes a key out that must be there.
    pub fn required<T: DeserializeOwned>(&mut self, name: &str) -> Result<T, ApiError> {
        self.take(name)?.ok_or_else(|| ApiError::bad_param(name, "is missing"))
    }

    /// Whether a key is there.
    pub fn has(&self, name: &str) -> bool {
        self.keys.get(name).is_some_and(|value| !value.is_null())
    }

    /// Puts the value of a key in the place of a default, if the key is there.
    pub fn set<T: DeserializeOwned>(&mut self, name: &str, place: &mut T) -> Result<(), ApiError> {
        if let Some(value) = self.take(name)? {
            *place = value;
        }
        Ok(())
    }

    /// Takes a number out, and refuses one outside of a range.
    pub fn whole(&mut self, name: &str, range: std::ops::RangeInclusive<usize>) -> Result<Option<usize>, ApiError> {
        match self.take::<usize>(name)? {
            Some(n) if !range.contains(&n) => {
                let (min, max) = (range.start(), range.end());
                Err(ApiError::bad_param(name, format!("is {n}, but must be between {min} and {max}")))
            }
            n => Ok(n),
        }
    }

    /// Gives a key a value.
    pub fn insert(&mut self, name: &str, value: impl Into<Value>) {
        self.keys.insert(name.to_owned(), value.into());
    }

    /// Refuses what nobody took.
    pub fn finish(self) -> Result<(), ApiError> {
        match self.keys.into_iter().find(|(_, value)| !value.is_null()) {
            Some((name, _)) => Err(ApiError::bad_param(name, "unknown key").with_code("unknown_key")),
            None => Ok(()),
        }
    }
}

impl<S: Send + Sync> FromRequest<S> for Fields {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let kind =
            request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim();
        if !kind.eq_ignore_ascii_case("application/json") {
            let message = "the body must be JSON, and say so: Content-Type: application/json";
            return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
        }
        let body = tokio::time::timeout(BODY_SECONDS, Bytes::from_request(request, state)).await;
        let body = body.map_err(|_| ApiError::new(StatusCode::REQUEST_TIMEOUT, "the body did not come in time"))?;
        Self::parse(&body.map_err(unread)?)
    }
}

/// A body that could not be read: it is too long, or the connection broke.
fn unread(rejection: BytesRejection) -> ApiError {
    ApiError::new(rejection.status(), rejection.body_text())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "test code")]
mod tests {
    use super::*;

    fn message<T: std::fmt::Debug>(result: Result<T, ApiError>) -> String {
        result.unwrap_err().message
    }

    #[test]
    fn errors_name_the_key() {
        let mut fields = Fields::parse(br#"{"top_k": "a", "n": 9, "other": 1, "user": null}"#).unwrap();
        assert_eq!(message(fields.take::<usize>("top_k")), "top_k: invalid type: string \"a\", expected usize");
        assert_eq!(message(fields.whole("n", 1..=8)), "n: is 9, but must be between 1 and 8");
        assert_eq!(message(fields.required::<String>("prompt")), "prompt: is missing");
        assert_eq!(message(fields.finish()), "other: unknown key");
    }

    #[test]
    fn null_is_as_if_the_key_were_not_there() {
        let mut fields = Fields::parse(br#"{"a": null, "b": null}"#).unwrap();
        assert_eq!(fields.take::<String>("a"), Ok(None));
        assert_eq!(fields.finish(), Ok(()));
    }

    #[test]
    fn what_is_no_json_object_is_refused() {
        for bad in [&b""[..], b"[1]", b"{", b"{\"a\": \xff}", b"{} {}"] {
            assert!(Fields::parse(bad).is_err(), "{bad:?}");
        }
    }
}
