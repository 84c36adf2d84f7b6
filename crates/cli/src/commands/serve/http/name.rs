//! The name in a path.

use axum::{
    extract::{FromRequestParts, Path},
    http::request::Parts,
};

use super::error::ApiError;

/// The one part of a route's path that is the client's, decoded. What is no text is refused in the API's shape.
pub struct Name(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let name = Path::from_request_parts(parts, state).await;
        let Path(name) = name.map_err(|rejection| ApiError::bad_param("name", rejection.body_text()))?;
        Ok(Self(name))
    }
}
