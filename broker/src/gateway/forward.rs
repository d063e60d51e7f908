//! One forward: a `direct-tcpip` channel of a session (RFC 4254 section 7.2), to a port on the device.
//!
//! Unlike a channel of a process it exists only once the device is connected to the target, has no stderr
//! and no exit, and each direction ends by itself.

use super::channel::{Asked, notice, open};
use super::door::{Door, Refusal};
use super::jump::prohibited;
use super::live::Live;
use crate::session::wire::{EngineerChannel, Input, QUEUE, ToEngineer};
use daypass_protocol::text::made_visible;
use russh::server::{ChannelOpenHandle, Msg};
use russh::{ChannelOpenFailure, ChannelWriteHalf};
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// SSH_OPEN_CONNECT_FAILED, RFC 4254 section 5.1.
const CONNECT_FAILED: u32 = 2;

/// What a forward needs to start.
pub struct Start<D: Door> {
    pub asked: Asked<D>,
    pub input: Input,
    pub write: ChannelWriteHalf<Msg>,
    pub reply: ChannelOpenHandle,
    /// The client's end of the channel is gone.
    pub gone: CancellationToken,
}

fn failure(refusal: &Refusal) -> ChannelOpenFailure {
    if refusal.failed {
        let reason = format!("daypass: {}", made_visible(&refusal.to_string(), 512));
        ChannelOpenFailure::Other { code: CONNECT_FAILED, reason }
    } else {
        prohibited(&refusal.to_string())
    }
}

/// Connects at the session's door, then carries what comes back until one side closes.
pub async fn run<D: Door>(live: Arc<Live<D>>, start: Start<D>) {
    let Start { asked, input, write, reply, gone } = start;
    let mut ended = live.ended.subscribe();
    let (output, mut messages) = mpsc::channel(QUEUE);
    let opened = tokio::select! {
        opened = open(&live, asked, EngineerChannel { input, output }) => opened.map(drop),
        notice = notice(&mut ended) => Err(Refusal::new(notice.message)),
    };
    if let Err(refusal) = opened {
        reply.reject(failure(&refusal)).await;
    } else {
        reply.accept().await;
        let carried = tokio::select! {
            carried = carry(&live, &write, &mut messages) => carried,
            _ = notice(&mut ended) => write.close().await,
            () = gone.cancelled() => Ok(()),
        };
        if let Err(error) = carried {
            debug!(%error, "a forward's output ended");
        }
    }
    live.channels().remove(&write.id());
}

async fn carry<D: Door>(
    live: &Live<D>,
    write: &ChannelWriteHalf<Msg>,
    messages: &mut mpsc::Receiver<ToEngineer>,
) -> Result<(), russh::Error> {
    let mut eof = false;
    while let Some(message) = messages.recv().await {
        match message {
            ToEngineer::Data(bytes) => {
                live.control.room().await;
                write.data_bytes(bytes).await?;
            }
            // Passed on at once: many protocols answer only after it.
            ToEngineer::Eof if !eof => {
                eof = true;
                write.eof().await?;
            }
            ToEngineer::Close => break,
            ToEngineer::Eof | ToEngineer::Stderr(_) | ToEngineer::Exit(_) => {}
        }
    }
    write.close().await
}
