//! The two doors for devices: `/v1/tunnel` and `/v1/enrol`. `protocol/TUNNEL.md` sections 3 to 5.

use super::ends::Ended;
use super::server::{HelloError, TunnelServer};
use crate::device::enrolment;
use crate::http::connection::TlsFacts;
use crate::waiting::Slot;
use axum::extract::rejection::ExtensionRejection;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseCode, CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::extract::{Extension, State};
use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use daypass_protocol::signed::{Purpose, SignedText};
use daypass_protocol::tunnel::hello::{
    Answer, Binding, Challenge, Conversation, EnrolAsk, Nonce, RefusalCode, decode_nonce, encode_nonce,
};
use daypass_protocol::tunnel::{ENROL_PROTOCOL, MAX_HELLO, NONCE_HEADER, TUNNEL_PROTOCOL};
use serde::Serialize;
use std::sync::Arc;
use tokio_tungstenite::tungstenite;

type Facts = Result<Extension<TlsFacts>, ExtensionRejection>;
type Upgrade = Result<WebSocketUpgrade, WebSocketUpgradeRejection>;

/// `GET /v1/tunnel`.
#[allow(clippy::unused_async, reason = "axum's handlers are async")]
pub async fn tunnel(
    State(server): State<Arc<TunnelServer>>,
    facts: Facts,
    headers: HeaderMap,
    upgrade: Upgrade,
) -> Response {
    let what = Conversation::Tunnel;
    let knocked = knock(&server, what, facts, &headers, upgrade);
    knocked.map_or_else(Refused::into_response, |knock| {
        knock.upgrade.on_upgrade(move |socket| async move {
            let Knock { facts, nonce, place } = knock.caller;
            let mut hello = Hello { socket, server };
            let said = async {
                let binding = hello.challenge(what, &facts, &nonce).await?;
                Ok((hello.receive().await?, binding))
            };
            let answered = match Box::pin(unless_pushed_out(&place, said)).await {
                Ok((text, binding)) => Box::pin(hello.answer_tunnel(&text, &binding, &facts))
                    .await
                    .map(|admitted| (admitted, binding)),
                Err(end) => Err(end),
            };
            // Authenticated or refused: the place among the unauthenticated is free.
            drop(place);
            match answered {
                Ok((admitted, binding)) => {
                    let Hello { socket, server } = hello;
                    // Boxed here and below, so that what a hello needs is not kept by an idle tunnel.
                    Box::pin(server.serve(socket, admitted, binding, facts.group, facts.peer)).await;
                }
                Err(end) => Box::pin(hello.end(end, &facts)).await,
            }
        })
    })
}

/// `GET /v1/enrol`.
#[allow(clippy::unused_async, reason = "axum's handlers are async")]
pub async fn enrol(
    State(server): State<Arc<TunnelServer>>,
    facts: Facts,
    headers: HeaderMap,
    upgrade: Upgrade,
) -> Response {
    let what = Conversation::Enrolment;
    let knocked = knock(&server, what, facts, &headers, upgrade);
    knocked.map_or_else(Refused::into_response, |knock| {
        knock.upgrade.on_upgrade(move |socket| async move {
            let Knock { facts, nonce, place } = knock.caller;
            let mut hello = Hello { socket, server };
            let said = async {
                let binding = hello.challenge(what, &facts, &nonce).await?;
                Ok((hello.receive().await?, binding))
            };
            let end = match unless_pushed_out(&place, said).await {
                Ok((text, binding)) => hello.answer_enrolment(&text, &binding, &facts).await,
                Err(end) => end,
            };
            hello.end(end, &facts).await;
        })
    })
}

/// Somebody who asked properly, not yet anybody.
struct Knock {
    facts: TlsFacts,
    nonce: Nonce,
    /// Among those who have proven nothing yet.
    place: Slot,
}

struct Knocked {
    upgrade: WebSocketUpgrade,
    caller: Knock,
}

