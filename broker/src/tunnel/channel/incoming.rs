//! From the device to the session.

use super::{Breach, Fate, Shared, index};
use crate::session::wire::{FromDevice, QUEUE};
use crate::tunnel::connection::FrameReader;
use crate::tunnel::server::Limits;
use daypass_protocol::ids::DeviceId;
use daypass_protocol::tunnel::Stream as Which;
use daypass_protocol::tunnel::frame::{CloseCode, Frame, merge};
use daypass_protocol::tunnel::open::Received;
use daypass_protocol::tunnel::stream::ReadError;
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

/// Unacknowledged bytes after which an ack is due at once.
const ACK_BYTES: u64 = 64 * 1024;
/// Output that is held while the session does not take it: more than a device has unacknowledged.
const HOLD: usize = 1536 * 1024;
/// How much later than the end of a stream the end of its tunnel may be noticed.
const SAME_END: Duration = Duration::from_secs(1);

/// What arrives, and how far it has come.
pub struct Incoming<'a> {
    output: mpsc::Sender<FromDevice>,
    pub shared: &'a Shared,
    limits: Limits,
    /// Bytes received, and whether more may come: of data, and of stderr.
    pub received: [u64; 2],
    ended: [bool; 2],
    exited: bool,
    /// On this stream the device has said that its process is gone; another one may say it again.
    exited_here: bool,
    /// Received, and on its way into the session's queue; and how many bytes that is.
    passing: VecDeque<Passing>,
    held: usize,
    /// What lies in the session's queue, oldest first: stream and count after it; `None` for what is no
    /// data. An entry that has left the queue is handed on.
    queued: VecDeque<Option<(Which, u64)>>,
    /// The counts of which the writer was last told.
    announced: [u64; 2],
}

/// The stream, as it is read.
struct Input<'a> {
    reader: FrameReader,
    lost: &'a CancellationToken,
}

/// A message for the session. Data has its stream and the count after it.
struct Passing {
    message: FromDevice,
    counts: Option<(Which, u64)>,
}

impl Passing {
    fn len(&self) -> usize {
        match &self.message {
            FromDevice::Data(bytes) | FromDevice::Stderr(bytes) => bytes.len(),
            _ => 0,
        }
    }

    /// Takes over what comes behind it, if it is little and of the same stream.
    fn merge(&mut self, next: &Self) -> bool {
        let merged = match (&mut self.message, &next.message) {
            (FromDevice::Data(waiting), FromDevice::Data(next))
            | (FromDevice::Stderr(waiting), FromDevice::Stderr(next)) => merge(waiting, next),
            _ => false,
        };
        if merged {
            self.counts = next.counts;
        }
        merged
    }

    fn is_last(&self) -> bool {
        matches!(self.message, FromDevice::Closed { .. })
    }
}

impl<'a> Incoming<'a> {
    pub fn new(output: mpsc::Sender<FromDevice>, shared: &'a Shared, limits: Limits) -> Self {
        Self {
            output,
            shared,
            limits,
            received: [0; 2],
            ended: [false; 2],
            exited: false,
            exited_here: false,
            passing: VecDeque::new(),
            held: 0,
            queued: VecDeque::with_capacity(QUEUE + 1),
            announced: [0; 2],
        }
    }

    pub fn known(&self) -> Received {
        Received { data: self.received[0], stderr: self.received[1] }
    }

    pub async fn run(&mut self, reader: FrameReader, lost: &CancellationToken, device: &DeviceId) -> Fate {
        let mut acks = tokio::time::interval(self.limits.ack);
        acks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.exited_here = false;
        let fate = match self.pump(Input { reader, lost }, &mut acks).await {
            Ok(fate) => fate,
            Err(breach) => {
                let message = breach.to_string();
                tracing::warn!(%device, cause = %message, "a device broke the protocol of a channel");
                let _ = self.shared.breach.set(message.clone());
                // A session that has let go needs no word of it.
                let _ = self.output.send(FromDevice::Closed { code: CloseCode::Protocol, message }).await;
                Fate::Over
            }
        };
        // The last acks: what the session takes from here on is its own affair.
        self.note_handed_on(false);
        fate
    }

    async fn pump(&mut self, mut input: Input<'_>, acks: &mut tokio::time::Interval) -> Result<Fate, Breach> {
        let output = self.output.clone();
        loop {
            // Nothing counts behind the device's close.
            let open = !self.passing.back().is_some_and(Passing::is_last);
            let room = open && self.held < HOLD;
            if room && let Some(frame) = input.reader.arrived()? {
                if let Some(message) = self.take(frame)? {
                    self.pass(message);
                }
                continue;
            }
            tokio::select! {
                biased;
                () = input.lost.cancelled() => return Ok(Fate::Lost),
                // What the stream before left half-way comes first.
                permit = output.reserve(), if !self.passing.is_empty() => match permit {
                    Ok(permit) => {
                        if self.hand_on(permit) {
                            return Ok(Fate::Over);
                        }
                    }
                    Err(_) => return self.drain(input).await,
                },
                _ = acks.tick() => self.note_handed_on(false),
                frame = input.reader.next(), if room => match frame {
                    Ok(Some(frame)) => {
                        if let Some(message) = self.take(frame)? {
                            self.pass(message);
                        }
                    }
                    Err(ReadError::Frame(error)) => return Err(error.into()),
                    // With the tunnel, or alone?
                    Ok(None) | Err(ReadError::Io(_)) => return match timeout(SAME_END, input.lost.cancelled()).await {
                        Ok(()) => Ok(Fate::Lost),
                        Err(_) => Err(Breach::Truncated),
                    },
                },
                () = output.closed() => return self.drain(input).await,
            }
        }
    }

