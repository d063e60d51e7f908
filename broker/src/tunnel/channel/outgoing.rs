//! From the session to the device, and the acks.

use super::{Shared, index};
use crate::session::wire::ToDevice;
use crate::tunnel::connection::FrameWriter;
use crate::tunnel::server::Limits;
use bytes::BytesMut;
use daypass_protocol::tunnel::Stream as Which;
use daypass_protocol::tunnel::frame::{CloseCode, DATA_HEADER, Frame, MAX_DATA};
use daypass_protocol::tunnel::open::WindowSize;
use std::future::pending;
use std::io;
use std::sync::atomic::Ordering;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Most bytes of input in one message of a session.
const PIECE: usize = 32 * 1024;
/// Input that is kept until it is acknowledged, and about as much as may be on its way.
const KEEP: usize = 1024 * 1024;

/// What is to be said, and what was.
pub struct Outgoing<'a> {
    from_session: mpsc::Receiver<ToDevice>,
    shared: &'a Shared,
    limits: Limits,
    /// What the device was last told is handed on.
    pub acked: [u64; 2],
    /// The end of input was said, and the last size, and with what to close: said again on another stream.
    eof: bool,
    size: Option<WindowSize>,
    closing: Option<(CloseCode, String)>,
    /// This is another stream.
    pub again: bool,
}

impl<'a> Outgoing<'a> {
    pub fn new(from_session: mpsc::Receiver<ToDevice>, shared: &'a Shared, limits: Limits) -> Self {
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
    pub async fn run(&mut self, mut writer: FrameWriter) {
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
