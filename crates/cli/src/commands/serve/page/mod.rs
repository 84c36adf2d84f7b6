//! The page, and what it asks for.

use std::sync::Arc;

use axum::Router;

use super::Served;

/// The routes of the page.
pub fn router() -> Router<Arc<Served>> {
    Router::new()
}
