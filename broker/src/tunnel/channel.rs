//! One channel: frames on a yamux stream, joined to the two queues that a session holds.
//!
//! The directions never wait for each other. The stream's window and the queues' bounds are the flow
//! control: a session that does not take stops the reading of this stream and of nothing else.

use super::connection::Stream;
use super::server::Limits;
use crate::session::wire::{DeviceChannel, FromDevice, QUEUE, ToDevice};
use bytes::BytesMut;
use daypass_protocol::ids::DeviceId;
use daypass_protocol::tunnel::Stream as Which;
use daypass_protocol::tunnel::frame::{CloseCode, Frame, FrameError, MAX_DATA};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::sync::{Notify, OwnedSemaphorePermit, mpsc};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

/// Bytes read from the stream at once, and gathered before they are written to it.
const BATCH: usize = 64 * 1024;
/// Unacknowledged bytes after which an ack is due at once.
const ACK_BYTES: u64 = 64 * 1024;

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

/// What the two directions know of each other.
#[derive(Debug, Default)]
struct Shared {
    /// Bytes sent to the process, or about to be.
    sent: AtomicU64,
    /// Counts to acknowledge next: of data, and of stderr.
    acks: [AtomicU64; 2],
    ack_due: Notify,
    /// The device's direction is over: nothing more needs to be said to it.
    device_done: CancellationToken,
    /// The device broke the protocol, and this is what to tell it.
    breach: std::sync::OnceLock<String>,
}

fn index(stream: Which) -> usize {
    match stream {
        Which::Data => 0,
        Which::Stderr => 1,
    }
}

/// Starts the pumps of a stream on which `opened` has arrived; `input` is what came behind it.
pub(super) fn start(
    stream: Stream,
    input: BytesMut,
    room: OwnedSemaphorePermit,
    stop: CancellationToken,
    limits: Limits,
    device: DeviceId,
) -> DeviceChannel {
    let (to_device, from_session) = mpsc::channel(QUEUE);
    let (to_session, from_device) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        let _room = room;
        let shared = Shared::default();
        let (reader, writer) = tokio::io::split(stream);
        let incoming = async {
            Incoming::new(reader, input, to_session, &shared, limits).run(&device).await;
            shared.device_done.cancel();
        };
        let outgoing = Outgoing { writer, shared: &shared, offset: 0, acked: [0; 2] };
        let both = async { tokio::join!(incoming, outgoing.run(from_session, limits)) };
        tokio::select! {
            // Dropping the stream resets it.
            () = stop.cancelled() => {}
            _ = both => {}
        }
    });
    DeviceChannel { input: to_device, output: from_device }
}

/// From the device to the session.
struct Incoming<'a> {
    reader: ReadHalf<Stream>,
    input: BytesMut,
    output: mpsc::Sender<FromDevice>,
    shared: &'a Shared,
    limits: Limits,
    /// Bytes received, and whether more may come: of data, and of stderr.
    received: [u64; 2],
    ended: [bool; 2],
    /// The device's acks of what was sent to it.
    acked: u64,
    exited: bool,
    /// What lies in the session's queue, oldest first: stream and count after it; `None` for what is no
    /// data. An entry that has left the queue is handed on.
    queued: VecDeque<Option<(Which, u64)>>,
    /// The counts of which the writer was last told.
    announced: [u64; 2],
}

/// What to do with a frame.
enum Step {
    Pass(FromDevice),
    Nothing,
    Finish(FromDevice),
}

impl<'a> Incoming<'a> {
    fn new(
        reader: ReadHalf<Stream>,
        input: BytesMut,
        output: mpsc::Sender<FromDevice>,
        shared: &'a Shared,
        limits: Limits,
    ) -> Self {
        Self {
            reader,
            input,
            output,
            shared,
            limits,
            received: [0; 2],
            ended: [false; 2],
            acked: 0,
            exited: false,
            queued: VecDeque::with_capacity(QUEUE + 1),
            announced: [0; 2],
        }
    }