    fn pass(&mut self, message: FromDevice) {
        let counts = match &message {
            FromDevice::Data(_) => Some((Which::Data, self.received[0])),
            FromDevice::Stderr(_) => Some((Which::Stderr, self.received[1])),
            _ => None,
        };
        let passing = Passing { message, counts };
        self.held += passing.len();
        if !self.passing.back_mut().is_some_and(|last| last.merge(&passing)) {
            self.passing.push_back(passing);
        }
    }

    /// Passes the oldest message to the session; true when it was the last.
    fn hand_on(&mut self, permit: mpsc::Permit<'_, FromDevice>) -> bool {
        let Some(passing) = self.passing.pop_front() else { return false };
        self.held -= passing.len();
        let last = passing.is_last();
        permit.send(passing.message);
        self.queued.push_back(passing.counts);
        self.note_handed_on(true);
        last
    }

    /// Moves the acks to what has left the session's queue; wakes the writer when one is due.
    fn note_handed_on(&mut self, only_when_many: bool) {
        let waiting = self.output.max_capacity() - self.output.capacity();
        while self.queued.len() > waiting {
            if let Some(Some((stream, count))) = self.queued.pop_front() {
                self.shared.acks[index(stream)].store(count, Ordering::Release);
            }
        }
        let many =
            (0..2).any(|at| self.shared.acks[at].load(Ordering::Acquire) - self.announced[at] >= ACK_BYTES);
        let any = (0..2).any(|at| self.shared.acks[at].load(Ordering::Acquire) > self.announced[at]);
        if many || (any && !only_when_many) {
            self.announced = [0, 1].map(|at| self.shared.acks[at].load(Ordering::Acquire));
            self.shared.ack_due.notify_one();
        }
    }

    /// The session has let go: whatever still comes is of no use, but the process may be writing it, and
    /// the device's close comes behind it.
    async fn drain(&mut self, mut input: Input<'_>) -> Result<Fate, Breach> {
        self.passing.clear();
        self.held = 0;
        let deadline = Instant::now() + self.limits.drain;
        loop {
            tokio::select! {
                frame = timeout_at(deadline, input.reader.next()) => match frame {
                    Ok(Ok(Some(Frame::Close { .. }))) | Err(_) => return Ok(Fate::Over),
                    Ok(Ok(Some(frame))) => {
                        self.take(frame)?;
                    }
                    Ok(Err(ReadError::Frame(error))) => return Err(error.into()),
                    Ok(Ok(None) | Err(ReadError::Io(_))) => return Ok(match timeout(SAME_END, input.lost.cancelled()).await {
                        Ok(()) => Fate::Lost,
                        Err(_) => Fate::Over,
                    }),
                },
                () = input.lost.cancelled() => return Ok(Fate::Lost),
            }
        }
    }

    /// What a frame has for the session.
    fn take(&mut self, frame: Frame) -> Result<Option<FromDevice>, Breach> {
        Ok(Some(match frame {
            Frame::Data { stream, offset, bytes } => {
                let at = index(stream);
                self.check(stream, offset)?;
                if bytes.is_empty() {
                    return Ok(None);
                }
                self.received[at] += bytes.len() as u64;
                match stream {
                    Which::Data => FromDevice::Data(bytes),
                    Which::Stderr => FromDevice::Stderr(bytes),
                }
            }
            // Said again on every stream that the channel goes on on.
            Frame::Eof { stream, offset } if self.ended[index(stream)] => {
                let expected = self.received[index(stream)];
                if offset != expected {
                    return Err(Breach::Offset { stream, found: offset, expected });
                }
                return Ok(None);
            }
            Frame::Eof { stream, offset } => {
                self.check(stream, offset)?;
                self.ended[index(stream)] = true;
                FromDevice::Eof(stream)
            }
            Frame::Ack { stream: Which::Data, offset } => {
                let mut unacked = self.shared.unacked();
                if !unacked.forget(offset) {
                    return Err(Breach::Ack { found: offset, acked: unacked.acked(), sent: unacked.sent() });
                }
                self.shared.room.notify_one();
                return Ok(None);
            }
            Frame::Ack { stream: Which::Stderr, .. } => return Err(Breach::Unexpected("ack of stderr")),
            Frame::Exit(exit) => {
                if std::mem::replace(&mut self.exited_here, true) {
                    return Err(Breach::Unexpected("second exit"));
                }
                if std::mem::replace(&mut self.exited, true) {
                    return Ok(None);
                }
                FromDevice::Exit(exit)
            }
            Frame::Close { code, message } => {
                // A person will read it, and the device wrote it.
                let message = daypass_protocol::text::made_visible(&message, 1024);
                FromDevice::Closed { code, message }
            }
            Frame::Open(_) => return Err(Breach::Unexpected("open")),
            Frame::Opened => return Err(Breach::Unexpected("second opened")),
            Frame::Resumed { .. } => return Err(Breach::Unexpected("resumed")),
            Frame::Refused(_) => return Err(Breach::Unexpected("refused")),
            Frame::Resize(_) => return Err(Breach::Unexpected("resize")),
            Frame::Signal(_) => return Err(Breach::Unexpected("signal")),
        }))
    }

    fn check(&self, stream: Which, found: u64) -> Result<(), Breach> {
        let at = index(stream);
        if self.ended[at] || self.exited {
            return Err(Breach::Unexpected("data or eof after the end"));
        }
        let expected = self.received[at];
        if found == expected { Ok(()) } else { Err(Breach::Offset { stream, found, expected }) }
    }
}
