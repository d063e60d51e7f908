//! The bytes of one channel, on the stream it has now, and kept while it has none.
//!
//! Two halves run at the same time and independently, or two full windows would stop each other: *inward*
//! takes frames and hands their bytes to the process; *outward* reads a piece of output only while less than
//! [`KEEP`] is unacknowledged. Inward goes on taking frames while the process takes nothing, because among them
//! are the acks that outward waits for: a process that echoes would otherwise stop both for ever. What the
//! broker may have unacknowledged bounds that, and [`HOLD`] whatever the broker does. So whoever does not read
//! slows its own sender, and nothing else.
//!
//! Neither half loses anything when its future is dropped: what it knows is in [`Flow`], and only what is
//! known there is acknowledged. That is what lets a channel outlive its tunnel.

use super::channel::Stop;
use super::source::{READ, Source};
use super::{FrameReader, FrameWriter};
use crate::note;
use crate::session::process::{Input, Output, Reports};
use crate::session::terminal::Terminal;
use crate::session::{Report, Tell};
use bytes::{Buf as _, Bytes};
use daypass_protocol::tunnel::frame::{CloseCode, Exit, Frame, Stream, merge};
use daypass_protocol::tunnel::hello::Binding;
use daypass_protocol::tunnel::open::Received;
use daypass_protocol::tunnel::stream::ReadError;
use daypass_protocol::tunnel::waker::alone;
use std::collections::VecDeque;
use std::future::pending;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};

/// Unacknowledged bytes that make an ack due at once, and how long fewer may wait; both within what
/// `TUNNEL.md` section 7.2 asks.
const ACK_BYTES: u64 = 64 * 1024;
const ACK_DELAY: Duration = Duration::from_millis(200);
/// Most output of a channel that is kept until it is acknowledged. What the broker's queue holds and more: with
/// less, acks would wait for data and data for acks.
const KEEP: usize = 1024 * 1024;
/// Most input of a channel that is held until the process takes it. More than a broker has unacknowledged (`TUNNEL.md`
/// section 7.2); one that sends more all the same waits at the stream's window.
const HOLD: usize = 1536 * 1024;
/// How much later than the end of a stream the end of its tunnel may be noticed.
const SAME_END: Duration = Duration::from_secs(1);

/// A stream that a channel may use: its `open` was judged.
#[derive(Debug)]
pub struct Link {
    pub reader: FrameReader,
    pub writer: FrameWriter,
    /// Its other end is dropped with the tunnel.
    pub tunnel: watch::Receiver<()>,
    /// What the broker has already, if the channel goes on here.
    pub resumed: Option<Received>,
}

/// What the two halves tell each other.
#[derive(Debug)]
pub struct Counts {
    /// Bytes of standard input that the process has taken.
    taken: watch::Sender<u64>,
    /// Bytes of output and of standard error: what was sent at most, and what is acknowledged.
    sent: [AtomicU64; 2],
    acked: watch::Sender<[u64; 2]>,
}

impl Counts {
    pub fn sent(&self, stream: Stream, count: u64) {
        self.sent[index(stream)].fetch_max(count, Ordering::Relaxed);
    }
}

fn index(stream: Stream) -> usize {
    usize::from(stream == Stream::Stderr)
}

/// A channel's bytes and how far they have come.
#[derive(Debug)]
pub struct Flow {
    /// The first tunnel's; it proves to the broker that this is the device that it knew there.
    opened_on: Binding,
    counts: Counts,
    inward: Inward,
    outward: Outward,
}

#[derive(Debug)]
struct Inward {
    input: Option<Input>,
    terminal: Option<Arc<Terminal>>,
    /// Received and not handed on yet, oldest first.
    waiting: VecDeque<Bytes>,
    held: usize,
    received: u64,
    ended: bool,
}

#[derive(Debug)]
struct Outward {
    data: Source,
    stderr: Option<Source>,
    reports: Reports,
    exit: Option<Exit>,
    /// Input that the broker was last told is handed on.
    told: u64,
}

