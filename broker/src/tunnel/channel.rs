//! One channel: frames on a yamux stream, joined to the two queues that a session holds.
//!
//! The directions never wait for each other. What may be unacknowledged is the flow control: the device sends
//! no more while the session does not take. The stream itself is read on meanwhile, because the acks of the
//! other direction come on it; what it may bring is bounded by [`HOLD`] and then by the stream's window.
//!
//! A channel outlives its tunnel: what both directions know is kept, with the input that is not
//! acknowledged, until [`Kept`] has found another stream for it or the session is over.

use super::attention::Attention;
use super::connection::Stream;
use super::kept::Kept;
use super::server::Limits;
use crate::session::wire::{DeviceChannel, FromDevice, QUEUE, ToDevice};
use bytes::{Bytes, BytesMut};
use daypass_protocol::ids::DeviceId;
use daypass_protocol::tunnel::Stream as Which;
use daypass_protocol::tunnel::frame::{CloseCode, Frame, FrameError, MAX_DATA, merge};
use daypass_protocol::tunnel::open::{Received, WindowSize};
use std::collections::VecDeque;
use std::future::pending;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, MissedTickBehavior, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

/// Bytes read from the stream at once, and gathered before they are written to it.
const BATCH: usize = 64 * 1024;
/// Unacknowledged bytes after which an ack is due at once.
const ACK_BYTES: u64 = 64 * 1024;
/// Input that is kept until it is acknowledged, and about as much as may be on its way.
const KEEP: usize = 512 * 1024;
/// Output that is held while the session does not take it: more than a device has unacknowledged.
const HOLD: usize = 1024 * 1024;
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

/// A stream of the tunnel on which a channel runs, and what came behind the device's answer.
pub(super) struct Link {
    pub stream: Stream,
    pub input: BytesMut,
    /// The channel's place among those of the tunnel.
    pub room: Attention,
    /// Cancelled with the tunnel.
    pub lost: CancellationToken,
    pub limits: Limits,
}

/// What was sent to the process and is not acknowledged yet.
#[derive(Debug, Default)]
struct Unacked {
    /// How many bytes the device has acknowledged.
    acked: u64,
    bytes: VecDeque<u8>,
}

impl Unacked {
    fn sent(&self) -> u64 {
        self.acked + self.bytes.len() as u64
    }

    /// False for what was not sent, or was acknowledged before.
    fn forget(&mut self, acked: u64) -> bool {
        if !(self.acked..=self.sent()).contains(&acked) {
            return false;
        }
        let n = usize::try_from(acked - self.acked).unwrap_or(usize::MAX);
        self.bytes.drain(..n.min(self.bytes.len()));
        self.acked = acked;
        true
    }
}

/// What the two directions know of each other.
#[derive(Debug, Default)]
struct Shared {
    unacked: Mutex<Unacked>,
    /// Something was acknowledged.
    room: Notify,
    /// Counts to acknowledge next: of data, and of stderr.
    acks: [AtomicU64; 2],
    ack_due: Notify,
    /// The device's direction is over: nothing more needs to be said to it.
    device_done: CancellationToken,
    /// The device broke the protocol, and this is what to tell it.
    breach: std::sync::OnceLock<String>,
}

