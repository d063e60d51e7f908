//! One channel: frames on a yamux stream, joined to the two queues that a session holds.
//!
//! The directions never wait for each other. What may be unacknowledged is the flow control: the device sends
//! no more while the session does not take. The stream itself is read on meanwhile, because the acks of the
//! other direction come on it; what it may bring is bounded by [`HOLD`] and then by the stream's window.
//!
//! A channel outlives its tunnel: what both directions know is kept, with the input that is not
//! acknowledged, until [`Kept`] has found another stream for it or the session is over.

use super::attention::Attention;
use super::connection::{FrameReader, FrameWriter};
use super::kept::Kept;
use super::server::Limits;
use crate::session::wire::{DeviceChannel, FromDevice, QUEUE, QUEUE_IN, ToDevice};
use bytes::BytesMut;
use daypass_protocol::ids::DeviceId;
use daypass_protocol::tunnel::Stream as Which;
use daypass_protocol::tunnel::frame::{CloseCode, DATA_HEADER, Frame, FrameError, MAX_DATA, merge};
use daypass_protocol::tunnel::open::{Received, WindowSize};
use daypass_protocol::tunnel::stream::ReadError;
use daypass_protocol::tunnel::unacked::Unacked;
use daypass_protocol::tunnel::waker::alone;
use std::collections::VecDeque;
use std::future::pending;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, MissedTickBehavior, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

/// Most bytes of input in one message of a session.
const PIECE: usize = 32 * 1024;
/// Unacknowledged bytes after which an ack is due at once.
const ACK_BYTES: u64 = 64 * 1024;
/// Input that is kept until it is acknowledged, and about as much as may be on its way.
const KEEP: usize = 1024 * 1024;
/// Output that is held while the session does not take it: more than a device has unacknowledged.
const HOLD: usize = 1536 * 1024;
/// How much later than the end of a stream the end of its tunnel may be noticed.
const SAME_END: Duration = Duration::from_secs(1);

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

