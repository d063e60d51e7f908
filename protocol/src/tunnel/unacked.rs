//! What was sent on one stream of a channel and is not acknowledged, and what is still to be sent: kept as the
//! frames themselves, so that a byte is copied once however often it is sent. `TUNNEL.md` section 7.2.

use super::frame::{DATA_HEADER, MAX_DATA, Stream, put_data_header};
use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;

/// What a frame costs beside its bytes. Counted, so that many small ones are bounded as few large ones are.
const OVERHEAD: usize = 64;

#[derive(Debug)]
pub struct Unacked {
    stream: Stream,
    /// Oldest first, without a gap.
    frames: VecDeque<Kept>,
    /// Of `frames`, the first that is not sent.
    next: usize,
    acked: u64,
    /// Bytes that were ever put in.
    end: u64,
    cost: usize,
}

#[derive(Debug)]
struct Kept {
    /// Of its first byte.
    offset: u64,
    /// As it is sent.
    frame: Bytes,
}

impl Kept {
    fn len(&self) -> u64 {
        (self.frame.len() - DATA_HEADER) as u64
    }

    fn cost(&self) -> usize {
        self.frame.len() + OVERHEAD
    }
}

impl Unacked {
    pub fn new(stream: Stream) -> Self {
        Self { stream, frames: VecDeque::new(), next: 0, acked: 0, end: 0, cost: 0 }
    }

    /// Bytes that the other end has acknowledged.
    pub fn acked(&self) -> u64 {
        self.acked
    }

    /// Bytes that were sent, as far as is known: acknowledged or not.
    pub fn sent(&self) -> u64 {
        self.frames.get(self.next).map_or(self.end, |next| next.offset)
    }

    /// Memory that is taken, in bytes.
    pub fn cost(&self) -> usize {
        self.cost
    }

    /// Whether everything was sent.
    pub fn is_sent(&self) -> bool {
        self.next == self.frames.len()
    }

    /// Puts in a copy of `bytes`, to be sent.
    pub fn extend(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(MAX_DATA) {
            let mut frame = BytesMut::with_capacity(DATA_HEADER + part.len());
            frame.extend_from_slice(&[0; DATA_HEADER]);
            frame.extend_from_slice(part);
            self.push(frame);
        }
    }

    /// Puts in the bytes behind the first [`DATA_HEADER`] ones of `frame`, at most [`MAX_DATA`] of them, without
    /// a copy.
    pub fn push(&mut self, mut frame: BytesMut) {
        let Some(length) = frame.len().checked_sub(DATA_HEADER).filter(|length| *length > 0) else { return };
        if length > MAX_DATA {
            return self.extend(&frame[DATA_HEADER..]);
        }
        put_data_header(&mut frame, self.stream, self.end);
        let kept = Kept { offset: self.end, frame: frame.freeze() };
        self.end += length as u64;
        self.cost += kept.cost();
        self.frames.push_back(kept);
    }

    /// The next frame to send; from here on it counts as sent.
    pub fn next_frame(&mut self) -> Option<Bytes> {
        let frame = self.frames.get(self.next)?.frame.clone();
        self.next += 1;
        Some(frame)
    }

    /// Forgets what is acknowledged. False for what was not sent, or was acknowledged before.
    #[must_use]
    pub fn forget(&mut self, acked: u64) -> bool {
        if !(self.acked..=self.sent()).contains(&acked) {
            return false;
        }
        self.acked = acked;
        while let Some(first) = self.frames.front()
            && first.offset + first.len() <= acked
        {
            self.cost -= first.cost();
            self.frames.pop_front();
            self.next -= 1;
        }
        // Half a frame: nobody acknowledges so, but nothing forbids it.
        if let Some(first) = self.frames.front_mut()
            && let Ok(known @ 1..) = usize::try_from(acked.saturating_sub(first.offset))
        {
            self.cost -= first.cost();
            let mut frame = BytesMut::from(&first.frame[known..]);
            put_data_header(&mut frame, self.stream, acked);
            *first = Kept { offset: acked, frame: frame.freeze() };
            self.cost += first.cost();
        }
        true
    }

