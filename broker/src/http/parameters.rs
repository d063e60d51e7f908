//! Path and query parameters in, with one shape of error when they do not read.

use super::Problem;
use axum::extract::FromRequestParts;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::http::request::Parts;
use daypass_protocol::text::made_visible;
use serde::de::DeserializeOwned;

/// Longest description of what does not read: it quotes the caller.
const MAX_QUOTE: usize = 500;

/// As [`axum::extract::Path`], and a parameter that does not read is a problem+json.
#[derive(Clone, Copy, Debug)]
pub struct Path<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let read = axum::extract::Path::<T>::from_request_parts(parts, state).await;
        read.map(|axum::extract::Path(value)| Self(value)).map_err(|rejection: PathRejection| {
            Problem::new(rejection.status(), "malformed_path", quoted(&rejection.body_text()))
        })
    }
}

/// As [`axum::extract::Query`], and a query that does not read is a problem+json.
#[derive(Clone, Copy, Debug)]
pub struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let read = axum::extract::Query::<T>::from_request_parts(parts, state).await;
        read.map(|axum::extract::Query(value)| Self(value)).map_err(|rejection: QueryRejection| {
            Problem::new(rejection.status(), "malformed_query", quoted(&rejection.body_text()))
        })
    }
}

fn quoted(text: &str) -> String {
    made_visible(text, MAX_QUOTE)
}
