//! Packets of one direction, found in a stream that is cut anywhere.
//!
//! A packet is `uint32 length, byte type, ...`. Its *head* is what has to be understood before a byte of
//! it may pass: all of it, but of a WRITE or a DATA only what stands before the file's content. The head
//! is held until it is whole; the content streams through.

use super::{MAX_HANDLE, MAX_HELD, MAX_PACKET, Side, What};
use bytes::{Bytes, BytesMut};

pub(super) const WRITE: u8 = 6;
pub(super) const DATA: u8 = 103;
pub(super) const NAME: u8 = 104;

/// What may go on: what was held of a head, then the accounted part of what has just come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    held: Bytes,
    rest: Bytes,
}

impl Passed {
    pub fn whole(bytes: Bytes) -> Self {
        Self { held: Bytes::new(), rest: bytes }
    }

    /// The pieces in order; none is empty.
    pub fn pieces(self) -> impl Iterator<Item = Bytes> + Send {
        [self.held, self.rest].into_iter().filter(|piece| !piece.is_empty())
    }
}

/// One direction's place in its stream.
#[derive(Debug)]
pub(super) struct Packets {
    side: Side,
    /// A head that is not whole yet; at most [`MAX_HELD`] and four bytes.
    held: BytesMut,
    /// Bytes of content that are still to come.
    content: u32,
}

/// Takes heads and contents as they are found.
pub(super) trait Taker {
    /// A whole head, without its length; for a packet with content, that many bytes follow.
    fn head(&mut self, head: &[u8], content: u32) -> Result<(), What>;
    /// A piece of content.
    fn content(&mut self, piece: &[u8]);
}

enum Look {
    /// The head needs this many bytes of the packet before more can be said.
    Need(usize),
    /// The head has this many bytes, the length included, and this much content follows.
    Whole { head: usize, content: u32 },
}

impl Packets {
    pub fn new(side: Side) -> Self {
        Self { side, held: BytesMut::new(), content: 0 }
    }

    pub fn feed(&mut self, bytes: &Bytes, taker: &mut impl Taker) -> Result<Passed, What> {
        let mut held = Bytes::new();
        let (mut start, mut at) = (0, 0);
        loop {
            let rest = bytes.get(at..).unwrap_or_default();
            if self.content > 0 && !rest.is_empty() {
                let count = rest.len().min(usize::try_from(self.content).unwrap_or(usize::MAX));
                taker.content(rest.get(..count).unwrap_or_default());
                self.content -= u32::try_from(count).unwrap_or(self.content);
                at += count;
                continue;
            }
            if self.held.is_empty() {
                if rest.is_empty() {
                    break;
                }
                match self.look(rest)? {
                    Look::Whole { head, content } if head <= rest.len() => {
                        taker.head(rest.get(4..head).unwrap_or_default(), content)?;
                        self.content = content;
                        at += head;
                    }
                    _ => {
                        self.held.extend_from_slice(rest);
                        return Ok(Passed { held, rest: bytes.slice(start..at) });
                    }
                }
                continue;
            }
            // Looked at after every byte that it got: one that is whole waits for nothing, also when its
            // packet has no content that would come after it.
            let need = match self.look(&self.held)? {
                Look::Whole { head, content } if head == self.held.len() => {
                    taker.head(self.held.get(4..).unwrap_or_default(), content)?;
                    self.content = content;
                    // Only the first head of a piece can have been held before it.
                    held = self.held.split().freeze();
                    start = at;
                    continue;
                }
                Look::Need(need) | Look::Whole { head: need, .. } => need,
            };
            if rest.is_empty() {
                break;
            }
            let count = need.saturating_sub(self.held.len()).min(rest.len());
            self.held.extend_from_slice(rest.get(..count).unwrap_or_default());
            at += count;
        }
        // While a head is held, everything of this piece went into it or stands before `start`.
        let end = if self.held.is_empty() { at } else { start };
        Ok(Passed { held, rest: bytes.slice(start..end) })
    }

    fn look(&self, packet: &[u8]) -> Result<Look, What> {
        let number = |at: usize| {
            let bytes = packet.get(at..at + 4)?;
            Some(u32::from_be_bytes(bytes.try_into().ok()?))
        };
        let (Some(length), Some(kind)) = (number(0), packet.get(4)) else { return Ok(Look::Need(5)) };
        if length == 0 {
            return Err(What::Empty);
        }
        if length > MAX_PACKET {
            return Err(What::TooLong(length));
        }
        // With content: type, id, and a string or two numbers before it; the lengths have to agree.
        let with_content = |head: u32, content: u32| {
            if head.checked_add(content) != Some(length) {
                return Err(What::LengthsDisagree);
            }
            Ok(Look::Whole { head: head as usize + 4, content })
        };
        match (self.side, *kind) {
            (Side::Client, WRITE) => {
                let Some(handle) = number(9) else { return Ok(Look::Need(13)) };
                if handle as usize > MAX_HANDLE {
                    return Err(What::LongHandle);
                }
                // Type, id, handle, offset, length of the content.
                let head = 1 + 4 + 4 + handle + 8 + 4;
                match number(head as usize) {
                    Some(content) => with_content(head, content),
                    None => Ok(Look::Need(head as usize + 4)),
                }
            }
            (Side::Device, DATA) => match number(9) {
                Some(content) => with_content(9, content),
                None => Ok(Look::Need(13)),
            },
            // A directory's names are counted and go through; a single name is read whole.
            (Side::Device, NAME) if length as usize > MAX_HELD / 4 => with_content(9, length - 9),
            (_, _) if length as usize > MAX_HELD => Err(What::TooLong(length)),
            (_, _) => Ok(Look::Whole { head: length as usize + 4, content: 0 }),
        }
    }
}
