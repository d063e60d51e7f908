//! Every route, in one table.

use super::{Problem, console, description, me, ops, ssh};
use crate::broker::Ctx;
use crate::gateway::Entrance;
use crate::session::GatewayDoor;
use crate::tunnel::accept;
use crate::{device, login, request, session};
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::routing::get;
use axum::{Extension, Router};
use daypass_protocol::tunnel::{ENROL_PATH, TUNNEL_PATH};
use tower_http::set_header::SetResponseHeaderLayer;
use tower_http::trace::TraceLayer;
use utoipa_axum::router::OpenApiRouter;

/// The API as routes and as its OpenAPI 3.1 description.
fn api() -> (Router<Ctx>, utoipa::openapi::OpenApi) {
    let (router, mut api) = OpenApiRouter::with_openapi(description::base())
        .merge(login::http::routes())
        .merge(me::routes())
        .merge(request::http::routes())
        .merge(session::http::routes())
        .merge(device::http::routes())
        .merge(ssh::routes())
        .split_for_parts();
    description::finish(&mut api);
    (router, api)
}

/// The OpenAPI description of this broker.
pub fn openapi() -> utoipa::openapi::OpenApi {
    api().1
}

/// Largest body of a request, in bytes: a reason that is far too long is still read, and refused in words.
const MAX_BODY: usize = 256 * 1024;

/// `gateway` is where SSH that comes by HTTPS goes in.
pub fn router(ctx: Ctx, gateway: Entrance<GatewayDoor>) -> Router {
    let (routes, description) = api();
    let description = serde_json::to_string(&description).unwrap_or_default();
    let secure = |name: HeaderName, value: &'static str| {
        SetResponseHeaderLayer::if_not_present(name, HeaderValue::from_static(value))
    };
    routes
        .route(
            "/v1/openapi.json",
            get(move || async move { ([(header::CONTENT_TYPE, "application/json")], description) }),
        )
        .route(TUNNEL_PATH, get(accept::tunnel))
        .route(ENROL_PATH, get(accept::enrol))
        .merge(ops::routes())
        .method_not_allowed_fallback(wrong_method)
        .fallback(console::serve)
        .layer(Extension(gateway))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(secure(header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .layer(secure(header::REFERRER_POLICY, "same-origin"))
        .layer(secure(header::X_FRAME_OPTIONS, "DENY"))
        .layer(secure(header::STRICT_TRANSPORT_SECURITY, "max-age=31536000"))
        .layer(secure(header::CACHE_CONTROL, "no-store"))
        .layer(secure(HeaderName::from_static("cross-origin-opener-policy"), "same-origin"))
        .layer(TraceLayer::new_for_http())
        .with_state(ctx)
}

async fn wrong_method(method: Method, uri: Uri) -> Problem {
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        format!("{} is there, but not for {method}.", uri.path()),
    )
}
