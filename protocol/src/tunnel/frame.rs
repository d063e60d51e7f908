//! Frames of a channel stream: `uint32` length, `byte` type, payload. `TUNNEL.md` section 7.

use super::hello::Binding;
use super::open::{Refused, WindowSize};
use crate::signed::SignedText;
use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Most bytes of a `data` or `stderr` frame. What passes costs by the frame more than by the byte, so that bulk
/// wants large ones; and an interactive channel has small ones whatever the limit.
pub const MAX_DATA: usize = 128 * 1024;
/// Up to here a piece of data is put behind the one that waits before it.
const SMALL: usize = 1024;

/// Puts a small piece of data behind one that waits, if both fit into a frame. Who waits holds bytes then, and
/// not an entry for each of them, however they were sent.
pub fn merge(waiting: &mut Bytes, next: &Bytes) -> bool {
    if next.len() > SMALL || waiting.len() + next.len() > MAX_DATA {
        return false;
    }
    // A piece that is still shared with what it was read from is copied, once.
    let mut own = std::mem::take(waiting).try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
    own.extend_from_slice(next);
    *waiting = own.freeze();
    true
}

/// What a `data` or `stderr` frame has before its bytes: length, type, offset.
pub const DATA_HEADER: usize = 4 + 1 + 8;
/// Largest length field: that of a `data` frame.
pub const MAX_FRAME: usize = MAX_DATA + DATA_HEADER - 4;
/// Largest length field of every other frame; an `open` comes closest.
pub const MAX_OTHER: usize = 64 * 1024;
/// Longest message of a `close` frame, in bytes; a longer one is cut when it is sent.
pub const MAX_CLOSE_MESSAGE: usize = 1024;

/// Which byte stream of a channel a frame speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Standard input towards the device, standard output (or the PTY) from it.
    Data,
    /// Standard error, from the device only.
    Stderr,
}

/// How a process ended, RFC 4254 section 6.10.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    Status(u32),
    /// A signal's name without `SIG`.
    Signal {
        name: String,
        core_dumped: bool,
    },
}

/// Why a channel is closed by one end before the process ended by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseCode {
    /// Nothing more to say.
    Done,
    /// The session certificate's time is over.
    Expired,
    /// The broker ended the session.
    Ended,
    /// The device was suspended or retired.
    Suspended,
    /// The peer broke the protocol.
    Protocol,
    /// Something failed; the text says what.
    Failed,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    Open(SignedText),
    Opened,
    /// A channel goes on.
    Resumed {
        /// Bytes of its input that were received before.
        received: u64,
        /// Of the tunnel on which it was opened: known to the two that were there, and to no clone.
        opened_on: Binding,
    },
    Refused(Refused),
    /// `offset` counts the bytes of this stream before this frame.
    Data {
        stream: Stream,
        offset: u64,
        bytes: Bytes,
    },
    /// Everything before `offset` was taken over by the receiver.
    Ack {
        stream: Stream,
        offset: u64,
    },
    /// No bytes follow on this stream; it ended at `offset`.
    Eof {
        stream: Stream,
        offset: u64,
    },
    Resize(WindowSize),
    /// A signal for the process group, its name without `SIG`.
    Signal(String),
    Exit(Exit),
    Close {
        code: CloseCode,
        message: String,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("a frame of {0} bytes; at most {MAX_FRAME} are allowed for data, {MAX_OTHER} for others")]
    TooLarge(usize),
    #[error("frame type {0} is not known")]
    UnknownType(u8),
    #[error("a {0} frame does not read")]
    Malformed(&'static str),
}

const OPEN: u8 = 1;
const OPENED: u8 = 2;
const REFUSED: u8 = 3;
const DATA: u8 = 4;
const STDERR: u8 = 5;
const ACK: u8 = 6;
const EOF: u8 = 7;
const RESIZE: u8 = 8;
const SIGNAL: u8 = 9;
const EXIT: u8 = 10;
const CLOSE: u8 = 11;
const RESUMED: u8 = 12;