    async fn run(mut self, device: &DeviceId) {
        let mut acks = tokio::time::interval(self.limits.ack);
        acks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        match self.pump(&mut acks).await {
            Ok(()) => {}
            Err(breach) => {
                let message = breach.to_string();
                tracing::warn!(%device, cause = %message, "a device broke the protocol of a channel");
                let _ = self.shared.breach.set(message.clone());
                // A session that has let go needs no word of it.
                let _ = self.output.send(FromDevice::Closed { code: CloseCode::Protocol, message }).await;
            }
        }
        // The last acks: what the session takes from here on is its own affair.
        self.note_handed_on(false);
    }

    async fn pump(&mut self, acks: &mut tokio::time::Interval) -> Result<(), Breach> {
        loop {
            while let Some(frame) = Frame::decode(&mut self.input)? {
                match self.take(frame)? {
                    Step::Nothing => {}
                    Step::Pass(message) => {
                        if !self.hand_on(message, acks).await {
                            return self.drain().await;
                        }
                    }
                    Step::Finish(message) => {
                        self.hand_on(message, acks).await;
                        return Ok(());
                    }
                }
            }
            // Room for one batch; what is decoded has left the buffer, so this does not grow.
            self.input.reserve(BATCH);
            tokio::select! {
                read = self.reader.read_buf(&mut self.input) => match read {
                    Ok(0) => return Err(Breach::Truncated),
                    Ok(_) => {}
                    // The tunnel is lost; the session sees its queue end without a close.
                    Err(_) => return Ok(()),
                },
                () = self.output.closed() => return self.drain().await,
                _ = acks.tick() => self.note_handed_on(false),
            }
        }
    }

