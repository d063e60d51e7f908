//! The two ends that a session joins: the engineer's channel and the device's.
//!
//! Both are queues with a bound. The engineer's input is counted in bytes, because the gateway opens the
//! SSH window by what is still queued; the others are bounded in messages: of at most 128 KiB from the device, 32 KiB
//! to it.

use bytes::Bytes;
use daypass_protocol::tunnel::Stream;
use daypass_protocol::tunnel::frame::{CloseCode, Exit};
use daypass_protocol::tunnel::open::WindowSize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, mpsc};

/// What is called when a queue that was filled has room again.
pub struct Relief {
    below: usize,
    call: Box<dyn Fn() + Send + Sync>,
}

impl std::fmt::Debug for Relief {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Relief").field("below", &self.below).finish_non_exhaustive()
    }
}

impl Relief {
    /// Calls when what is queued falls below this many bytes.
    pub fn new(below: usize, call: impl Fn() + Send + Sync + 'static) -> Self {
        Self { below, call: Box::new(call) }
    }

    /// Of `before` bytes, this many were taken.
    pub fn taken(&self, before: usize, bytes: usize) {
        if before >= self.below && before.saturating_sub(bytes) < self.below {
            (self.call)();
        }
    }
}

/// Messages that may wait on their way from the device, each time they change hands.
pub const QUEUE: usize = 4;
/// Messages that may wait on their way to the device.
pub const QUEUE_IN: usize = 8;

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
pub fn input(relief: Relief) -> (InputQueue, Input) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let count = Arc::new(Count::default());
    (InputQueue { sender, count: count.clone() }, Input { receiver, count, relief })
}

#[derive(Debug, Default)]
struct Count {
    bytes: AtomicUsize,
    messages: AtomicUsize,
    drained: Notify,
    /// The size that the queue's one [`FromEngineer::Resize`] stands for.
    size: Mutex<Option<WindowSize>>,
    signals: AtomicUsize,
}

impl Count {
    fn size(&self) -> MutexGuard<'_, Option<WindowSize>> {
        self.size.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Signals that may wait. Like those of a process, more of them say nothing more.
const SIGNALS: usize = 32;

/// The gateway's end. Unbounded by itself: the bound of data is the SSH window, which the gateway opens only
/// as far as this queue has room, and a peer that ignores its window is cut off by it. Of sizes only the last
/// one counts, so only that one waits.
#[derive(Clone, Debug)]
pub struct InputQueue {
    sender: mpsc::UnboundedSender<FromEngineer>,
    count: Arc<Count>,
}

impl InputQueue {
    /// False when nobody takes from the queue any more.
    pub fn push(&self, message: FromEngineer) -> bool {
        match &message {
            FromEngineer::Data(bytes) => {
                self.count.bytes.fetch_add(bytes.len(), Ordering::AcqRel);
            }
            FromEngineer::Resize(size) => {
                if self.count.size().replace(*size).is_some() {
                    return !self.sender.is_closed();
                }
            }
            FromEngineer::Signal(name) => {
                if self.count.signals.fetch_add(1, Ordering::AcqRel) >= SIGNALS {
                    self.count.signals.fetch_sub(1, Ordering::AcqRel);
                    tracing::debug!(%name, "more signals than a process can wait for");
                    return !self.sender.is_closed();
                }
            }
            FromEngineer::Eof => {}
        }
        self.count.messages.fetch_add(1, Ordering::AcqRel);
        self.sender.send(message).is_ok()
    }

    /// Messages pushed and not yet taken.
    pub fn messages(&self) -> usize {
        self.count.messages.load(Ordering::Acquire)
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
    relief: Relief,
}

impl Input {
    /// The next message; `None` when the engineer's channel is closed.
    pub async fn recv(&mut self) -> Option<FromEngineer> {
        let mut message = self.receiver.recv().await?;
        self.count.messages.fetch_sub(1, Ordering::AcqRel);
        match &mut message {
            FromEngineer::Data(bytes) => {
                let before = self.count.bytes.fetch_sub(bytes.len(), Ordering::AcqRel);
                self.relief.taken(before, bytes.len());
                self.count.drained.notify_one();
            }
            FromEngineer::Resize(size) => {
                if let Some(last) = self.count.size().take() {
                    *size = last;
                }
            }
            FromEngineer::Signal(_) => {
                self.count.signals.fetch_sub(1, Ordering::AcqRel);
            }
            FromEngineer::Eof => {}
        }
        Some(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn relief_comes_once_when_what_is_queued_falls_below_its_mark() {
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = calls.clone();
        let (queue, mut input) = input(Relief::new(8, move || {
            counted.fetch_add(1, Ordering::Relaxed);
        }));
        for _ in 0..4 {
            assert!(queue.push(FromEngineer::Data(Bytes::from_static(b"four"))));
        }
        let mut seen = Vec::new();
        for _ in 0..4 {
            input.recv().await.unwrap();
            seen.push(calls.load(Ordering::Relaxed));
        }
        assert_eq!(seen, [0, 0, 1, 1]);
    }

    #[tokio::test]
    async fn sizes_and_signals_that_pile_up_take_no_room() {
        let (queue, mut input) = input(Relief::new(1, || ()));
        let size = |columns| WindowSize { cols: columns, rows: 24, width_px: 0, height_px: 0 };
        for columns in 1..=10_000 {
            assert!(queue.push(FromEngineer::Resize(size(columns))));
            assert!(queue.push(FromEngineer::Signal("INT".to_owned())));
        }
        assert!(queue.push(FromEngineer::Eof));
        assert_eq!(input.recv().await, Some(FromEngineer::Resize(size(10_000))), "the last one counts");
        for _ in 0..SIGNALS {
            assert_eq!(input.recv().await, Some(FromEngineer::Signal("INT".to_owned())));
        }
        assert_eq!(input.recv().await, Some(FromEngineer::Eof));
        assert!(
            queue.push(FromEngineer::Resize(size(80))) && queue.push(FromEngineer::Signal("HUP".to_owned()))
        );
        assert_eq!(input.recv().await, Some(FromEngineer::Resize(size(80))));
        assert_eq!(input.recv().await, Some(FromEngineer::Signal("HUP".to_owned())));
        drop(input);
        assert!(!queue.push(FromEngineer::Resize(size(81))));
    }
}
