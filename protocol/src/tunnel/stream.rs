//! Frames on one stream of the tunnel, in and out, without a copy where that can be.
//!
//! Of a yamux stream this needs no more than that it is a stream of packets and can be written to, so neither
//! yamux nor a runtime is named here.

use super::frame::{Frame, FrameError, length};
use bytes::{Buf as _, Bytes, BytesMut};
use futures_core::Stream;
use futures_io::AsyncWrite;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::ready;

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// Frames out of packets.
#[derive(Debug, Default)]
pub struct Frames {
    packet: Bytes,
    /// Of the packet when it came.
    size: usize,
    /// A frame of which more is to come; the packet is empty then.
    partial: BytesMut,
}

impl Frames {
    /// Puts in the packet that comes next, once [`Self::take`] had nothing more.
    pub fn push(&mut self, packet: Bytes) {
        if self.packet.is_empty() {
            self.size = packet.len();
            self.packet = packet;
        } else {
            let mut both = BytesMut::from(&self.packet[..]);
            both.extend_from_slice(&packet);
            self.size = both.len();
            self.packet = both.freeze();
        }
    }

    /// Whether a frame is cut off here.
    pub fn is_partial(&self) -> bool {
        !self.partial.is_empty() || !self.packet.is_empty()
    }

    /// The next frame; `None` until there is more. An error is final: the stream has to be given up.
    pub fn take(&mut self) -> Result<Option<Frame>, FrameError> {
        if !self.partial.is_empty() {
            while let Some(missing) = missing(&self.partial)? {
                if self.packet.is_empty() {
                    return Ok(None);
                }
                let more = self.packet.split_to(missing.min(self.packet.len()));
                self.partial.extend_from_slice(&more);
            }
            return Frame::decode(&mut self.partial);
        }
        match length(&self.packet)? {
            Some(length) if length <= self.packet.len() => {
                let mut frame = self.packet.split_to(length);
                // What is kept of it keeps the whole packet. A peer decides how large that is, so it may not be
                // much more than the frame, which is what is counted.
                if frame.len() < self.size - self.size / 8 {
                    frame = Bytes::copy_from_slice(&frame);
                }
                frame.advance(4);
                Frame::read(frame).map(Some)
            }
            _ => {
                self.partial.extend_from_slice(&std::mem::take(&mut self.packet));
                Ok(None)
            }
        }
    }
}

/// Bytes that are missing until the frame at the front is whole, or until its length is known.
fn missing(partial: &[u8]) -> Result<Option<usize>, FrameError> {
    let whole = length(partial)?.unwrap_or(4);
    Ok(whole.checked_sub(partial.len()).filter(|missing| *missing > 0))
}

#[derive(Debug)]
pub struct FrameReader<S> {
    stream: Arc<Mutex<S>>,
    frames: Frames,
}

#[derive(Debug)]
pub struct FrameWriter<S> {
    stream: Arc<Mutex<S>>,
    /// Of the frame that was begun, what is not written.
    begun: Bytes,
}

/// Splits a stream of packets that can be written to, such as yamux's. It ends when both halves are dropped.
pub fn split<S>(stream: S) -> (FrameReader<S>, FrameWriter<S>) {
    let stream = Arc::new(Mutex::new(stream));
    (
        FrameReader { stream: stream.clone(), frames: Frames::default() },
        FrameWriter { stream, begun: Bytes::new() },
    )
}

fn lock<S>(stream: &Mutex<S>) -> MutexGuard<'_, S> {
    stream.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<S, P> FrameReader<S>
