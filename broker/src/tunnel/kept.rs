//! What a session lends to a channel, so that it can go on after its tunnel was lost.

use super::channel::Link;
use super::connection::{OpenAsk, OpenError};
use super::registry::Tunnels;
use daypass_protocol::ids::DeviceId;
use daypass_protocol::ssh_key::PrivateKey;
use daypass_protocol::tunnel::hello::Binding;
use daypass_protocol::tunnel::open::Received;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// Between two tries on a tunnel that is there and does not take the channel yet.
const AGAIN: Duration = Duration::from_millis(500);

/// The session's side of a resumption: it signs anew, with the session's key, for each tunnel.
#[derive(Clone, Debug)]
pub struct Keeper {
    pub tunnels: Tunnels,
    pub key: Arc<PrivateKey>,
    /// Cancelled when the session is over: from then on nothing is resumed for it.
    pub over: CancellationToken,
}

/// What it takes to resume one channel.
#[derive(Debug)]
pub(super) struct Kept {
    pub keeper: Keeper,
    pub device: DeviceId,
    pub ask: OpenAsk,
    /// A secret of the device that opened the channel and this broker.
    pub opened_on: Binding,
}

impl Kept {
    /// Waits for the device, for as long as the session does, and asks it to go on with the channel. The
    /// link, and how much input the device has; `None` when there is nothing to go on with.
    pub(super) async fn resume(&self, received: Received) -> Option<(Link, u64)> {
        tokio::select! {
            () = self.keeper.over.cancelled() => None,
            resumed = self.try_resume(received) => resumed,
        }
    }

    async fn try_resume(&self, received: Received) -> Option<(Link, u64)> {
        loop {
            let tunnel = self.keeper.tunnels.wait_for(&self.device).await;
            match tunnel.resume(&self.ask, &self.opened_on, received, &self.keeper.key).await {
                Ok(resumed) => return Some(resumed),
                Err(
                    error @ (OpenError::Refused(_)
                    | OpenError::Protocol(_)
                    | OpenError::Frame(_)
                    | OpenError::Signature(_)),
                ) => {
                    let (session, channel) = (&self.ask.session, self.ask.channel);
                    tracing::warn!(device = %self.device, %session, channel, %error, "a channel is not resumed");
                    return None;
                }
                Err(
                    OpenError::Gone(_) | OpenError::Suspended | OpenError::TooMany | OpenError::TimedOut(_),
                ) => {
                    sleep(AGAIN).await;
                }
            }
        }
    }
}