enum Next {
    Stop(Stop),
    Link(Link),
}

impl Flow {
    pub fn new(
        opened_on: Binding,
        input: Input,
        output: Output,
        error: Option<Output>,
        terminal: Option<Arc<Terminal>>,
        reports: Reports,
    ) -> Self {
        Self {
            opened_on,
            counts: Counts {
                taken: watch::Sender::new(0),
                sent: [AtomicU64::new(0), AtomicU64::new(0)],
                acked: watch::Sender::new([0; 2]),
            },
            inward: Inward {
                input: Some(input),
                terminal,
                waiting: VecDeque::new(),
                held: 0,
                received: 0,
                ended: false,
            },
            outward: Outward {
                data: Source::new(Stream::Data, output),
                stderr: error.map(|error| Source::new(Stream::Stderr, error)),
                reports,
                exit: None,
                told: 0,
            },
        }
    }

    /// Closes the process's input and gives what is left: the monitor, to be heard to its end.
    pub fn into_reports(self) -> Reports {
        self.outward.reports
    }

    /// Carries bytes on the link, and on the next one that comes within `grace` after its tunnel was lost.
    pub async fn carry(
        &mut self,
        link: &mut Option<Link>,
        links: &mut mpsc::Receiver<Link>,
        tell: &mpsc::Sender<Tell>,
        grace: Duration,
    ) -> Stop {
        let mut until = Instant::now();
        loop {
            let next = match link {
                Some(link) => self.attached(link, links, tell).await,
                None => self.kept(links, until).await,
            };
            match next {
                // It was judged as an `open` is, so it takes the place of the one before.
                Next::Link(next) => *link = Some(next),
                Next::Stop(Stop::StreamGone(why)) if !grace.is_zero() && link.is_some() => {
                    if !tunnel_is_lost(link).await {
                        return self.finished().unwrap_or(Stop::StreamGone(why));
                    }
                    *link = None;
                    until = Instant::now() + grace;
                }
                Next::Stop(stop @ (Stop::StreamGone(_) | Stop::Closed)) => {
                    return self.finished().unwrap_or(stop);
                }
                Next::Stop(stop) => return stop,
            }
        }
    }

    async fn attached(
        &mut self,
        link: &mut Link,
        links: &mut mpsc::Receiver<Link>,
        tell: &mpsc::Sender<Tell>,
    ) -> Next {
        let Link { reader, writer, resumed, .. } = link;
        let answer = match resumed.take() {
            None => Frame::Opened,
            Some(received) if self.outward.rewind(received) => {
                self.outward.told = self.inward.received;
                Frame::Resumed { received: self.inward.received, opened_on: self.opened_on.clone() }
            }
            Some(_) => return Next::Stop(Stop::Protocol("it has output that was never sent".to_owned())),
        };
        if let Err(error) = writer.send(&answer).await {
            return Next::Stop(Stop::StreamGone(error.to_string()));
        }
        tokio::select! {
            Some(link) = links.recv() => Next::Link(link),
            stop = alone(self.outward.run(Some(writer), &self.counts)) => Next::Stop(stop),
            stop = alone(self.inward.run(reader, tell, &self.counts)) => Next::Stop(stop),
        }
    }

    /// Without a tunnel: the process goes on as far as there is room.
    async fn kept(&mut self, links: &mut mpsc::Receiver<Link>, until: Instant) -> Next {
        let hand_on = async {
            self.inward.hand_on(&self.counts).await;
            pending().await
        };
        tokio::select! {
            Some(link) = links.recv() => Next::Link(link),
            stop = self.outward.run(None, &self.counts) => Next::Stop(stop),
            () = sleep_until(until) => {
                Next::Stop(Stop::StreamGone("and the channel was not resumed in time".to_owned()))
            }
            next = hand_on => next,
        }
    }

    /// The process has ended and all was sent: then the end of the stream is no more than that.
    fn finished(&self) -> Option<Stop> {
        self.outward.exit.as_ref().filter(|_| self.outward.is_sent()).map(|exit| Stop::Finished(words(exit)))
    }
}

