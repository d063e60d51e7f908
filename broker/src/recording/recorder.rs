//! What a session holds: without a [`Recorder`] there is nothing to write to.

use super::event::{Command as CommandText, SessionEvent};
use super::output::OutputStream;
use super::screen::Screens;
use super::seal::{Pending, Sealer};
use super::sftp::{Passed, Side};
use super::tap::{NotPassed, Tap};
use super::writer::{Piece, Start};
use super::{RecordError, SessionFacts};
use bytes::Bytes;
use daypass_protocol::api::{EndReason, RecordingKind};
use daypass_protocol::channel::ChannelKind;
use daypass_protocol::time::Timestamp;
use daypass_protocol::tunnel::frame::Exit;
use daypass_protocol::tunnel::open::{Pty, WindowSize};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The recorder of one session. Everything it is told is with the kernel when the call returns, and in
/// the audit log, by its hash, a little later. After one failure every call fails.
#[derive(Debug)]
pub struct Recorder {
    sealer: Arc<Sealer>,
    screens: Screens,
    /// Left without `close`, the session was dropped half-way; its recordings say so.
    closed: bool,
}

/// What a channel is, before it carries a byte.
#[derive(Clone, Debug)]
pub struct ChannelFacts {
    pub kind: ChannelKind,
    pub pty: Option<Pty>,
    pub command: Option<Vec<u8>>,
    /// Where a forward leads.
    pub target: Option<String>,
}

impl Recorder {
    pub(super) async fn begin(
        sealer: Arc<Sealer>,
        screens: Screens,
        facts: &SessionFacts,
    ) -> Result<Self, RecordError> {
        sealer.open(0, RecordingKind::Events, None, "events.ndjson", Start::Events).await?;
        let recorder = Self { sealer, screens, closed: false };
        recorder
            .event(&SessionEvent::SessionOpened {
                session: facts.session.to_string(),
                request: facts.request.to_string(),
                person: facts.person.to_string(),
                email: facts.email.clone(),
                device: facts.device.to_string(),
                login: facts.login.to_string(),
                client_address: facts.client_address.clone(),
            })
            .await?;
        Ok(recorder)
    }

    /// The terminals of this session, for whoever watches it.
    pub fn screens(&self) -> Screens {
        self.screens.clone()
    }

    /// Writes one line of the events file.
    pub async fn event(&self, event: &SessionEvent) -> Result<(), RecordError> {
        self.sealer.append(0, Piece::Event(Box::new(event.clone()))).await
    }

    /// Starts the recording of a channel: an asciicast where there is a PTY, nothing but events of a forward
    /// and of file operations over SFTP, the exact output otherwise.
    pub async fn channel(&self, number: u32, facts: ChannelFacts) -> Result<ChannelRecorder, RecordError> {
        if let Some(target) = facts.target {
            let opened = SessionEvent::ForwardOpened { channel: number, target: target.clone() };
            self.event(&opened).await?;
            let forward = Forward { target, opened_at: self.sealer.now() };
            return Ok(ChannelRecorder::new(self.sealer.clone(), number, Own::Forward(forward)));
        }
        let id = i64::from(number) + 1;
        let start = match (facts.kind, &facts.pty) {
            (ChannelKind::Sftp, _) => None,
            (_, Some(pty)) => Some((
                RecordingKind::Asciicast,
                format!("channel-{number}.cast"),
                Start::Asciicast { pty: pty.clone(), at: self.sealer.now() },
            )),
            (_, None) => Some((RecordingKind::Output, format!("channel-{number}.output"), Start::Output)),
        };
        let (own, recording) = match start {
            Some((kind, file, start)) => {
                self.sealer.open(id, kind, Some(number), &file, start).await?;
                (Own::File(id), Some(number.saturating_add(1)))
            }
            None => (Own::Files(Box::new(Tap::new(number))), None),
        };
        self.event(&SessionEvent::ChannelOpened {
            channel: number,
            kind: facts.kind,
            command: facts.command.as_deref().map(CommandText::from),
            pty: facts.pty,
            recording,
        })
        .await?;
        Ok(ChannelRecorder::new(self.sealer.clone(), number, own))
    }

    /// The failure, as soon as there is one; also when no byte flows (a seal that failed). Never returns
    /// otherwise.
    pub fn failed(&self) -> impl Future<Output = RecordError> + Send + 'static {
        let sealer = self.sealer.clone();
        async move { sealer.failed().await }
    }

    /// Writes the end, seals and closes what is still open; compression follows by itself.
    pub async fn close(mut self, reason: EndReason, detail: Option<String>) -> Result<(), RecordError> {
        self.closed = true;
        let end = self.event(&SessionEvent::SessionEnded { reason, detail }).await;
        match end {
            Ok(()) => self.sealer.close(None, true).await,
            Err(error) => {
                self.sealer.interrupt(&error.to_string()).await;
                Err(error)
            }
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        if !self.closed {
            self.sealer.abandon();
        }
    }
}

/// The recorder of one channel.
#[derive(Debug)]
pub struct ChannelRecorder {
    sealer: Arc<Sealer>,
    number: u32,
    own: Own,
    input: AtomicU64,
    stdout: AtomicU64,
    stderr: AtomicU64,
}

