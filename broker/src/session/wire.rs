//! The two ends that a session joins: the engineer's channel and the device's.
//!
//! Both are queues with a bound. The engineer's input is counted in bytes, because the gateway opens the
//! SSH window by what is still queued; the others are bounded in messages of at most 32 KiB.

use bytes::Bytes;
use daypass_protocol::tunnel::Stream;
use daypass_protocol::tunnel::frame::{CloseCode, Exit};
use daypass_protocol::tunnel::open::WindowSize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::{Notify, mpsc};

/// Messages that may wait towards the engineer, or either way at the device.
pub const QUEUE: usize = 8;

/// From the engineer's client. The end of the queue is the end of the channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromEngineer {
    Data(Bytes),
    Eof,
    Resize(WindowSize),
    Signal(String),
}

/// To the engineer's client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToEngineer {
    Data(Bytes),
    Stderr(Bytes),
    Eof,
    Exit(Exit),
    Close,
}

/// To the process on the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToDevice {
    Data(Bytes),
    Eof,
    Resize(WindowSize),
    Signal(String),
    Close { code: CloseCode, message: String },
}

/// From the process on the device. The end of the queue without `Closed` is a lost tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromDevice {
    Data(Bytes),
    Stderr(Bytes),
    Eof(Stream),
    Exit(Exit),
    Closed { code: CloseCode, message: String },
}

/// The engineer's end of a channel, as the gateway hands it to a session.
#[derive(Debug)]
pub struct EngineerChannel {
    pub input: Input,
    pub output: mpsc::Sender<ToEngineer>,
}

/// The device's end of a channel, as the tunnel hands it to a session.
#[derive(Debug)]
pub struct DeviceChannel {
    pub input: mpsc::Sender<ToDevice>,
    pub output: mpsc::Receiver<FromDevice>,
}

/// Makes the engineer's input queue: the gateway pushes without waiting and watches
/// [`InputQueue::queued`]; the session takes.
pub fn input() -> (InputQueue, Input) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let count = Arc::new(Count::default());
    (InputQueue { sender, count: count.clone() }, Input { receiver, count })
}

#[derive(Debug, Default)]
struct Count {
    bytes: AtomicUsize,
    drained: Notify,
}

/// The gateway's end. Unbounded by itself: the bound is the SSH window, which the gateway opens only as
/// far as this queue has room, and a peer that ignores its window is cut off by it.
#[derive(Clone, Debug)]
pub struct InputQueue {
    sender: mpsc::UnboundedSender<FromEngineer>,
    count: Arc<Count>,
}

impl InputQueue {
    /// False when nobody takes from the queue any more.
    pub fn push(&self, message: FromEngineer) -> bool {
        if let FromEngineer::Data(bytes) = &message {
            self.count.bytes.fetch_add(bytes.len(), Ordering::AcqRel);
        }
        self.sender.send(message).is_ok()
    }

    /// Bytes pushed and not yet taken.
    pub fn queued(&self) -> usize {
        self.count.bytes.load(Ordering::Acquire)
    }

    /// Waits until something was taken.
    pub async fn drained(&self) {
        self.count.drained.notified().await;
    }
}

/// The session's end.
#[derive(Debug)]
pub struct Input {
    receiver: mpsc::UnboundedReceiver<FromEngineer>,
    count: Arc<Count>,
}

impl Input {
    /// The next message; `None` when the engineer's channel is closed.
    pub async fn recv(&mut self) -> Option<FromEngineer> {
        let message = self.receiver.recv().await?;
        if let FromEngineer::Data(bytes) = &message {
            self.count.bytes.fetch_sub(bytes.len(), Ordering::AcqRel);
            self.count.drained.notify_one();
        }
        Some(message)
    }
}