impl CloseCode {
    const ALL: [Self; 6] =
        [Self::Done, Self::Expired, Self::Ended, Self::Suspended, Self::Protocol, Self::Failed];
}

impl Stream {
    fn number(self) -> u8 {
        match self {
            Self::Data => 0,
            Self::Stderr => 1,
        }
    }

    fn read(number: u8, frame: &'static str) -> Result<Self, FrameError> {
        match number {
            0 => Ok(Self::Data),
            1 => Ok(Self::Stderr),
            _ => Err(FrameError::Malformed(frame)),
        }
    }
}

/// Writes the header of a data frame into the room in front of its bytes, as [`Frame::encode`] does.
pub(super) fn put_data_header(frame: &mut [u8], stream: Stream, offset: u64) {
    let length = u32::try_from(frame.len().saturating_sub(4)).unwrap_or(u32::MAX);
    let kind = match stream {
        Stream::Data => DATA,
        Stream::Stderr => STDERR,
    };
    if let Some(header) = frame.first_chunk_mut::<DATA_HEADER>() {
        header[..4].copy_from_slice(&length.to_be_bytes());
        header[4] = kind;
        header[5..].copy_from_slice(&offset.to_be_bytes());
    }
}

/// Length of the frame at the front of `input` with its length field; `None` until that is there.
pub(super) fn length(input: &[u8]) -> Result<Option<usize>, FrameError> {
    let Some(head) = input.first_chunk::<4>() else { return Ok(None) };
    match u32::from_be_bytes(*head) as usize {
        0 => Err(FrameError::Malformed("empty")),
        len @ 1..=MAX_FRAME => Ok(Some(4 + len)),
        len => Err(FrameError::TooLarge(len)),
    }
}

impl Frame {
    /// Appends the frame to `out`. Fails only for a frame that the other end would not take, and then
    /// leaves `out` as it was.
    pub fn encode(&self, out: &mut BytesMut) -> Result<(), FrameError> {
        let start = out.len();
        let done = self.append(out, start);
        if done.is_err() {
            out.truncate(start);
        }
        done
    }

    fn append(&self, out: &mut BytesMut, start: usize) -> Result<(), FrameError> {
        out.put_u32(0);
        match self {
            Self::Open(signed) => put_json(out, OPEN, signed, "open")?,
            Self::Opened => out.put_u8(OPENED),
            Self::Resumed { received, opened_on } => {
                out.put_u8(RESUMED);
                out.put_u64(*received);
                out.extend_from_slice(opened_on.as_str().as_bytes());
            }
            Self::Refused(refused) => put_json(out, REFUSED, refused, "refused")?,
            Self::Data { stream, offset, bytes } => {
                out.put_u8(match stream {
                    Stream::Data => DATA,
                    Stream::Stderr => STDERR,
                });
                out.put_u64(*offset);
                out.extend_from_slice(bytes);
                check_data(bytes)?;
            }
            Self::Ack { stream, offset } => {
                out.put_u8(ACK);
                out.put_u8(stream.number());
                out.put_u64(*offset);
            }
            Self::Eof { stream, offset } => {
                out.put_u8(EOF);
                out.put_u8(stream.number());
                out.put_u64(*offset);
            }
            Self::Resize(size) => {
                out.put_u8(RESIZE);
                for n in [size.cols, size.rows, size.width_px, size.height_px] {
                    out.put_u32(n);
                }
            }
            Self::Signal(name) => {
                out.put_u8(SIGNAL);
                out.extend_from_slice(name.as_bytes());
            }
            Self::Exit(Exit::Status(status)) => {
                out.put_u8(EXIT);
                out.put_u8(0);
                out.put_u32(*status);
            }
            Self::Exit(Exit::Signal { name, core_dumped }) => {
                out.put_u8(EXIT);
                out.put_u8(1);
                out.put_u8(u8::from(*core_dumped));
                out.extend_from_slice(name.as_bytes());
            }
            Self::Close { code, message } => {
                out.put_u8(CLOSE);
                out.put_u8(*code as u8);
                let end = message.floor_char_boundary(MAX_CLOSE_MESSAGE);
                out.extend_from_slice(&message.as_bytes()[..end]);
            }
        }
        let len = out.len() - start - 4;
        match u32::try_from(len) {
            Ok(head) if len <= self.most() => {
                out[start..start + 4].copy_from_slice(&head.to_be_bytes());
                Ok(())
            }
            _ => Err(FrameError::TooLarge(len)),
        }
    }

