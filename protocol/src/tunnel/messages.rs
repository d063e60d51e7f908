//! WebSocket messages as the byte stream that yamux wants.

use bytes::{Buf as _, Bytes, BytesMut};
use futures_core::Stream;
use futures_io::{AsyncRead, AsyncWrite};
use futures_sink::Sink;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// Bytes gathered into one message at most.
const BATCH: usize = 64 * 1024;

/// Reads what the messages of `R` carry. What is written is gathered, a header of twelve bytes and then its
/// payload, into messages for `W`. Between messages it holds nothing: most tunnels are idle, and there are tens
/// of thousands of them.
#[derive(Debug)]
pub struct Messages<R, W> {
    received: R,
    packet: Bytes,
    written: BytesMut,
    sink: W,
}

impl<R, W> Messages<R, W> {
    pub fn new(received: R, sink: W) -> Self {
        Self { received, packet: Bytes::new(), written: BytesMut::new(), sink }
    }
}

impl<R, W: Sink<Bytes> + Unpin> Messages<R, W> {
    /// Passes on what was gathered, once there is room.
    fn poll_pass_on(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let gone = |_: W::Error| io::Error::from(io::ErrorKind::BrokenPipe);
        if !self.written.is_empty() {
            ready!(Pin::new(&mut self.sink).poll_ready(cx)).map_err(gone)?;
            let message = std::mem::take(&mut self.written).freeze();
            Pin::new(&mut self.sink).start_send(message).map_err(gone)?;
        }
        Poll::Ready(Ok(()))
    }
}

impl<R, W> AsyncRead for Messages<R, W>
where
    R: Stream<Item = io::Result<Bytes>> + Unpin,
    W: Unpin,
{
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        while self.packet.is_empty() {
            match ready!(Pin::new(&mut self.received).poll_next(cx)) {
                Some(packet) => self.packet = packet?,
                None => return Poll::Ready(Ok(0)),
            }
        }
        let n = buffer.len().min(self.packet.len());
        buffer[..n].copy_from_slice(&self.packet[..n]);
        self.packet.advance(n);
        if self.packet.is_empty() {
            // Else an empty piece keeps its message.
            self.packet = Bytes::new();
        }
        Poll::Ready(Ok(n))
    }
}

impl<R: Unpin, W: Sink<Bytes> + Unpin> AsyncWrite for Messages<R, W> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.written.len() + bytes.len() > BATCH {
            ready!(self.poll_pass_on(cx))?;
        }
        let taken = bytes.get(..BATCH).unwrap_or(bytes);
        self.written.extend_from_slice(taken);
        Poll::Ready(Ok(taken.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_pass_on(cx))?;
        Pin::new(&mut self.sink).poll_flush(cx).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_pass_on(cx))?;
        Pin::new(&mut self.sink).poll_close(cx).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}
