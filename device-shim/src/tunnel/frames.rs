//! Frames over one yamux stream, in and out.

use bytes::BytesMut;
use daypass_protocol::tunnel::frame::{Frame, FrameError};
use std::io;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt as _};

type Stream = Compat<yamux::Stream>;

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Frame(#[from] FrameError),
}

#[derive(Debug)]
pub struct FrameReader {
    half: ReadHalf<Stream>,
    buffer: BytesMut,
}

#[derive(Debug)]
pub struct FrameWriter {
    half: WriteHalf<Stream>,
    buffer: BytesMut,
}

pub fn split(stream: yamux::Stream) -> (FrameReader, FrameWriter) {
    let (read, write) = tokio::io::split(stream.compat());
    (
        FrameReader { half: read, buffer: BytesMut::new() },
        FrameWriter { half: write, buffer: BytesMut::new() },
    )
}

impl FrameReader {
    /// The next frame; `None` when the stream ends between two. Nothing is lost when the call is dropped.
    pub async fn next(&mut self) -> Result<Option<Frame>, ReadError> {
        loop {
            if let Some(frame) = Frame::decode(&mut self.buffer)? {
                return Ok(Some(frame));
            }
            if self.half.read_buf(&mut self.buffer).await? == 0 {
                return if self.buffer.is_empty() {
                    Ok(None)
                } else {
                    Err(io::Error::from(io::ErrorKind::UnexpectedEof).into())
                };
            }
        }
    }
}

impl FrameWriter {
    /// Sends the whole frame; waits while the peer's window is full.
    pub async fn send(&mut self, frame: &Frame) -> io::Result<()> {
        // What a dropped call before left half sent has to go out first.
        self.finish().await?;
        frame.encode(&mut self.buffer).map_err(io::Error::other)?;
        self.finish().await
    }

    async fn finish(&mut self) -> io::Result<()> {
        while !self.buffer.is_empty() {
            // Takes off what was written as it goes, so that a dropped call loses nothing.
            self.half.write_buf(&mut self.buffer).await?;
        }
        self.half.flush().await
    }

    pub async fn close(&mut self) -> io::Result<()> {
        self.half.shutdown().await
    }
}