    /// Takes one frame from the front of `input`; `None` if it is not whole yet. An error is final: the
    /// stream has to be given up.
    pub fn decode(input: &mut BytesMut) -> Result<Option<Self>, FrameError> {
        let Some(length) = length(input)? else { return Ok(None) };
        if input.len() < length {
            input.reserve(length - input.len());
            return Ok(None);
        }
        let mut frame = input.split_to(length).freeze();
        frame.advance(4);
        Self::read(frame).map(Some)
    }

    fn most(&self) -> usize {
        if matches!(self, Self::Data { .. }) { MAX_FRAME } else { MAX_OTHER }
    }

    /// What stands behind the length field.
    pub(super) fn read(mut body: Bytes) -> Result<Self, FrameError> {
        let length = body.len();
        let kind = body.try_get_u8().map_err(|_| FrameError::Malformed("empty"))?;
        if length > MAX_OTHER && !matches!(kind, DATA | STDERR) {
            return Err(FrameError::TooLarge(length));
        }
        Ok(match kind {
            OPEN => Self::Open(get_json(&body, "open")?),
            OPENED => empty(&body, Self::Opened, "opened")?,
            REFUSED => Self::Refused(get_json(&body, "refused")?),
            DATA | STDERR => {
                let offset = body.try_get_u64().map_err(|_| FrameError::Malformed("data"))?;
                check_data(&body)?;
                let stream = if kind == DATA { Stream::Data } else { Stream::Stderr };
                Self::Data { stream, offset, bytes: body }
            }
            ACK => {
                let (stream, offset) = stream_offset(body, "ack")?;
                Self::Ack { stream, offset }
            }
            EOF => {
                let (stream, offset) = stream_offset(body, "eof")?;
                Self::Eof { stream, offset }
            }
            RESIZE => {
                let mut next = || body.try_get_u32().map_err(|_| FrameError::Malformed("resize"));
                let size = WindowSize { cols: next()?, rows: next()?, width_px: next()?, height_px: next()? };
                empty(&body, Self::Resize(size), "resize")?
            }
            SIGNAL => Self::Signal(signal_name(&body, "signal")?),
            EXIT => match body.try_get_u8() {
                Ok(0) => {
                    let status = body.try_get_u32().map_err(|_| FrameError::Malformed("exit"))?;
                    empty(&body, Self::Exit(Exit::Status(status)), "exit")?
                }
                Ok(1) => {
                    let core_dumped = match body.try_get_u8() {
                        Ok(flag @ 0..=1) => flag == 1,
                        _ => return Err(FrameError::Malformed("exit")),
                    };
                    Self::Exit(Exit::Signal { name: signal_name(&body, "exit")?, core_dumped })
                }
                _ => return Err(FrameError::Malformed("exit")),
            },
            CLOSE => {
                let code = body.try_get_u8().map_err(|_| FrameError::Malformed("close"))?;
                let code = CloseCode::ALL
                    .into_iter()
                    .find(|known| *known as u8 == code)
                    .ok_or(FrameError::Malformed("close"))?;
                if body.len() > MAX_CLOSE_MESSAGE {
                    return Err(FrameError::Malformed("close"));
                }
                let message = std::str::from_utf8(&body).map_err(|_| FrameError::Malformed("close"))?;
                Self::Close { code, message: message.to_owned() }
            }
            RESUMED => {
                let received = body.try_get_u64().map_err(|_| FrameError::Malformed("resumed"))?;
                let opened_on = Binding::read(&body).ok_or(FrameError::Malformed("resumed"))?;
                Self::Resumed { received, opened_on }
            }
            unknown => return Err(FrameError::UnknownType(unknown)),
        })
    }
}