fn words(exit: &Exit) -> String {
    match exit {
        Exit::Status(status) => format!("exit status {status}"),
        Exit::Signal { name, .. } => format!("ended by signal {name}"),
    }
}

async fn tunnel_is_lost(link: &mut Option<Link>) -> bool {
    match link {
        // The sender is gone: an error, and that is the answer.
        Some(link) => timeout(SAME_END, link.tunnel.changed()).await.is_ok(),
        None => false,
    }
}

impl Outward {
    fn rewind(&mut self, received: Received) -> bool {
        self.data.rewind(received.data)
            && match &mut self.stderr {
                Some(stderr) => stderr.rewind(received.stderr),
                None => received.stderr == 0,
            }
    }

    fn is_sent(&self) -> bool {
        let closed = |source: &Source| source.is_ended() && source.is_sent();
        closed(&self.data) && self.stderr.as_ref().is_none_or(closed)
    }

    async fn run(&mut self, writer: Option<&mut FrameWriter>, counts: &Counts) -> Stop {
        match self.run_fallible(writer, counts).await {
            Ok(stop) => stop,
            Err(error) => Stop::StreamGone(error.to_string()),
        }
    }

    /// Output, acks, and how the process ended. Once all is said it waits for the far side to close.
    async fn run_fallible(
        &mut self,
        mut writer: Option<&mut FrameWriter>,
        counts: &Counts,
    ) -> io::Result<Stop> {
        let (mut taken, mut acks) = (counts.taken.subscribe(), counts.acked.subscribe());
        let mut ack_due = None;
        loop {
            let acked = *acks.borrow_and_update();
            self.data.forget(acked[0]);
            if let Some(stderr) = &mut self.stderr {
                stderr.forget(acked[1]);
            }
            let mut more = false;
            if let Some(writer) = &mut writer {
                self.data.send(writer, counts).await?;
                more = !self.data.is_sent();
                if let Some(stderr) = &mut self.stderr {
                    stderr.send(writer, counts).await?;
                    more |= !stderr.is_sent();
                }
                if self.is_sent()
                    && let Some(exit) = &self.exit
                {
                    writer.send(&Frame::Exit(exit.clone())).await?;
                    let message = words(exit);
                    writer.send(&Frame::Close { code: CloseCode::Done, message }).await?;
                    writer.close().await?;
                    return pending().await;
                }
            }
            let kept = self.data.kept() + self.stderr.as_ref().map_or(0, Source::kept);
            let room = kept + READ <= KEEP;
            let behind = taken.borrow_and_update().saturating_sub(self.told);
            if behind >= ACK_BYTES {
                ack_due = Some(Instant::now());
            } else if behind > 0 {
                ack_due.get_or_insert_with(|| Instant::now() + ACK_DELAY);
            }
            tokio::select! {
                () = self.data.read(), if room && !self.data.is_ended() => {}
                () = read(&mut self.stderr), if room && self.stderr.as_ref().is_some_and(|stderr| !stderr.is_ended()) => {}
                // Their senders live as long as this does.
                _ = taken.changed() => {}
                _ = acks.changed() => {}
                () = sleep_until(ack_due.unwrap_or_else(Instant::now)), if ack_due.is_some() => {
                    ack_due = None;
                    if let Some(writer) = &mut writer {
                        self.told = *taken.borrow();
                        writer.send(&Frame::Ack { stream: Stream::Data, offset: self.told }).await?;
                    }
                }
                report = self.reports.next(), if self.exit.is_none() => match report {
                    Report::Exited(status) => self.exit = Some(Exit::Status(u32::try_from(status).unwrap_or(255))),
                    Report::Signalled { name, core } => self.exit = Some(Exit::Signal { name, core_dumped: core }),
                    Report::Gone => return Ok(Stop::Failed("the process's monitor was killed".to_owned())),
                    Report::Started | Report::Failed(_) => {}
                },
                () = std::future::ready(()), if more => {}
            }
        }
    }
}

