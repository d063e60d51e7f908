//! One output of a process, from the first byte that is not acknowledged.

use super::{FrameWriter, flow::Counts};
use crate::note;
use crate::session::process::Output;
use bytes::BytesMut;
use daypass_protocol::tunnel::frame::{DATA_HEADER, Frame, MAX_DATA, Stream};
use daypass_protocol::tunnel::unacked::Unacked;
use std::io;

/// Bytes that are read from a process, and sent, at once.
pub const READ: usize = MAX_DATA;
/// The same of a terminal: a person waits for the first of them.
const READ_TERMINAL: usize = 32 * 1024;
/// Room that is made for small frames together.
const BLOCK: usize = 64 * 1024;

#[derive(Debug)]
pub struct Source {
    stream: Stream,
    output: Output,
    /// What one frame takes.
    most: usize,
    /// What was read last, behind room for a frame's header: read to where it is sent from.
    filling: BytesMut,
    unacked: Unacked,
    /// The process has closed it; the broker was told.
    ended: bool,
    told: bool,
}

impl Source {
    pub fn new(stream: Stream, output: Output) -> Self {
        let most = if matches!(output, Output::Terminal(_)) { READ_TERMINAL } else { READ };
        Self {
            stream,
            output,
            most,
            filling: BytesMut::new(),
            unacked: Unacked::new(stream),
            ended: false,
            told: false,
        }
    }

    pub fn is_ended(&self) -> bool {
        self.ended
    }

    /// Memory that what is kept takes.
    pub fn kept(&self) -> usize {
        self.unacked.cost() + self.filling.len()
    }

    pub fn is_sent(&self) -> bool {
        self.filling.len() <= DATA_HEADER && self.unacked.is_sent() && (self.told || !self.ended)
    }

    pub fn forget(&mut self, acked: u64) {
        // Nothing newer than this ack is known only if it was seen before.
        let _ = self.unacked.forget(acked);
    }

    /// Goes on from what the broker has; false when it cannot have that.
    pub fn rewind(&mut self, received: u64) -> bool {
        let possible = self.unacked.rewind(received);
        if possible {
            self.told = false;
        }
        possible
    }

    /// Reads what there is, behind what was not sent yet. Nothing is lost when the call is dropped.
    pub async fn read(&mut self) {
        let whole = DATA_HEADER + self.most;
        if !self.filling.is_empty() && self.filling.len() >= whole.min(self.filling.capacity()) {
            self.seal();
        }
        if self.filling.is_empty() {
            // One whole frame for bulk; what small ones leave of a block serves the next ones.
            if self.filling.capacity() < whole.min(BLOCK / 2) {
                self.filling.reserve(whole.max(BLOCK));
            }
            self.filling.extend_from_slice(&[0; DATA_HEADER]);
        }
        let room = whole.min(self.filling.capacity()) - self.filling.len();
        let n = self.output.read(&mut self.filling, room).await.unwrap_or_else(|error| {
            note!("output of a process cannot be read: {error}");
            0
        });
        self.ended = n == 0;
    }

    /// Makes a frame of what was read.
    fn seal(&mut self) {
        self.unacked.push(self.filling.split());
    }

    /// Sends one frame, if there is one to send.
    pub async fn send(&mut self, writer: &mut FrameWriter, counts: &Counts) -> io::Result<()> {
        writer.ready().await?;
        if self.unacked.is_sent() {
            self.seal();
        }
        if let Some(frame) = self.unacked.next_frame() {
            // Counted first: an ack may come back before this call returns.
            counts.sent(self.stream, self.unacked.sent());
            writer.begin(frame);
            return writer.ready().await;
        }
        if self.ended && !self.told {
            self.told = true;
            writer.send(&Frame::Eof { stream: self.stream, offset: self.unacked.sent() }).await?;
        }
        Ok(())
    }
}
