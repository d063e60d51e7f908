//! SSH straight to a device's name, as `daypass proxy` asks for it: inside a WebSocket, for networks that let
//! nothing but HTTPS out, or a ticket that goes ahead of SSH on the gateway's own port.

use super::Problem;
use super::connection::TlsFacts;
use super::parameters::Path;
use crate::broker::Ctx;
use crate::gateway::{Caller, Entrance, NotLetIn, TICKET_LIFETIME};
use crate::login::TokenCaller;
use crate::session::{Arrived, GatewayDoor};
use axum::Json;
use axum::extract::rejection::ExtensionRejection;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{Extension, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use daypass_protocol::api::{SSH_MESSAGE, SSH_PROTOCOL, SshTicket};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub fn routes() -> OpenApiRouter<Ctx> {
    OpenApiRouter::new().routes(routes!(ssh)).routes(routes!(ticket))
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
    let (caller, host) = known(&entrance, facts, caller, host).await?;
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
    let admitted = entrance.ask(caller, &host).await?;
    Ok(upgrade.on_upgrade(move |socket| async move { admitted.enter(socket) }))
}

/// A ticket to a device: sent in a line `daypass-ticket …` ahead of SSH, it makes a connection to the gateway's SSH port
/// one to that device.
#[utoipa::path(post, operation_id = "make_ssh_ticket", path = "/v1/ssh/{host}/tickets", tag = "sessions", security(("access_token" = [])),
    params(("host" = String, Path, description = "What `ssh` calls the device: its id, with or without the host suffix")),
    responses((status = 201, body = SshTicket), (status = 400), (status = 401), (status = 503)))]
async fn ticket(
    State(ctx): State<Ctx>,
    Extension(entrance): Extension<Entrance<GatewayDoor>>,
    facts: Facts,
    caller: Result<TokenCaller, Problem>,
    host: Result<Path<String>, Problem>,
) -> Result<(StatusCode, Json<SshTicket>), Problem> {
    let (caller, host) = known(&entrance, facts, caller, host).await?;
    let ticket = entrance.ticket(caller, &host).await?;
    let (ssh_host, ssh_port) = ctx.ssh_address();
    let expires_at = ctx.clock.now() + TICKET_LIFETIME;
    Ok((StatusCode::CREATED, Json(SshTicket { ticket, expires_at, ssh_host, ssh_port })))
}

/// Who asks for which host; on record, as on the SSH port, if nothing proves who it is.
async fn known(
    entrance: &Entrance<GatewayDoor>,
    facts: Facts,
    caller: Result<TokenCaller, Problem>,
    host: Result<Path<String>, Problem>,
) -> Result<(Caller<Arrived>, String), Problem> {
    // Without the address that it comes from there would be no limit.
    let Ok(Extension(facts)) = facts else {
        return Err(Problem::unavailable("SSH", &"the server did not say where it comes from"));
    };
    match caller {
        Ok(TokenCaller(person)) => {
            let Path(host) = host?;
            Ok((Caller { person: Arrived::by_token(person), source: facts.peer, tls: facts.group }, host))
        }
        Err(problem) => {
            if problem.body().status == StatusCode::UNAUTHORIZED.as_u16() {
                let host = host.as_ref().map_or("", |Path(host)| host.as_str());
                let why = problem.body().detail.as_deref().unwrap_or_default();
                entrance.stranger(facts.peer, host, why).await;
            }
            Err(problem)
        }
    }
}

impl From<NotLetIn> for Problem {
    fn from(why: NotLetIn) -> Self {
        match why {
            NotLetIn::NotADevice(refusal) => {
                Self::bad_request("not_a_device", refusal.to_string()).hint("List them: `daypass devices`")
            }
            NotLetIn::Full => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "too_many_connections",
                "Too many SSH connections are being set up, here or from your address.",
            )
            .hint("Try again in a moment."),
            NotLetIn::Refused(refusal) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", refusal.to_string())
            }
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