async fn read(source: &mut Option<Source>) {
    match source {
        Some(source) => source.read().await,
        None => pending().await,
    }
}

impl Inward {
    /// Hands on what was received. Nothing is lost when the call is dropped.
    async fn hand_on(&mut self, counts: &Counts) {
        while let Some(first) = self.waiting.front_mut() {
            let taken = match &mut self.input {
                Some(input) => input.write(first).await.ok(),
                None => None,
            };
            match taken {
                Some(n) => {
                    first.advance(n);
                    self.held -= n;
                    if first.is_empty() {
                        self.waiting.pop_front();
                    }
                }
                // A process that closed its input, or ended, takes nothing more; that is no error, as for
                // any pipe, and what is thrown away is still acknowledged.
                None => {
                    self.input = None;
                    self.waiting.clear();
                    self.held = 0;
                }
            }
            counts.taken.send_replace(self.received - self.held as u64);
        }
        if self.is_to_close() {
            self.input = None;
        }
    }

    /// All input was said. A terminal has no end of input; only its user can type one.
    fn is_to_close(&self) -> bool {
        self.ended && self.input.as_ref().is_some_and(|input| !matches!(input, Input::Terminal(_)))
    }

    /// Input, and what the broker says about the channel.
    async fn run(&mut self, reader: &mut FrameReader, tell: &mpsc::Sender<Tell>, counts: &Counts) -> Stop {
        loop {
            let frame = tokio::select! {
                () = self.hand_on(counts), if !self.waiting.is_empty() || self.is_to_close() => continue,
                frame = reader.next(), if self.held < HOLD => frame,
            };
            let frame = match frame {
                Ok(Some(frame)) => frame,
                Ok(None) => return Stop::StreamGone("without a close".to_owned()),
                Err(ReadError::Io(error)) => return Stop::StreamGone(error.to_string()),
                Err(ReadError::Frame(error)) => return Stop::Protocol(error.to_string()),
            };
            match frame {
                Frame::Data { stream: Stream::Data, offset, bytes }
                    if offset == self.received && !self.ended =>
                {
                    self.received += bytes.len() as u64;
                    self.held += bytes.len();
                    // An empty frame is nothing to hand on.
                    if !bytes.is_empty() && !self.waiting.back_mut().is_some_and(|last| merge(last, &bytes)) {
                        self.waiting.push_back(bytes);
                    }
                }
                // Said again on every stream that the channel goes on on.
                Frame::Eof { stream: Stream::Data, offset } if offset == self.received => self.ended = true,
                Frame::Ack { stream, offset } => {
                    let at = index(stream);
                    let sent = counts.sent[at].load(Ordering::Relaxed);
                    if offset < counts.acked.borrow()[at] || offset > sent {
                        return Stop::Protocol(format!("an ack of {offset} bytes"));
                    }
                    counts.acked.send_modify(|acked| acked[at] = offset);
                }
                Frame::Resize(size) => match &self.terminal {
                    Some(terminal) => {
                        if let Err(error) = terminal.resize(size) {
                            note!("a terminal does not take its size: {error}");
                        }
                    }
                    None => return Stop::Protocol("a resize without a terminal".to_owned()),
                },
                Frame::Signal(name) => {
                    if tell.send(Tell::Signal(name)).await.is_err() {
                        return Stop::Failed("the process's monitor is gone".to_owned());
                    }
                }
                Frame::Close { .. } => return Stop::Closed,
                Frame::Data { offset, .. } | Frame::Eof { offset, .. } => {
                    let received = self.received;
                    return Stop::Protocol(format!("input at offset {offset}, and {received} were received"));
                }
                Frame::Open(_)
                | Frame::Opened
                | Frame::Resumed { .. }
                | Frame::Refused(_)
                | Frame::Exit(_) => {
                    return Stop::Protocol("a frame that does not belong here".to_owned());
                }
            }
        }
    }
}
