//! The way in by HTTPS: one SSH connection inside a WebSocket, straight to a device's name.
//!
//! It stands where the inner hop of `ssh -J` stands, without an outer hop: who opened the WebSocket is
//! known by an access token, and inside it the same certificate is asked for as everywhere. It takes a place
//! among the unauthenticated as every connection to the SSH port does, before the WebSocket exists.
//!
//! Binary messages, joined, are the byte stream; their boundaries mean nothing. Whichever side ends closes
//! the WebSocket; a TCP connection that ends without that was cut. SSH's own keepalive
//! ([`super::Limits::keepalive`]) is what keeps middleboxes from taking a quiet connection for a dead one.

use super::connection::{Place, serve};
use super::door::{Door, HostIdentity, Refusal, Refused, RefusedKind};
use super::front::Entrance;
use super::gate::{Gate, NotAllowed};
use super::ssh;
use crate::waiting::Slot;
use axum::extract::ws::{Message, WebSocket};
use bytes::Bytes;
use daypass_protocol::api::SSH_MESSAGE;
use daypass_protocol::ids::DeviceId;
use futures_util::{SinkExt as _, StreamExt as _};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::time::timeout;
use tracing::{debug, warn};

/// Bytes that may wait between the WebSocket and the SSH connection, each way.
const PIPE: usize = 128 * 1024;

/// Who asks for a WebSocket.
#[derive(Clone, Debug)]
pub struct Caller<P> {
    /// By access token. Nothing is open to them for it but the way to SSH's own proof.
    pub person: P,
    pub source: SocketAddr,
    /// The key exchange of the TLS around it all.
    pub tls: String,
}

/// Why there is no way in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotLetIn {
    /// No device can have this name; it is on record.
    NotADevice(Refusal),
    /// A limit is reached.
    Full,
    /// The name could not be proven.
    Refused(Refusal),
}

/// The right to one connection to one device's name.
pub struct Admitted<D: Door> {
    entrance: Entrance<D>,
    slot: Slot,
    pub(super) caller: Caller<D::Person>,
    pub(super) device: DeviceId,
    pub(super) identity: HostIdentity,
}

impl<D: Door> std::fmt::Debug for Admitted<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admitted").field("device", &self.device).finish_non_exhaustive()
    }
}

impl<D: Door> Entrance<D> {
    /// Asks for a connection to what the caller's `ssh` calls `host`.
    pub async fn ask(&self, caller: Caller<D::Person>, host: &str) -> Result<Admitted<D>, NotLetIn> {
        let inside = self.inside();
        // First of all, so that whatever is asked is asked within the limits.
        let slot = self.admit(caller.source).map_err(|_| NotLetIn::Full)?;
        let Some(device) = inside.gate.device(host) else {
            let NotAllowed { kind, refusal } = Gate::no_device(host);
            let refused = Refused { kind, message: refusal.to_string(), source: caller.source, device: None };
            self.record(Some(&caller.person), refused).await;
            return Err(NotLetIn::NotADevice(refusal));
        };
        match timeout(inside.limits.step, inside.door.host_identity(&device)).await {
            Err(_) => Err(NotLetIn::Refused(Refusal::new("the gateway is busy: try again"))),
            Ok(Err(refusal)) => Err(NotLetIn::Refused(refusal)),
            Ok(Ok(identity)) => Ok(Admitted { entrance: self.clone(), slot, caller, device, identity }),
        }
    }

    /// Records that somebody whom nothing proves asked for what they call `host`.
    pub async fn stranger(&self, source: SocketAddr, host: &str, why: &str) {
        let device = self.inside().gate.device(host);
        self.record(None, Refused { kind: RefusedKind::Token, message: why.to_owned(), source, device })
            .await;
    }

    pub(super) async fn record(&self, person: Option<&D::Person>, refused: Refused) {
        let inside = self.inside();
        if timeout(inside.limits.step, inside.door.refused(person, refused)).await.is_err() {
            warn!("a refusal was not recorded in time");
        }
    }
}

impl<D: Door> Admitted<D> {
    /// Serves SSH inside the WebSocket, to its end.
    pub fn enter(self, socket: WebSocket) {
        let Self { entrance, slot, caller: Caller { person, source, tls }, device, identity } = self;
        let inside = entrance.inside().clone();
        let linger = inside.limits.linger;
        let (near, far) = duplex(PIPE);
        let config = Arc::new(ssh::config(identity, &inside.limits));
        let place = Place::Direct { device, caller: person, tls: Some(tls) };
        let serving = serve(inside, near, place, source, config, Some(slot));
        entrance.run(source, async move {
            let carrying = carry(socket, far);
            tokio::pin!(serving, carrying);
            tokio::select! {
                () = &mut carrying => serving.await,
                () = &mut serving => {
                    // What was said last is delivered, if the client takes it soon.
                    if timeout(linger, carrying).await.is_err() {
                        debug!("the client did not take its last words");
                    }
                }
            }
        });
    }
}

/// The client is gone without a word.
struct Gone;

/// Carries bytes both ways until both sides have ended, or the client is gone. A direction that waits lets
/// the other go on, and neither takes more than there is room for.
async fn carry(socket: WebSocket, stream: DuplexStream) {
    let (mut sink, mut messages) = socket.split();
    let (mut reader, mut writer) = tokio::io::split(stream);
    let up = async {
        while let Some(Ok(message)) = messages.next().await {
            match message {
                // What comes after the end of the SSH connection has nowhere to go. It is taken all the
                // same: a socket closed over unread bytes is reset, and takes our last words with it.
                Message::Binary(bytes) => {
                    let _ = writer.write_all(&bytes).await;
                }
                // The library answers pings.
                Message::Ping(_) | Message::Pong(_) => {}
                Message::Text(_) | Message::Close(_) => break,
            }
        }
        // The SSH connection may have ended first.
        let _ = writer.shutdown().await;
        Ok(())
    };
    let down = async {
        let mut buffer = vec![0; SSH_MESSAGE / 2];
        loop {
            match reader.read(&mut buffer).await {
                Ok(n @ 1..) => {
                    let message = Message::Binary(Bytes::copy_from_slice(&buffer[..n]));
                    sink.send(message).await.map_err(|_| Gone)?;
                }
                Ok(0) | Err(_) => return sink.close().await.map_err(|_| Gone),
            }
        }
    };
    if let Err(Gone) = tokio::try_join!(up, down).map(drop) {
        debug!("the client is gone");
    }
}
