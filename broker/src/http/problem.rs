//! The one shape of an error over HTTP, RFC 9457.

use crate::db;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use daypass_protocol::api;
use std::fmt;

/// An answer that says what failed, and what to do next. The cause of a failure of ours goes to the log,
/// never to the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem(Box<api::Problem>);

impl Problem {
    /// `code` is for programs and never changes its meaning; `detail` is one sentence for a person.
    pub fn new(status: StatusCode, code: &str, detail: impl Into<String>) -> Self {
        Self(Box::new(api::Problem {
            kind: format!("tag:daypass,2026:{code}"),
            title: status.canonical_reason().unwrap_or("Error").to_owned(),
            status: status.as_u16(),
            detail: Some(detail.into()),
            hint: None,
            code: code.to_owned(),
        }))
    }

    /// 400: the request cannot be read, or asks for what cannot be.
    pub fn bad_request(code: &str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, detail)
    }

    /// 401: nobody is signed in.
    pub fn unauthenticated(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthenticated", detail)
            .hint("Sign in: `daypass login`, or open the web console.")
    }

    /// 403: somebody is signed in, and may not.
    pub fn forbidden(code: &str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, code, detail)
    }

    /// 404.
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", detail)
    }

    /// 409: it was possible once, and is not in the present state.
    pub fn conflict(code: &str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, code, detail)
    }

    /// 429.
    pub fn too_many(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", detail)
    }

    /// 503: a failure of ours. `what` and the cause go to the log.
    pub fn unavailable(what: &'static str, cause: &dyn fmt::Display) -> Self {
        tracing::error!(what, cause = %cause, "a request failed");
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "unavailable",
            "The broker could not do this now; the cause is in its log.",
        )
        .hint("Try again in a moment.")
    }

    /// One sentence: what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    pub fn code(&self) -> &str {
        &self.0.code
    }

    pub fn body(&self) -> &api::Problem {
        &self.0
    }
}

/// A query that failed for any reason but a constraint that the caller asked about.
impl From<sqlx::Error> for Problem {
    fn from(error: sqlx::Error) -> Self {
        let problem = Self::unavailable("the database failed", &error);
        let Some(why) = db::unwritable(&error) else { return problem };
        let mut body = problem.0;
        body.detail =
            Some(format!("Nothing can be decided now, because nothing can be written down: {why}."));
        body.hint = Some("An operator must mend that; then try again.".to_owned());
        Self(body)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut answer = (status, axum::Json(self.0)).into_response();
        answer
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if status == StatusCode::UNAUTHORIZED {
            // RFC 9110 section 11.6.1: a 401 names the way to authenticate.
            answer.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt as _;

    #[tokio::test]
    async fn a_problem_is_sent_as_rfc_9457_says_and_keeps_the_cause_to_itself() {
        let answer = Problem::unavailable("the database failed", &"password rejected").into_response();
        assert_eq!(answer.status(), 503);
        assert_eq!(answer.headers()["content-type"], "application/problem+json");
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        assert!(!String::from_utf8_lossy(&body).contains("password"));
        let problem: api::Problem = serde_json::from_slice(&body).unwrap();
        assert_eq!((problem.status, problem.code.as_str()), (503, "unavailable"));
    }
}