fn put_json<T: serde::Serialize>(
    out: &mut BytesMut,
    kind: u8,
    value: &T,
    frame: &'static str,
) -> Result<(), FrameError> {
    out.put_u8(kind);
    serde_json::to_writer(out.writer(), value).map_err(|_| FrameError::Malformed(frame))
}

fn get_json<T: serde::de::DeserializeOwned>(body: &[u8], frame: &'static str) -> Result<T, FrameError> {
    serde_json::from_slice(body).map_err(|_| FrameError::Malformed(frame))
}

fn check_data(bytes: &[u8]) -> Result<(), FrameError> {
    match bytes.len() {
        0 => Err(FrameError::Malformed("data")),
        1..=MAX_DATA => Ok(()),
        more => Err(FrameError::TooLarge(more)),
    }
}

fn empty(rest: &[u8], frame: Frame, name: &'static str) -> Result<Frame, FrameError> {
    if rest.is_empty() { Ok(frame) } else { Err(FrameError::Malformed(name)) }
}

fn stream_offset(mut body: Bytes, frame: &'static str) -> Result<(Stream, u64), FrameError> {
    if body.len() != 9 {
        return Err(FrameError::Malformed(frame));
    }
    let stream = Stream::read(body.get_u8(), frame)?;
    Ok((stream, body.get_u64()))
}

