//! `GET /v1/ssh/{host}`: the SSH of one device's name inside a WebSocket, for networks that let nothing but
//! HTTPS out. What `daypass proxy` opens.

use super::Problem;
use super::connection::TlsFacts;
use super::parameters::Path;
use crate::broker::Ctx;
use crate::gateway::{Caller, Entrance, NotLetIn};
use crate::login::TokenCaller;
use crate::session::{Arrived, GatewayDoor};
use axum::extract::Extension;
use axum::extract::rejection::ExtensionRejection;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use daypass_protocol::api::{SSH_MESSAGE, SSH_PROTOCOL};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub fn routes() -> OpenApiRouter<Ctx> {
    OpenApiRouter::new().routes(routes!(ssh))
}

type Facts = Result<Extension<TlsFacts>, ExtensionRejection>;
type Upgrade = Result<WebSocketUpgrade, WebSocketUpgradeRejection>;

/// SSH to a device inside a WebSocket: binary messages of the subprotocol `daypass-ssh-1`, joined, are the byte stream.
#[utoipa::path(get, operation_id = "open_ssh", path = "/v1/ssh/{host}", tag = "sessions", security(("access_token" = [])),
    params(("host" = String, Path, description = "What `ssh` calls the device: its id, with or without the host suffix")),
    responses((status = 101, description = "The WebSocket is open, and the server's SSH identification comes first"),
        (status = 400), (status = 401), (status = 426), (status = 503)))]
async fn ssh(
    Extension(entrance): Extension<Entrance<GatewayDoor>>,
    facts: Facts,
    caller: Result<TokenCaller, Problem>,
    host: Result<Path<String>, Problem>,
    upgrade: Upgrade,
) -> Result<Response, Problem> {
    // Without the address that it comes from there would be no limit.
    let Ok(Extension(facts)) = facts else {
        return Err(Problem::unavailable("SSH over HTTPS", &"the server did not say where it comes from"));
    };
    let person = match caller {
        Ok(TokenCaller(person)) => person,
        Err(problem) => {
            // On record as on the SSH port.
            if problem.body().status == StatusCode::UNAUTHORIZED.as_u16() {
                let host = host.as_ref().map_or("", |Path(host)| host.as_str());
                let why = problem.body().detail.as_deref().unwrap_or_default();
                entrance.stranger(facts.peer, host, why).await;
            }
            return Err(problem);
        }
    };
    let Path(host) = host?;
    let upgrade = match upgrade {
        Ok(upgrade) => {
            upgrade.protocols([SSH_PROTOCOL]).max_message_size(SSH_MESSAGE).max_frame_size(SSH_MESSAGE)
        }
        Err(_) => return Ok(upgrade_required()),
    };
    if upgrade.selected_protocol().is_none() {
        let detail = format!("The WebSocket subprotocol {SSH_PROTOCOL} was not offered.");
        return Err(Problem::bad_request("websocket_subprotocol", detail));
    }
    let caller = Caller { person: Arrived::by_token(person), source: facts.peer, tls: facts.group };
    match entrance.ask(caller, &host).await {
        Ok(ticket) => Ok(upgrade.on_upgrade(move |socket| async move { ticket.enter(socket) })),
        Err(NotLetIn::NotADevice(refusal)) => {
            Err(Problem::bad_request("not_a_device", refusal.to_string())
                .hint("List them: `daypass devices`"))
        }
        Err(NotLetIn::Full) => Err(Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "too_many_connections",
            "Too many SSH connections are being set up, here or from your address.",
        )
        .hint("Try again in a moment.")),
        Err(NotLetIn::Refused(refusal)) => {
            Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", refusal.to_string()))
        }
    }
}

/// RFC 9110 section 15.5.22.
fn upgrade_required() -> Response {
    let detail = "This path speaks WebSocket, and no upgrade to it was asked for.";
    let problem = Problem::new(StatusCode::UPGRADE_REQUIRED, "websocket_needed", detail)
        .hint("If `daypass proxy` asked, something between it and the broker took its question out.");
    let mut answer = problem.into_response();
    answer.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    answer
}