    /// Everything behind `received` is to be sent again. False when the other end cannot have that.
    #[must_use]
    pub fn rewind(&mut self, received: u64) -> bool {
        let possible = self.forget(received);
        if possible {
            self.next = 0;
        }
        possible
    }
}

#[cfg(test)]
mod tests {
    use super::super::Frame;
    use super::*;
    use proptest::prelude::*;

    /// What the frames say, from their first offset on.
    fn said(unacked: &mut Unacked) -> Option<(u64, Vec<u8>)> {
        let mut said: Option<(u64, Vec<u8>)> = None;
        while let Some(frame) = unacked.next_frame() {
            let mut wire = BytesMut::from(&frame[..]);
            let Some(Frame::Data { stream: Stream::Stderr, offset, bytes }) =
                Frame::decode(&mut wire).unwrap()
            else {
                panic!("not a data frame")
            };
            let (start, all) = said.get_or_insert((offset, Vec::new()));
            assert_eq!(offset, *start + all.len() as u64, "no gap");
            all.extend_from_slice(&bytes);
        }
        said
    }

    #[test]
    fn what_is_acknowledged_is_forgotten_and_the_rest_is_sent_again() {
        let mut unacked = Unacked::new(Stream::Stderr);
        let bytes: Vec<u8> = (0..100_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        unacked.extend(&bytes);
        assert_eq!((unacked.sent(), unacked.is_sent()), (0, false));
        assert!(!unacked.forget(1), "it was not sent");
        assert_eq!(said(&mut unacked), Some((0, bytes.clone())));
        assert!(unacked.forget(40_000));
        assert!(!unacked.forget(39_999), "an ack does not go back");
        assert!(!unacked.rewind(39_999));
        assert!(!unacked.forget(100_001));
        assert!(unacked.is_sent());
        assert!(unacked.rewind(50_000));
        assert_eq!(said(&mut unacked), Some((50_000, bytes[50_000..].to_vec())));
        assert!(unacked.forget(100_000));
        assert_eq!((unacked.cost(), unacked.acked(), unacked.sent()), (0, 100_000, 100_000));
    }

    #[test]
    fn small_pieces_cost_what_they_take() {
        let mut unacked = Unacked::new(Stream::Stderr);
        for _ in 0..1000 {
            unacked.extend(b"x");
        }
        assert!(unacked.cost() >= 64 * 1000);
        unacked.extend(b"");
        unacked.push(BytesMut::from(&[0; DATA_HEADER][..]));
        assert_eq!(said(&mut unacked), Some((0, vec![b'x'; 1000])), "nothing is no frame");
    }

    proptest! {
        #[test]
        fn nothing_is_lost_whatever_is_acknowledged(steps in proptest::collection::vec((0usize..70_000, 0u64..200_000, any::<bool>()), 1..40)) {
            let mut unacked = Unacked::new(Stream::Stderr);
            let (mut put, mut got) = (Vec::new(), Vec::<u8>::new());
            for (length, ack, again) in steps {
                let piece: Vec<u8> = (0..length).map(|n| (put.len() + n).to_le_bytes()[0]).collect();
                unacked.extend(&piece);
                put.extend_from_slice(&piece);
                if let Some((offset, bytes)) = said(&mut unacked) {
                    got.truncate(usize::try_from(offset).unwrap());
                    prop_assert_eq!(got.len() as u64, offset);
                    got.extend_from_slice(&bytes);
                }
                let ack = ack.clamp(unacked.acked(), unacked.sent());
                let done = if again { unacked.rewind(ack) } else { unacked.forget(ack) };
                prop_assert!(done);
            }
            if let Some((offset, bytes)) = said(&mut unacked) {
                got.truncate(usize::try_from(offset).unwrap());
                got.extend_from_slice(&bytes);
            }
            prop_assert_eq!(got, put);
        }
    }
}