fn signal_name(body: &[u8], frame: &'static str) -> Result<String, FrameError> {
    match std::str::from_utf8(body) {
        Ok(name)
            if (1..=32).contains(&name.len())
                && name
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'@' | b'.')) =>
        {
            Ok(name.to_owned())
        }
        _ => Err(FrameError::Malformed(frame)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::hello::Conversation;
    use super::super::open::RefusedCode;
    use super::*;
    use proptest::prelude::*;

    fn examples() -> Vec<(&'static str, Frame)> {
        vec![
            ("open", Frame::Open(SignedText::from_parts("{}".into(), "sig".into()))),
            ("opened", Frame::Opened),
            (
                "resumed",
                Frame::Resumed {
                    received: 65793,
                    opened_on: Binding::new(Conversation::Tunnel, &[1; 32], &[2; 32], &[3; 32]),
                },
            ),
            ("refused", Frame::Refused(Refused { code: RefusedCode::Busy, message: "full".into() })),
            ("data", Frame::Data { stream: Stream::Data, offset: 258, bytes: Bytes::from_static(b"hi\0") }),
            ("stderr", Frame::Data { stream: Stream::Stderr, offset: 0, bytes: Bytes::from_static(b"e") }),
            ("ack", Frame::Ack { stream: Stream::Stderr, offset: 65536 }),
            ("eof", Frame::Eof { stream: Stream::Data, offset: 3 }),
            ("resize", Frame::Resize(WindowSize { cols: 80, rows: 24, width_px: 0, height_px: 0 })),
            ("signal", Frame::Signal("INT".into())),
            ("exit-status", Frame::Exit(Exit::Status(7))),
            ("exit-signal", Frame::Exit(Exit::Signal { name: "KILL".into(), core_dumped: false })),
            ("close", Frame::Close { code: CloseCode::Expired, message: "time".into() }),
        ]
    }

    #[test]
    fn every_frame_matches_its_golden_vector_and_reads_back() {
        let golden = include_str!("../../vectors/frames.txt");
        for (name, frame) in examples() {
            let mut wire = BytesMut::new();
            frame.encode(&mut wire).unwrap();
            let hex: String = crate::text::hex(&wire);
            assert!(golden.lines().any(|line| line == format!("{name} {hex}")), "{name} {hex}");
            assert_eq!(Frame::decode(&mut wire).unwrap(), Some(frame));
            assert!(wire.is_empty());
        }
    }

    #[test]
    fn an_oversized_frame_is_refused_at_its_length() {
        let mut wire = BytesMut::from(&[0, 2, 0, 10, 4][..]);
        assert!(matches!(Frame::decode(&mut wire), Err(FrameError::TooLarge(131_082))));
        // What is no data has a smaller bound.
        let mut open = BytesMut::from(&[0, 1, 0, 1, OPEN][..]);
        open.extend_from_slice(&vec![b'{'; 65536]);
        assert!(matches!(Frame::decode(&mut open), Err(FrameError::TooLarge(65537))));
        let big = Frame::Data { stream: Stream::Data, offset: 0, bytes: Bytes::from(vec![0; MAX_DATA + 1]) };
        let mut out = BytesMut::from(&b"before"[..]);
        assert!(matches!(big.encode(&mut out), Err(FrameError::TooLarge(_))));
        assert_eq!(out, "before", "a frame that is not sent leaves nothing behind");
    }

    #[test]
    fn a_data_frame_without_data_and_a_longwinded_close_are_refused() {
        let mut empty = BytesMut::from(&[0, 0, 0, 9, 4, 0, 0, 0, 0, 0, 0, 0, 0][..]);
        assert!(matches!(Frame::decode(&mut empty), Err(FrameError::Malformed("data"))));
        let mut long = BytesMut::from(&[0, 0, 4, 3, 11, 0][..]);
        long.extend_from_slice(&[b'a'; 1025]);
        assert!(matches!(Frame::decode(&mut long), Err(FrameError::Malformed("close"))));
        let cut = Frame::Close { code: CloseCode::Failed, message: "\u{e9}".repeat(600) };
        let mut wire = BytesMut::new();
        cut.encode(&mut wire).unwrap();
        assert!(
            matches!(Frame::decode(&mut wire), Ok(Some(Frame::Close { message, .. })) if message.len() == 1024)
        );
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let mut wire = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = Frame::decode(&mut wire) {}
        }

        #[test]
        fn a_frame_cut_anywhere_waits_for_the_rest(cut in 0usize..16) {
            for (_, frame) in examples() {
                let mut whole = BytesMut::new();
                frame.encode(&mut whole).unwrap();
                let cut = cut.min(whole.len() - 1);
                let mut wire = BytesMut::from(&whole[..cut]);
                prop_assert!(Frame::decode(&mut wire).unwrap().is_none());
                wire.extend_from_slice(&whole[cut..]);
                prop_assert_eq!(Frame::decode(&mut wire).unwrap(), Some(frame));
            }
        }
    }

    #[test]
    fn small_pieces_that_wait_become_one_and_nothing_is_lost() {
        let sent: Vec<u8> = (0..200_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let mut waiting: Vec<Bytes> = Vec::new();
        let mut rest = Bytes::from(sent.clone());
        let mut lengths = [1, 0, 7, SMALL, 1, SMALL + 1, 3, MAX_DATA / 4, 2].into_iter().cycle();
        while !rest.is_empty() {
            let next = rest.split_to(lengths.next().unwrap().min(rest.len()));
            if !waiting.last_mut().is_some_and(|last| merge(last, &next)) {
                waiting.push(next);
            }
        }
        assert_eq!(waiting.concat(), sent);
        assert!(waiting.iter().all(|piece| piece.len() <= MAX_DATA));
        let mut one = Bytes::from_static(b"a");
        assert!((0..MAX_DATA - 1).all(|_| merge(&mut one, &Bytes::from_static(b"b"))));
        assert_eq!(one.len(), MAX_DATA);
        assert!(!merge(&mut one, &Bytes::from_static(b"c")), "no more than a frame");
    }
}
