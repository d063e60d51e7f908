//! The web console: files built from `broker/web/`, embedded in this binary.

use super::Problem;
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{Html, IntoResponse as _, Response};
use rust_embed::RustEmbed;

#[derive(RustEmbed)]
#[folder = "web/dist"]
#[allow_missing = true]
struct Files;

/// Nothing from elsewhere, nothing inline. `wasm-unsafe-eval` is what the player's terminal needs; it
/// compiles WebAssembly of our own and lets no script text run.
const CSP: &str = "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; \
    img-src 'self' data:; font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'self'; \
    frame-ancestors 'none'";

const NOT_BUILT: &str = "<!doctype html><title>Daypass</title><p>This broker was built without its web \
    console. Build <code>broker/web</code> first (<code>npm ci &amp;&amp; npm run build</code>), then the \
    broker.";

/// A file of the console; for every other path that a browser navigates to, its one page.
pub async fn serve(method: Method, uri: Uri) -> Response {
    let path = uri.path().trim_start_matches('/');
    if path == "v1" || path.starts_with("v1/") || !matches!(method, Method::GET | Method::HEAD) {
        return Problem::not_found(format!("There is nothing at {method} {}.", uri.path())).into_response();
    }
    let (name, file) = match Files::get(path) {
        Some(file) => (path, Some(file)),
        // A missing asset is missing; only pages fall back to the console's one page.
        None if path.starts_with("assets/") => {
            return Problem::not_found(format!("There is nothing at {}.", uri.path())).into_response();
        }
        None => ("index.html", Files::get("index.html")),
    };
    let Some(file) = file else {
        return (StatusCode::OK, [(header::CONTENT_SECURITY_POLICY, CSP)], Html(NOT_BUILT)).into_response();
    };
    let mut answer = file.data.into_owned().into_response();
    let headers = answer.headers_mut();
    let kind = HeaderValue::from_str(file.metadata.mimetype());
    headers
        .insert(header::CONTENT_TYPE, kind.unwrap_or(HeaderValue::from_static("application/octet-stream")));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(CSP));
    // Assets carry a hash of their content in their name.
    let keep = if name.starts_with("assets/") { "public, max-age=31536000, immutable" } else { "no-cache" };
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(keep));
    answer
}