where
    S: Stream<Item = io::Result<P>> + Unpin,
    P: AsRef<[u8]> + Send + 'static,
{
    /// The next frame that has arrived already.
    pub fn arrived(&mut self) -> Result<Option<Frame>, FrameError> {
        self.frames.take()
    }

    /// The next packet as it came, on a stream that carries no frames; `None` at its end. Nothing is lost when the
    /// call is dropped.
    pub async fn packet(&mut self) -> io::Result<Option<Bytes>> {
        let packet = poll_fn(|cx| Pin::new(&mut *lock(&self.stream)).poll_next(cx)).await;
        packet.transpose().map(|packet| packet.map(Bytes::from_owner))
    }

    /// The next frame; `None` when the stream ends between two. Nothing is lost when the call is dropped.
    pub async fn next(&mut self) -> Result<Option<Frame>, ReadError> {
        loop {
            if let Some(frame) = self.frames.take()? {
                return Ok(Some(frame));
            }
            match self.packet().await? {
                Some(packet) => self.frames.push(packet),
                None if self.frames.is_partial() => {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                }
                None => return Ok(None),
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> FrameWriter<S> {
    /// Sends the whole frame; waits while the peer's window is full.
    pub async fn send(&mut self, frame: &Frame) -> io::Result<()> {
        self.ready().await?;
        let mut wire = BytesMut::new();
        frame.encode(&mut wire).map_err(io::Error::other)?;
        self.begin(wire.freeze());
        self.ready().await
    }

    /// Waits until what was begun is sent. A call that is dropped has lost nothing: the next one goes on.
    pub async fn ready(&mut self) -> io::Result<()> {
        while !self.begun.is_empty() {
            let n = poll_fn(|cx| Pin::new(&mut *lock(&self.stream)).poll_write(cx, &self.begun)).await?;
            if n == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.begun.advance(n);
        }
        Ok(())
    }

    /// Begins to send a frame as it is on the wire, behind what [`Self::ready`] has waited for.
    pub fn begin(&mut self, frame: Bytes) {
        if self.begun.is_empty() {
            self.begun = frame;
        } else {
            let mut both = BytesMut::from(&self.begun[..]);
            both.extend_from_slice(&frame);
            self.begun = both.freeze();
        }
    }

    pub async fn close(&mut self) -> io::Result<()> {
        self.ready().await?;
        poll_fn(|cx| {
            let mut stream = lock(&self.stream);
            ready!(Pin::new(&mut *stream).poll_flush(cx))?;
            Pin::new(&mut *stream).poll_close(cx)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::super::Stream as Which;
    use super::*;
    use proptest::prelude::*;

    fn frames() -> (Vec<Frame>, Bytes) {
        let frames = vec![
            Frame::Opened,
            Frame::Data { stream: Which::Data, offset: 0, bytes: Bytes::from(vec![1; 5000]) },
            Frame::Ack { stream: Which::Data, offset: 9 },
            Frame::Data { stream: Which::Stderr, offset: 0, bytes: Bytes::from_static(b"e") },
            Frame::Data { stream: Which::Data, offset: 5000, bytes: Bytes::from(vec![2; 3]) },
            Frame::Signal("INT".into()),
        ];
        let mut wire = BytesMut::new();
        for frame in &frames {
            frame.encode(&mut wire).unwrap();
        }
        (frames, wire.freeze())
    }

    fn read(wire: &Bytes, cuts: &[usize]) -> Vec<Frame> {
        let (mut reader, mut rest, mut got) = (Frames::default(), wire.clone(), Vec::new());
        for cut in cuts.iter().copied().cycle() {
            while let Some(frame) = reader.take().unwrap() {
                got.push(frame);
            }
            if rest.is_empty() {
                break;
            }
            reader.push(rest.split_to(cut.clamp(1, rest.len())));
        }
        assert!(!reader.is_partial());
        got
    }

    proptest! {
        #[test]
        fn frames_are_the_same_however_the_packets_are_cut(cuts in proptest::collection::vec(1usize..6000, 1..8)) {
            let (frames, wire) = frames();
            prop_assert_eq!(read(&wire, &cuts), frames);
        }
    }

    #[test]
    fn a_frame_that_is_all_but_an_eighth_of_its_packet_is_not_copied_and_a_smaller_one_does_not_keep_it() {
        let bytes = |length: usize| Frame::Data {
            stream: Which::Data,
            offset: 0,
            bytes: Bytes::from(vec![7; length]),
        };
        for (first, second, shared) in [(900, 10, [true, false]), (800, 200, [false, false])] {
            let mut wire = BytesMut::new();
            bytes(first).encode(&mut wire).unwrap();
            bytes(second).encode(&mut wire).unwrap();
            let packet = wire.freeze();
            let within = packet.as_ptr_range();
            let mut reader = Frames::default();
            reader.push(packet);
            for shared in shared {
                let Some(Frame::Data { bytes, .. }) = reader.take().unwrap() else { panic!("a data frame") };
                assert_eq!(within.contains(&bytes.as_ptr()), shared);
            }
        }
    }

    #[test]
    fn an_oversized_frame_is_refused_at_its_length() {
        for cut in [1, 4] {
            let (mut reader, mut wire) = (Frames::default(), Bytes::from_static(&[0, 2, 0, 10, 4]));
            let mut refused = false;
            while !wire.is_empty() && !refused {
                reader.push(wire.split_to(cut.min(wire.len())));
                refused = matches!(reader.take(), Err(FrameError::TooLarge(131_082)));
            }
            assert!(refused);
        }
    }
}