/// What a channel has of its own besides its events.
#[derive(Debug)]
enum Own {
    /// The recording of its output.
    File(i64),
    Forward(Forward),
    /// What was done to files, which stands among the session's events.
    Files(Box<Tap>),
}

#[derive(Debug)]
struct Forward {
    target: String,
    opened_at: Timestamp,
}

impl ChannelRecorder {
    fn new(sealer: Arc<Sealer>, number: u32, own: Own) -> Self {
        let [input, stdout, stderr] = [0; 3].map(AtomicU64::new);
        Self { sealer, number, own, input, stdout, stderr }
    }

    /// Takes what the engineer sent; what comes back may be delivered, and nothing else.
    pub async fn pass_in(&self, bytes: Bytes) -> Result<Passed, NotPassed> {
        self.input(bytes.len())?;
        let Own::Files(tap) = &self.own else { return Ok(Passed::whole(bytes)) };
        let (passed, mut pending) = tap.take(&self.sealer, Side::Client, bytes).await?;
        pending.recorded().await?;
        Ok(passed)
    }

    /// Takes what the device wrote; what comes back may be delivered after [`Pending::recorded`], and
    /// nothing else.
    pub async fn pass_out(&self, bytes: Bytes) -> Result<(Passed, Pending), NotPassed> {
        let Own::Files(tap) = &self.own else {
            let pending = self.stdout(&bytes).await?;
            return Ok((Passed::whole(bytes), pending));
        };
        self.stdout.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        tap.take(&self.sealer, Side::Device, bytes).await
    }

    /// Starts to record; deliver the bytes only after [`Pending::recorded`]. Pieces are written in the order
    /// of these calls, several may be on their way at once.
    pub async fn stdout(&self, bytes: &Bytes) -> Result<Pending, RecordError> {
        self.output(OutputStream::Stdout, &self.stdout, bytes).await
    }

    /// As [`ChannelRecorder::stdout`].
    pub async fn stderr(&self, bytes: &Bytes) -> Result<Pending, RecordError> {
        self.output(OutputStream::Stderr, &self.stderr, bytes).await
    }

    async fn output(
        &self,
        stream: OutputStream,
        count: &AtomicU64,
        bytes: &Bytes,
    ) -> Result<Pending, RecordError> {
        let pending = match &self.own {
            Own::File(id) => self.sealer.submit(*id, Piece::Output(stream, bytes.clone())).await?,
            // Counted; and delivered only while the recorder could still write down that it was.
            Own::Forward(_) => self.sealer.nothing()?,
            Own::Files(_) => {
                let output = CommandText::from(&bytes[..]);
                let event = SessionEvent::SftpStderr { channel: self.number, output };
                self.sealer.submit(0, Piece::Events(vec![event])).await?
            }
        };
        count.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(pending)
    }

    /// Counts input; it has passwords in it and is never stored. Deliver it only when this is `Ok`:
    /// nothing reaches a device that could answer unrecorded.
    pub fn input(&self, bytes: usize) -> Result<(), RecordError> {
        self.sealer.check()?;
        self.input.fetch_add(bytes as u64, Ordering::Relaxed);
        Ok(())
    }

    pub async fn resize(&self, size: WindowSize) -> Result<(), RecordError> {
        let (cols, rows) = (size.cols, size.rows);
        if let Own::File(id) = &self.own {
            self.sealer.append(*id, Piece::Resize { cols, rows }).await?;
        }
        let event = SessionEvent::Resized { channel: self.number, cols, rows };
        self.sealer.append(0, Piece::Event(Box::new(event))).await
    }

    /// The end of a stream is on record with the channel's own; this keeps it in its place behind the bytes.
    pub fn eof(&self) -> Result<Pending, RecordError> {
        self.sealer.nothing()
    }

    pub async fn exit(&self, exit: &Exit) -> Result<Pending, RecordError> {
        self.sealer.submit(0, Piece::Event(Box::new(SessionEvent::exited(self.number, exit)))).await
    }

    /// Ends and seals this channel's recording. A channel that is dropped instead is closed with its
    /// session.
    pub async fn close(self) -> Result<(), RecordError> {
        let [input, stdout, stderr] =
            [&self.input, &self.stdout, &self.stderr].map(|count| count.load(Ordering::Relaxed));
        let file = match self.own {
            Own::Forward(forward) => {
                let lasted = forward.opened_at.until(self.sealer.now());
                let event = SessionEvent::ForwardClosed {
                    channel: self.number,
                    target: forward.target,
                    duration_ms: u64::try_from(lasted.as_millis()).unwrap_or(u64::MAX),
                    bytes_to_device: input,
                    bytes_from_device: stdout,
                };
                return self.sealer.append(0, Piece::Event(Box::new(event))).await;
            }
            Own::Files(tap) => {
                tap.finish(&self.sealer).await?;
                None
            }
            Own::File(id) => Some(id),
        };
        let event = SessionEvent::ChannelClosed {
            channel: self.number,
            input_bytes: input,
            stdout_bytes: stdout,
            stderr_bytes: stderr,
        };
        self.sealer.append(0, Piece::Event(Box::new(event))).await?;
        match file {
            Some(id) => self.sealer.close(Some(id), false).await,
            None => Ok(()),
        }
    }
}