/// Why the upgrade is refused.
enum Refused {
    Bad(&'static str),
    /// To come again within so many seconds.
    Busy(u32),
}

impl Refused {
    fn into_response(self) -> Response {
        match self {
            Self::Bad(message) => (StatusCode::BAD_REQUEST, message).into_response(),
            Self::Busy(within) => {
                let again = [(RETRY_AFTER, within.to_string())];
                (StatusCode::SERVICE_UNAVAILABLE, again, "too many connections are being set up")
                    .into_response()
            }
        }
    }
}

fn knock(
    server: &TunnelServer,
    what: Conversation,
    facts: Facts,
    headers: &HeaderMap,
    upgrade: Upgrade,
) -> Result<Knocked, Refused> {
    let bad = Refused::Bad;
    // Without the connection's exporter nothing binds signatures to it; older TLS binds too little.
    let Ok(Extension(facts)) = facts else { return Err(bad("devices connect by TLS, directly")) };
    if facts.version != "TLSv1_3" {
        return Err(bad("devices connect by TLS 1.3"));
    }
    let upgrade = upgrade.map_err(|_| bad("this path speaks WebSocket"))?;
    let nonce = headers.get(NONCE_HEADER).and_then(|value| value.to_str().ok()).and_then(decode_nonce);
    let nonce =
        nonce.ok_or_else(|| bad("the daypass-nonce header is missing or not 32 bytes of base64url"))?;
    let protocol = match what {
        Conversation::Tunnel => TUNNEL_PROTOCOL,
        Conversation::Enrolment => ENROL_PROTOCOL,
    };
    let upgrade = upgrade
        .protocols([protocol])
        .max_message_size(MAX_HELLO)
        .max_frame_size(MAX_HELLO)
        // Small, because tens of thousands of idle devices hold one each.
        .read_buffer_size(4 * 1024)
        .write_buffer_size(16 * 1024);
    if upgrade.selected_protocol().is_none() {
        return Err(bad("the WebSocket subprotocol of this path was not offered"));
    }
    let place = server.hellos.enter(facts.peer.ip()).map_err(|full| {
        metrics::counter!("daypass_hellos_turned_away_total", "why" => full.as_str()).increment(1);
        Refused::Busy(server.again.within())
    })?;
    Ok(Knocked { upgrade, caller: Knock { facts, nonce, place } })
}

/// Hears somebody out who may have to give way meanwhile; afterwards the place is theirs until they are
/// answered.
async fn unless_pushed_out<T>(place: &Slot, said: impl Future<Output = Result<T, End>>) -> Result<T, End> {
    let give_way = place.give_way();
    let said = tokio::select! {
        biased;
        () = give_way.cancelled() => {
            let cause = "it gave way to somebody who came later".to_owned();
            return Err(End::Closed(close_code::AGAIN, cause));
        }
        said = said => said?,
    };
    place.keep();
    Ok(said)
}

/// How a hello that leads nowhere ends.
enum End {
    /// An answer was made; then 1000.
    Answered(String),
    /// Closed with this code, and the cause for the log.
    Closed(CloseCode, String),
    /// Nobody is there any more.
    Gone(String),
}

fn no_room() -> HelloError {
    metrics::counter!("daypass_hellos_turned_away_total", "why" => "not-judged-in-time").increment(1);
    HelloError::NoRoom
}

struct Hello {
    socket: WebSocket,
    server: Arc<TunnelServer>,
}

impl Hello {
    async fn challenge(
        &mut self,
        what: Conversation,
        facts: &TlsFacts,
        device: &Nonce,
    ) -> Result<Binding, End> {
        let failed = |cause: String| End::Closed(close_code::ERROR, cause);
        let nonce: Nonce = crate::random::bytes().map_err(|error| failed(error.to_string()))?;
        let binding = Binding::new(what, &facts.exporter_tunnel, device, &nonce);
        let challenge = Challenge {
            v: 1,
            nonce: encode_nonce(&nonce),
            binding: binding.clone(),
            time: self.server.clock.now(),
        };
        let sealed: SignedText = self
            .server
            .trust
            .seal(Purpose::Challenge, "a challenge", &challenge)
            .map_err(|error| failed(error.to_string()))?;
        self.send(&sealed).await?;
        Ok(binding)
    }