    /// Passes a message to the session, and goes on acknowledging while that takes time; false when the
    /// session has let go.
    async fn hand_on(&mut self, message: FromDevice, acks: &mut tokio::time::Interval) -> bool {
        let entry = match &message {
            FromDevice::Data(_) => Some((Which::Data, self.received[0])),
            FromDevice::Stderr(_) => Some((Which::Stderr, self.received[1])),
            _ => None,
        };
        let output = self.output.clone();
        let permit = loop {
            tokio::select! {
                biased;
                permit = output.reserve() => match permit {
                    Ok(permit) => break permit,
                    Err(_) => return false,
                },
                _ = acks.tick() => self.note_handed_on(false),
            }
        };
        permit.send(message);
        self.queued.push_back(entry);
        self.note_handed_on(true);
        true
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
    async fn drain(&mut self) -> Result<(), Breach> {
        let deadline = Instant::now() + self.limits.drain;
        loop {
            while let Some(frame) = Frame::decode(&mut self.input)? {
                if matches!(frame, Frame::Close { .. }) {
                    return Ok(());
                }
                self.take(frame)?;
            }
            self.input.reserve(BATCH);
            match tokio::time::timeout_at(deadline, self.reader.read_buf(&mut self.input)).await {
                Ok(Ok(1..)) => {}
                Ok(_) | Err(_) => return Ok(()),
            }
        }
    }

    fn take(&mut self, frame: Frame) -> Result<Step, Breach> {
        Ok(match frame {
            Frame::Data { stream, offset, bytes } => {
                let at = index(stream);
                self.check(stream, offset)?;
                self.received[at] += bytes.len() as u64;
                Step::Pass(match stream {
                    Which::Data => FromDevice::Data(bytes),
                    Which::Stderr => FromDevice::Stderr(bytes),
                })
            }
            Frame::Eof { stream, offset } => {
                self.check(stream, offset)?;
                self.ended[index(stream)] = true;
                Step::Pass(FromDevice::Eof(stream))
            }
            Frame::Ack { stream: Which::Data, offset } => {
                let sent = self.shared.sent.load(Ordering::Acquire);
                if offset < self.acked || offset > sent {
                    return Err(Breach::Ack { found: offset, acked: self.acked, sent });
                }
                self.acked = offset;
                Step::Nothing
            }
            Frame::Ack { stream: Which::Stderr, .. } => return Err(Breach::Unexpected("ack of stderr")),
            Frame::Exit(exit) => {
                if std::mem::replace(&mut self.exited, true) {
                    return Err(Breach::Unexpected("second exit"));
                }
                Step::Pass(FromDevice::Exit(exit))
            }
            Frame::Close { code, message } => {
                // A person will read it, and the device wrote it.
                let message = daypass_protocol::text::made_visible(&message, 1024);
                Step::Finish(FromDevice::Closed { code, message })
            }
            Frame::Open(_) => return Err(Breach::Unexpected("open")),
            Frame::Opened => return Err(Breach::Unexpected("second opened")),
            Frame::Refused(_) => return Err(Breach::Unexpected("refused")),
            Frame::Resize(_) => return Err(Breach::Unexpected("resize")),
            Frame::Signal(_) => return Err(Breach::Unexpected("signal")),
        })
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

/// From the session to the device, and the acks.
struct Outgoing<'a> {
    writer: WriteHalf<Stream>,
    shared: &'a Shared,
    offset: u64,
    /// What the device was last told is handed on.
    acked: [u64; 2],
}

impl Outgoing<'_> {
    async fn run(mut self, mut from_session: mpsc::Receiver<ToDevice>, limits: Limits) {
        let close = {
            let shared = self.shared;
            tokio::select! {
                close = self.pump(&mut from_session) => close,
                () = shared.device_done.cancelled() => None,
            }
        };
        let mut out = BytesMut::new();
        self.put_acks(&mut out);
        let close = match self.shared.breach.get() {
            Some(breach) => Some((CloseCode::Protocol, breach.clone())),
            None => close,
        };
        if let Some((code, message)) = close {
            // Encoding a close cannot fail: its message is cut to what fits.
            let _ = Frame::Close { code, message }.encode(&mut out);
        }
        // A device that does not read its stream is told by `end_session` on the control stream.
        let said = async {
            self.writer.write_all(&out).await?;
            self.writer.shutdown().await
        };
        let _ = tokio::time::timeout(limits.drain, said).await;
    }

    /// Returns what to close with, or `None` when the stream has failed.
    async fn pump(&mut self, from_session: &mut mpsc::Receiver<ToDevice>) -> Option<(CloseCode, String)> {
        let mut out = BytesMut::with_capacity(BATCH + 64);
        let mut eof = false;
        loop {
            tokio::select! {
                message = from_session.recv() => {
                    let mut next = Some(message);
                    while let Some(message) = next.take() {
                        match message {
                            Some(ToDevice::Close { code, message }) => {
                                return self.write(&mut out).await.then_some((code, message));
                            }
                            None => {
                                let done = (CloseCode::Ended, "the session has ended".to_owned());
                                return self.write(&mut out).await.then_some(done);
                            }
                            // Bytes after the end of input have nowhere to go.
                            Some(ToDevice::Data(_) | ToDevice::Eof) if eof => {}
                            Some(ToDevice::Data(mut bytes)) => while !bytes.is_empty() {
                                let part = bytes.split_to(bytes.len().min(MAX_DATA));
                                let length = part.len() as u64;
                                let frame = Frame::Data { stream: Which::Data, offset: self.offset, bytes: part };
                                if frame.encode(&mut out).is_ok() {
                                    self.offset += length;
                                    self.shared.sent.store(self.offset, Ordering::Release);
                                }
                                if out.len() >= BATCH && !self.write(&mut out).await {
                                    return None;
                                }
                            },
                            Some(ToDevice::Eof) => {
                                eof = true;
                                let _ = Frame::Eof { stream: Which::Data, offset: self.offset }.encode(&mut out);
                            }
                            Some(ToDevice::Resize(size)) => {
                                let _ = Frame::Resize(size).encode(&mut out);
                            }
                            Some(ToDevice::Signal(name)) => {
                                let _ = Frame::Signal(name).encode(&mut out);
                            }
                        }
                        if out.len() < BATCH {
                            next = from_session.try_recv().ok().map(Some);
                        }
                    }
                }
                () = self.shared.ack_due.notified() => self.put_acks(&mut out),
            }
            if !self.write(&mut out).await {
                return None;
            }
        }
    }

    async fn write(&mut self, out: &mut BytesMut) -> bool {
        if out.is_empty() {
            return true;
        }
        let written = self.writer.write_all(out).await.is_ok();
        out.clear();
        written
    }

    fn put_acks(&mut self, out: &mut BytesMut) {
        for stream in [Which::Data, Which::Stderr] {
            let at = index(stream);
            let offset = self.shared.acks[at].load(Ordering::Acquire);
            if offset > self.acked[at] {
                self.acked[at] = offset;
                let _ = Frame::Ack { stream, offset }.encode(out);
            }
        }
    }
}
