//! Errors in the shape that clients of OpenAI's API know.

use std::fmt::Display;

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use crate::commands::serve::engine::{Failure, Refused};

/// When a client may come back that was told 429.
const RETRY_AFTER_SECONDS: &str = "1";

/// An answer that is not what was asked for: `{"error": {"message", "type", "param", "code"}}` with its status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    pub status: StatusCode,
    /// What is wrong, and what to do about it.
    pub message: String,
    /// The key or the header that is to blame.
    pub param: Option<String>,
    /// What programs tell errors apart by, beside the status.
    pub code: Option<&'static str>,
}

impl ApiError {
    /// An error that blames nothing.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code: None }
    }

    /// 400: what was asked for makes no sense.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// 400 for a key of the request; the message begins with its name.
    pub fn bad_param(param: impl Into<String>, message: impl Display) -> Self {
        let param = param.into();
        Self::bad_request(format!("{param}: {message}")).with_param(param)
    }

    /// 404: no model has this name.
    pub fn no_model(name: &str, names: &[&str]) -> Self {
        let message = format!("no model is named `{name}`; there are {}", names.join(", "));
        Self::new(StatusCode::NOT_FOUND, message).with_param("model").with_code("model_not_found")
    }

    /// 500: the server could not do what makes sense.
    pub fn internal(error: impl Display) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    }

    #[must_use]
    pub fn with_param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    #[must_use]
    pub fn with_code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    /// The body; it is also what an event stream says of an error midway.
    pub fn body(&self) -> Value {
        let kind = match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN | StatusCode::MISDIRECTED_REQUEST => "permission_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        json!({ "error": { "message": self.message, "type": kind, "param": self.param, "code": self.code } })
    }
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> Self {
        let (status, code) = match refused {
            Refused::BadRequest(message) => return Self::bad_request(message),
            Refused::QueueFull => (StatusCode::TOO_MANY_REQUESTS, "queue_full"),
            Refused::ShuttingDown => (StatusCode::SERVICE_UNAVAILABLE, "shutting_down"),
            Refused::EngineFailed => (StatusCode::SERVICE_UNAVAILABLE, "engine_failed"),
        };
        Self::new(status, refused.to_string()).with_code(code)
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Rules(_) => Self::bad_request(failure.to_string()),
            Failure::Model(_) => Self::internal(failure),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        let mut add = |name, value| response.headers_mut().insert(name, HeaderValue::from_static(value));
        match self.status {
            StatusCode::TOO_MANY_REQUESTS => drop(add(header::RETRY_AFTER, RETRY_AFTER_SECONDS)),
            StatusCode::UNAUTHORIZED => drop(add(header::WWW_AUTHENTICATE, "Bearer")),
            _ => {}
        }
        response
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "test code")]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_is_429_and_says_when_to_come_back() {
        let response = ApiError::from(Refused::QueueFull).into_response();
        assert_eq!(response.status(), 429);
        assert_eq!(response.headers()["retry-after"], "1");
    }

    #[test]
    fn the_body_names_the_key_that_is_to_blame() {
        let error = ApiError::bad_param("top_p", "is 2, but must be between 0 and 1");
        let expected = json!({ "error": {
            "message": "top_p: is 2, but must be between 0 and 1",
            "type": "invalid_request_error",
            "param": "top_p",
            "code": null,
        } });
        assert_eq!(error.body(), expected);
    }
}