    async fn answer_tunnel(
        &mut self,
        text: &str,
        binding: &Binding,
        facts: &TlsFacts,
    ) -> Result<super::server::Admitted, End> {
        let server = self.server.clone();
        let judged = match server.room_to_judge().await {
            Some(_room) => server.admit(text, binding, facts).await,
            None => Err(no_room()),
        };
        match judged {
            Ok(admitted) => match self.send(&Answer::Welcome(&admitted.welcome)).await {
                Ok(()) => Ok(admitted),
                Err(end) => {
                    server.ends.add(Ended {
                        device: admitted.hello.device,
                        peer: facts.peer,
                        why: "it was gone before its welcome".to_owned(),
                    });
                    Err(end)
                }
            },
            Err(refused) => {
                let message = refused.message().to_owned();
                Err(self.refuse(refused.code(), message, &refused.to_string()).await)
            }
        }
    }

    async fn answer_enrolment(&mut self, text: &str, binding: &Binding, facts: &TlsFacts) -> End {
        let ask: EnrolAsk = match serde_json::from_str(text) {
            Ok(ask) => ask,
            Err(error) => {
                let message = "the enrolment does not read".to_owned();
                return self.refuse(RefusalCode::Malformed, message, &error.to_string()).await;
            }
        };
        let (server, from) = (self.server.clone(), facts.peer.to_string());
        let Some(_room) = server.room_to_judge().await else {
            let full = no_room();
            return self.refuse(full.code(), full.message().to_owned(), &full.to_string()).await;
        };
        let now = server.clock.now();
        match enrolment::enrol(&server.db, &server.trust, binding, &from, &ask, now).await {
            Ok(enrolled) => {
                let done = format!("enrolled as {}", enrolled.device);
                self.send(&Answer::Welcome(enrolled)).await.err().unwrap_or(End::Answered(done))
            }
            Err(refused) => self.refuse(refused.code(), refused.message(), &refused.to_string()).await,
        }
    }

    async fn refuse(&mut self, code: RefusalCode, message: String, cause: &str) -> End {
        let refused = Answer::<()>::Refused { code, message };
        self.send(&refused).await.err().unwrap_or_else(|| End::Answered(cause.to_owned()))
    }

    async fn send<T: Serialize>(&mut self, message: &T) -> Result<(), End> {
        let text = serde_json::to_string(message)
            .map_err(|error| End::Closed(close_code::ERROR, error.to_string()))?;
        let sent = self.socket.send(Message::Text(text.into()));
        match tokio::time::timeout(self.server.limits.hello, sent).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(End::Gone(error.to_string())),
            Err(_) => Err(End::Gone("it does not read".to_owned())),
        }
    }

    /// The next text message. The deadline is for the message, however many pings come before it.
    async fn receive(&mut self) -> Result<String, End> {
        let received = async {
            loop {
                match self.socket.recv().await {
                    Some(Ok(Message::Text(text))) => return Ok(text.as_str().to_owned()),
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                    Some(Ok(Message::Binary(_))) => {
                        let cause = "a binary message before the end of the hello".to_owned();
                        return Err(End::Closed(close_code::PROTOCOL, cause));
                    }
                    Some(Ok(Message::Close(_))) | None => {
                        return Err(End::Gone("it closed the connection".to_owned()));
                    }
                    Some(Err(error)) => {
                        let error = error.into_inner();
                        let too_long = matches!(
                            error.downcast_ref::<tungstenite::Error>(),
                            Some(tungstenite::Error::Capacity(_))
                        );
                        let code = if too_long { close_code::SIZE } else { close_code::PROTOCOL };
                        return Err(End::Closed(code, error.to_string()));
                    }
                }
            }
        };
        match tokio::time::timeout(self.server.limits.hello, received).await {
            Ok(received) => received,
            Err(_) => Err(End::Closed(close_code::POLICY, "the hello did not come in time".to_owned())),
        }
    }

    async fn end(mut self, end: End, facts: &TlsFacts) {
        let code = match &end {
            End::Answered(_) => close_code::NORMAL,
            End::Closed(code, _) => *code,
            End::Gone(_) => close_code::AWAY,
        };
        match &end {
            End::Answered(cause) => tracing::info!(peer = %facts.peer, %cause, "a hello is over"),
            End::Closed(_, cause) | End::Gone(cause) => {
                tracing::warn!(peer = %facts.peer, %cause, "a hello led nowhere");
            }
        }
        let goodbye = Message::Close(Some(CloseFrame { code, reason: "".into() }));
        // Best effort: the far end may be gone, which is one of the reasons to be here.
        let _ = tokio::time::timeout(std::time::Duration::from_secs(1), self.socket.send(goodbye)).await;
    }
}
