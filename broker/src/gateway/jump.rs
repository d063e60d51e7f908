//! The inner hop of `ssh -J`: an SSH connection of its own, under the device's name, inside a channel of
//! the outer one.

use super::connection::{Place, serve};
use super::door::Door;
use super::live::Live;
use super::pipe::{PipeOut, PipeStream, ROOM};
use super::ssh;
use daypass_protocol::ids::DeviceId;
use daypass_protocol::text::made_visible;
use russh::server::{ChannelOpenHandle, Msg};
use russh::{ChannelOpenFailure, ChannelWriteHalf};
use std::sync::Arc;
use tokio::time::timeout;
use tracing::debug;

/// The reason code of RFC 4254 section 5.1 for "administratively prohibited", with our own words.
pub fn prohibited(line: &str) -> ChannelOpenFailure {
    ChannelOpenFailure::Other { code: 1, reason: format!("daypass: {}", made_visible(line, 512)) }
}

/// The outer channel's two ends, and the inner connection's stream between them.
pub struct Jump {
    pub reply: ChannelOpenHandle,
    pub write: ChannelWriteHalf<Msg>,
    pub out: PipeOut,
    pub stream: PipeStream,
}

pub async fn run<D: Door>(live: Arc<Live<D>>, person: D::Person, device: DeviceId, jump: Jump) {
    let Jump { reply, write, mut out, stream } = jump;
    let inside = live.inside.clone();
    match timeout(inside.limits.step, inside.door.host_identity(&device)).await {
        Err(_) => reply.reject(prohibited("the gateway is busy: try again")).await,
        Ok(Err(refusal)) => reply.reject(prohibited(&refusal.to_string())).await,
        Ok(Ok(identity)) => {
            reply.accept().await;
            let config = Arc::new(ssh::config(identity, &inside.limits));
            let place = Place::Inner { device, outer: person, outer_kex: live.control.kex() };
            let inner = serve(inside, stream, place, live.source, config, None);
            let pump = async {
                tokio::select! {
                    () = pump(&live, &write, &mut out) => {}
                    () = live.gone.cancelled() => {}
                }
                // The inner connection must not wait for a pump that is gone.
                drop(out);
            };
            tokio::join!(inner, pump);
        }
    }
    live.channels().remove(&write.id());
}

/// Carries what the inner connection sends into the outer channel.
async fn pump<D: Door>(live: &Live<D>, write: &ChannelWriteHalf<Msg>, out: &mut PipeOut) {
    while let Some(bytes) = out.next(ROOM).await {
        live.control.room().await;
        if let Err(error) = write.data_bytes(bytes).await {
            debug!(%error, "the outer channel ended");
            return;
        }
    }
    // An inner client that still has to read its last words would fail at writing first, and not read them,
    // if its way were closed under it. So it goes first, if it goes soon.
    if timeout(live.inside.limits.linger, out.client_ended()).await.is_err() {
        debug!("the inner client stays after its connection has ended");
    }
    if write.eof().await.is_err() || write.close().await.is_err() {
        debug!("the outer connection ended first");
    }
}