/// From the device to the session.
struct Incoming<'a> {
    output: mpsc::Sender<FromDevice>,
    shared: &'a Shared,
    limits: Limits,
    /// Bytes received, and whether more may come: of data, and of stderr.
    received: [u64; 2],
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
    fn new(output: mpsc::Sender<FromDevice>, shared: &'a Shared, limits: Limits) -> Self {
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

    fn known(&self) -> Received {
        Received { data: self.received[0], stderr: self.received[1] }
    }

    async fn run(&mut self, reader: FrameReader, lost: &CancellationToken, device: &DeviceId) -> Fate {
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

/// From the session to the device, and the acks.
struct Outgoing<'a> {
    from_session: mpsc::Receiver<ToDevice>,
    shared: &'a Shared,
    limits: Limits,
    /// What the device was last told is handed on.
    acked: [u64; 2],
    /// The end of input was said, and the last size, and with what to close: said again on another stream.
    eof: bool,
    size: Option<WindowSize>,
    closing: Option<(CloseCode, String)>,
    /// This is another stream.
    again: bool,
}

impl<'a> Outgoing<'a> {
    fn new(from_session: mpsc::Receiver<ToDevice>, shared: &'a Shared, limits: Limits) -> Self {
        Self {
            from_session,
            shared,
            limits,
            acked: [0; 2],
            eof: false,
            size: None,
            closing: None,
            again: false,
        }
    }

    /// Everything that is lost when this is dropped is lost with the stream: what has to be said again on
    /// the next one is in `self`.
    async fn run(&mut self, mut writer: FrameWriter) {
        {
            let shared = self.shared;
            tokio::select! {
                // Once it has failed, the reading side finds out why.
                Ok(()) = self.pump(&mut writer) => {}
                () = shared.device_done.cancelled() => {}
            }
        }
        // Also in answer to a close: a device keeps what it has said until it knows that it was heard.
        let (code, message) = match self.shared.breach.get() {
            Some(breach) => (CloseCode::Protocol, breach.clone()),
            None => self.closing.clone().unwrap_or((CloseCode::Done, String::new())),
        };
        // A device that does not read its stream is told by `end_session` on the control stream.
        let patience = self.limits.drain;
        let said = async {
            self.say_acks(&mut writer).await?;
            writer.send(&Frame::Close { code, message }).await?;
            writer.close().await
        };
        let _ = timeout(patience, said).await;
    }

    /// Until there is nothing left to say but the close; never when the stream has failed.
    async fn pump(&mut self, writer: &mut FrameWriter) -> io::Result<()> {
        match self.pump_fallible(writer).await {
            Ok(()) => Ok(()),
            Err(_) => pending().await,
        }
    }

    async fn pump_fallible(&mut self, writer: &mut FrameWriter) -> io::Result<()> {
        if std::mem::take(&mut self.again) {
            self.say_again(writer).await?;
        }
        while self.closing.is_none() {
            let shared = self.shared;
            let has_room = shared.unacked().cost() < KEEP;
            tokio::select! {
                message = self.from_session.recv(), if has_room => {
                    let mut next = Some(message);
                    while let Some(message) = next.take() {
                        next = self.say(message, writer).await?;
                    }
                }
                // Asked again above.
                () = shared.room.notified(), if !has_room => {}
                () = shared.ack_due.notified() => self.say_acks(writer).await?,
            }
        }
        Ok(())
    }

    /// Takes a message over: from here on it is said, on whatever stream. Data takes what waits behind it into
    /// its frame; what is no data comes back.
    async fn say(
        &mut self,
        message: Option<ToDevice>,
        writer: &mut FrameWriter,
    ) -> io::Result<Option<Option<ToDevice>>> {
        let mut next = None;
        match message {
            Some(ToDevice::Close { code, message }) => self.closing = Some((code, message)),
            None => self.closing = Some((CloseCode::Ended, "the session has ended".to_owned())),
            // Bytes after the end of input have nowhere to go.
            Some(ToDevice::Data(_) | ToDevice::Eof) if self.eof => {}
            Some(ToDevice::Data(bytes)) => {
                let behind = (self.from_session.len() * PIECE).min(MAX_DATA.saturating_sub(bytes.len()));
                let mut frame = BytesMut::with_capacity(DATA_HEADER + bytes.len() + behind);
                frame.extend_from_slice(&[0; DATA_HEADER]);
                frame.extend_from_slice(&bytes);
                while frame.len() + PIECE <= DATA_HEADER + MAX_DATA
                    && let Ok(message) = self.from_session.try_recv()
                {
                    match message {
                        ToDevice::Data(bytes) => frame.extend_from_slice(&bytes),
                        other => {
                            next = Some(Some(other));
                            break;
                        }
                    }
                }
                self.shared.unacked().push(frame);
                self.say_data(writer).await?;
            }
            Some(ToDevice::Eof) => {
                self.eof = true;
                self.say_eof(writer).await?;
            }
            Some(ToDevice::Resize(size)) => {
                self.size = Some(size);
                writer.send(&Frame::Resize(size)).await?;
            }
            Some(ToDevice::Signal(name)) => writer.send(&Frame::Signal(name)).await?,
        }
        Ok(next)
    }

    async fn say_data(&self, writer: &mut FrameWriter) -> io::Result<()> {
        loop {
            writer.ready().await?;
            let Some(frame) = self.shared.unacked().next_frame() else { return Ok(()) };
            writer.begin(frame);
        }
    }

    async fn say_eof(&self, writer: &mut FrameWriter) -> io::Result<()> {
        let offset = self.shared.unacked().sent();
        writer.send(&Frame::Eof { stream: Which::Data, offset }).await
    }

    /// Sends what the device has not received, and what may have been lost beside it.
    async fn say_again(&self, writer: &mut FrameWriter) -> io::Result<()> {
        self.say_data(writer).await?;
        if let Some(size) = self.size {
            writer.send(&Frame::Resize(size)).await?;
        }
        if self.eof {
            self.say_eof(writer).await?;
        }
        Ok(())
    }

    async fn say_acks(&mut self, writer: &mut FrameWriter) -> io::Result<()> {
        for stream in [Which::Data, Which::Stderr] {
            let at = index(stream);
            let offset = self.shared.acks[at].load(Ordering::Acquire);
            if offset > self.acked[at] {
                self.acked[at] = offset;
                writer.send(&Frame::Ack { stream, offset }).await?;
            }
        }
        Ok(())
    }
}