impl Shared {
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
    let (to_device, from_session) = mpsc::channel(QUEUE);
    let (to_session, from_device) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        let shared = Shared::default();
        let mut incoming = Incoming::new(to_session, &shared, link.limits);
        let mut outgoing = Outgoing::new(from_session, &shared, link.limits);
        let mut link = link;
        while run(link, &mut incoming, &mut outgoing, &device).await == Fate::Lost {
            let Some(kept) = &kept else { return };
            let Some((next, received)) = kept.resume(incoming.known()).await else { return };
            // The device says how much of its input it has. It cannot have what was never sent.
            if !shared.unacked().forget(received) {
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
    let Link { stream, input, room: _room, lost, .. } = link;
    let (reader, writer) = tokio::io::split(stream);
    let shared = incoming.shared;
    let incoming = async {
        let fate = incoming.run(reader, input, &lost, device).await;
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
    tokio::join!(incoming, outgoing).0
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
    reader: ReadHalf<Stream>,
    bytes: BytesMut,
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

    async fn run(
        &mut self,
        reader: ReadHalf<Stream>,
        input: BytesMut,
        lost: &CancellationToken,
        device: &DeviceId,
    ) -> Fate {
        let mut acks = tokio::time::interval(self.limits.ack);
        acks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.exited_here = false;
        let fate = match self.pump(Input { reader, bytes: input, lost }, &mut acks).await {
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
            if room && let Some(frame) = Frame::decode(&mut input.bytes)? {
                if let Some(message) = self.take(frame)? {
                    self.pass(message);
                }
                continue;
            }
            // Room for one batch; what is decoded has left the buffer, so this does not grow.
            input.bytes.reserve(BATCH);
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
                read = input.reader.read_buf(&mut input.bytes), if room => match read {
                    Ok(1..) => {}
                    // With the tunnel, or alone?
                    Ok(0) | Err(_) => return match timeout(SAME_END, input.lost.cancelled()).await {
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
            while let Some(frame) = Frame::decode(&mut input.bytes)? {
                if matches!(frame, Frame::Close { .. }) {
                    return Ok(Fate::Over);
                }
                self.take(frame)?;
            }
            input.bytes.reserve(BATCH);
            tokio::select! {
                read = timeout_at(deadline, input.reader.read_buf(&mut input.bytes)) => match read {
                    Ok(Ok(1..)) => {}
                    Ok(_) => return Ok(match timeout(SAME_END, input.lost.cancelled()).await {
                        Ok(()) => Fate::Lost,
                        Err(_) => Fate::Over,
                    }),
                    Err(_) => return Ok(Fate::Over),
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
                    return Err(Breach::Ack { found: offset, acked: unacked.acked, sent: unacked.sent() });
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
    async fn run(&mut self, mut writer: WriteHalf<Stream>) {
        {
            let shared = self.shared;
            tokio::select! {
                () = self.pump(&mut writer) => {}
                () = shared.device_done.cancelled() => {}
            }
        }
        let mut out = BytesMut::new();
        self.put_acks(&mut out);
        // Also in answer to a close: a device keeps what it has said until it knows that it was heard.
        let (code, message) = match self.shared.breach.get() {
            Some(breach) => (CloseCode::Protocol, breach.clone()),
            None => self.closing.clone().unwrap_or((CloseCode::Done, String::new())),
        };
        // Encoding a close cannot fail: its message is cut to what fits.
        let _ = Frame::Close { code, message }.encode(&mut out);
        // A device that does not read its stream is told by `end_session` on the control stream.
        let said = async {
            writer.write_all(&out).await?;
            writer.shutdown().await
        };
        let _ = timeout(self.limits.drain, said).await;
    }

    /// Until there is nothing left to say but the close, or the stream has failed.
    async fn pump(&mut self, writer: &mut WriteHalf<Stream>) {
        let mut out = BytesMut::with_capacity(BATCH + 64);
        if std::mem::take(&mut self.again) && !self.say_again(writer, &mut out).await {
            return pending().await;
        }
        while self.closing.is_none() {
            let shared = self.shared;
            let has_room = shared.unacked().bytes.len() < KEEP;
            tokio::select! {
                message = self.from_session.recv(), if has_room => {
                    let mut next = Some(message);
                    while let Some(message) = next.take() {
                        self.put(message, &mut out);
                        if self.closing.is_none() && out.len() < BATCH {
                            next = self.from_session.try_recv().ok().map(Some);
                        }
                    }
                }
                // Asked again above.
                () = shared.room.notified(), if !has_room => {}
                () = shared.ack_due.notified() => self.put_acks(&mut out),
            }
            if !write(writer, &mut out).await {
                // The reading side finds out why.
                return pending().await;
            }
        }
    }

    /// Takes a message over: from here on it is said, on whatever stream.
    fn put(&mut self, message: Option<ToDevice>, out: &mut BytesMut) {
        match message {
            Some(ToDevice::Close { code, message }) => self.closing = Some((code, message)),
            None => self.closing = Some((CloseCode::Ended, "the session has ended".to_owned())),
            // Bytes after the end of input have nowhere to go.
            Some(ToDevice::Data(_) | ToDevice::Eof) if self.eof => {}
            Some(ToDevice::Data(mut bytes)) => {
                let mut unacked = self.shared.unacked();
                while !bytes.is_empty() {
                    let part = bytes.split_to(bytes.len().min(MAX_DATA));
                    let offset = unacked.sent();
                    unacked.bytes.extend(&part);
                    let _ = Frame::Data { stream: Which::Data, offset, bytes: part }.encode(out);
                }
            }
            Some(ToDevice::Eof) => {
                self.eof = true;
                let offset = self.shared.unacked().sent();
                let _ = Frame::Eof { stream: Which::Data, offset }.encode(out);
            }
            Some(ToDevice::Resize(size)) => {
                self.size = Some(size);
                let _ = Frame::Resize(size).encode(out);
            }
            Some(ToDevice::Signal(name)) => {
                let _ = Frame::Signal(name).encode(out);
            }
        }
    }

    /// Sends what the device has not received, and what may have been lost beside it.
    async fn say_again(&self, writer: &mut WriteHalf<Stream>, out: &mut BytesMut) -> bool {
        let (mut offset, mut bytes) = {
            let unacked = self.shared.unacked();
            (unacked.acked, Bytes::from(unacked.bytes.iter().copied().collect::<Vec<_>>()))
        };
        while !bytes.is_empty() {
            let part = bytes.split_to(bytes.len().min(MAX_DATA));
            let length = part.len() as u64;
            let _ = Frame::Data { stream: Which::Data, offset, bytes: part }.encode(out);
            offset += length;
            if out.len() >= BATCH && !write(writer, out).await {
                return false;
            }
        }
        if let Some(size) = self.size {
            let _ = Frame::Resize(size).encode(out);
        }
        if self.eof {
            let _ = Frame::Eof { stream: Which::Data, offset }.encode(out);
        }
        write(writer, out).await
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

async fn write(writer: &mut WriteHalf<Stream>, out: &mut BytesMut) -> bool {
    if out.is_empty() {
        return true;
    }
    let written = writer.write_all(out).await.is_ok();
    out.clear();
    written
}
