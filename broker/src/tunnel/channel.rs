//! One channel: frames on a yamux stream, joined to the two queues that a session holds.
//!
//! The directions never wait for each other. What may be unacknowledged is the flow control: the device sends
//! no more while the session does not take. The stream itself is read on meanwhile, because the acks of the
//! other direction come on it; what it may bring is bounded by `HOLD` and then by the stream's window.
//!
//! A channel outlives its tunnel: what both directions know is kept, with the input that is not
//! acknowledged, until [`Kept`] has found another stream for it or the session is over.

mod incoming;
mod outgoing;

use super::attention::Attention;
use super::connection::{FrameReader, FrameWriter};
use super::kept::Kept;
use super::server::Limits;
use crate::session::wire::{DeviceChannel, QUEUE, QUEUE_IN};
use daypass_protocol::ids::DeviceId;
use daypass_protocol::tunnel::Stream as Which;
use daypass_protocol::tunnel::frame::FrameError;
use daypass_protocol::tunnel::unacked::Unacked;
use daypass_protocol::tunnel::waker::alone;
use incoming::Incoming;
use outgoing::Outgoing;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

/// How the device broke the protocol on this channel.
#[derive(Debug, thiserror::Error)]
enum Breach {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("{stream:?} at offset {found}, where {expected} is next")]
    Offset { stream: Which, found: u64, expected: u64 },
    #[error("an ack of {found}; {acked} are acknowledged and {sent} were sent")]
    Ack { found: u64, acked: u64, sent: u64 },
    #[error("an unexpected {0} frame")]
    Unexpected(&'static str),
    #[error("the stream ended without a close frame")]
    Truncated,
}

/// A stream of the tunnel on which a channel runs.
pub(super) struct Link {
    pub reader: FrameReader,
    pub writer: FrameWriter,
    /// The channel's place among those of the tunnel.
    pub room: Attention,
    /// Cancelled with the tunnel.
    pub lost: CancellationToken,
    pub limits: Limits,
}

/// What the two directions know of each other.
#[derive(Debug)]
struct Shared {
    /// What was sent to the process, or is to be.
    unacked: Mutex<Unacked>,
    /// Something was acknowledged.
    room: Notify,
    /// Counts to acknowledge next: of data, and of stderr.
    acks: [AtomicU64; 2],
    ack_due: Notify,
    /// The device's direction is over: nothing more needs to be said to it.
    device_done: CancellationToken,
    /// The device broke the protocol, and this is what to tell it.
    breach: OnceLock<String>,
}

impl Shared {
    fn new() -> Self {
        Self {
            unacked: Mutex::new(Unacked::new(Which::Data)),
            room: Notify::new(),
            acks: [AtomicU64::new(0), AtomicU64::new(0)],
            ack_due: Notify::new(),
            device_done: CancellationToken::new(),
            breach: OnceLock::new(),
        }
    }

    fn unacked(&self) -> MutexGuard<'_, Unacked> {
        self.unacked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn index(stream: Which) -> usize {
    match stream {
        Which::Data => 0,
        Which::Stderr => 1,
    }
}

/// Starts the pumps of a stream on which `opened` has arrived. Once its tunnel is lost, `kept` finds the
/// next one, and the channel goes on there.
pub(super) fn start(link: Link, device: DeviceId, kept: Option<Kept>) -> DeviceChannel {
    let (to_device, from_session) = mpsc::channel(QUEUE_IN);
    let (to_session, from_device) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        let shared = Shared::new();
        let mut incoming = Incoming::new(to_session, &shared, link.limits);
        let mut outgoing = Outgoing::new(from_session, &shared, link.limits);
        let mut link = link;
        while run(link, &mut incoming, &mut outgoing, &device).await == Fate::Lost {
            let Some(kept) = &kept else { return };
            let Some((next, received)) = kept.resume(incoming.known()).await else { return };
            // The device says how much of its input it has. It cannot have what was never sent.
            if !shared.unacked().rewind(received) {
                tracing::warn!(%device, received, "a device resumed a channel with input that it was never sent");
                return;
            }
            // What the request said counts as acknowledged: an ack must not go back behind it.
            outgoing.acked = incoming.received;
            outgoing.again = true;
            link = next;
        }
    });
    DeviceChannel { input: to_device, output: from_device }
}

/// How a channel's time on one stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Over,
    /// The tunnel is gone; the channel need not be.
    Lost,
}

async fn run(
    link: Link,
    incoming: &mut Incoming<'_>,
    outgoing: &mut Outgoing<'_>,
    device: &DeviceId,
) -> Fate {
    let Link { reader, writer, room: _room, lost, .. } = link;
    let shared = incoming.shared;
    let incoming = async {
        let fate = incoming.run(reader, &lost, device).await;
        if fate == Fate::Over {
            shared.device_done.cancel();
        }
        fate
    };
    let outgoing = async {
        tokio::select! {
            // Dropping the stream resets it.
            () = lost.cancelled() => {}
            () = outgoing.run(writer) => {}
        }
    };
    tokio::join!(alone(incoming), alone(outgoing)).0
}
