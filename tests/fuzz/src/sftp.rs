//! The gateway's reader of file transfers.

use crate::input::{Input, cut};
use crate::programs::sftp::{Broken, MAX_HELD, Reader, Seen, Side};
use bytes::Bytes;

/// Both directions in any order and any cut. What passes, what goes on record and what it ends with do
/// not depend on the cut; nothing passes that was not sent; no more is held back than the limit.
pub fn sftp(data: &[u8]) {
    let mut input = Input(data);
    let seed = input.byte();
    let said = conversation(&mut input);
    let whole = read(said.iter().map(|(side, bytes)| (*side, bytes.as_slice())));
    let length: usize = said.iter().map(|(_, bytes)| bytes.len()).sum();
    // One byte at a time takes long for what is long, and is another conversation's to try.
    let seeds = [seed | 1, 0];
    for seed in seeds.into_iter().take(if length < 4096 { 2 } else { 1 }) {
        let cut =
            read(said.iter().flat_map(|(side, bytes)| cut(bytes, seed).into_iter().map(|p| (*side, p))));
        assert_eq!(whole.seen, cut.seen);
        assert_eq!(whole.broken, cut.broken);
        for (whole, cut) in whole.passed.iter().zip(&cut.passed) {
            // What breaks the stream takes along what came in the same piece.
            assert!(if cut.len() == whole.len() { cut == whole } else { cut.starts_with(whole) });
        }
        if whole.broken.is_none() {
            assert_eq!(whole.passed, cut.passed);
        }
    }
}

/// Pieces of both sides. Most are packets with a right length, so that what is behind it is reached.
fn conversation(input: &mut Input<'_>) -> Vec<(Side, Vec<u8>)> {
    let mut said = Vec::new();
    if input.flag() {
        said.push((Side::Client, vec![0, 0, 0, 5, 1, 0, 0, 0, 3]));
        said.push((Side::Device, vec![0, 0, 0, 5, 2, 0, 0, 0, 3]));
    }
    while !input.0.is_empty() {
        let how = input.byte();
        let side = if how & 1 == 0 { Side::Client } else { Side::Device };
        let count = usize::from(how >> 4) << 8 | usize::from(input.byte());
        let bytes = match how >> 1 & 7 {
            0 => input.bytes(count).to_vec(),
            // Much of the same, for lengths that an input does not have.
            1 => vec![input.byte(); 64 * count],
            _ => {
                let body = input.bytes(count);
                let mut packet = u32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
                packet.extend_from_slice(body);
                packet
            }
        };
        // Pieces of one side without the other's in between are one piece.
        match said.last_mut() {
            Some((last, before)) if *last == side => before.extend(bytes),
            _ => said.push((side, bytes)),
        }
    }
    said
}

#[derive(Default)]
struct Outcome {
    passed: [Vec<u8>; 2],
    seen: Vec<Seen>,
    broken: Option<Broken>,
}

fn read<'a>(pieces: impl Iterator<Item = (Side, &'a [u8])>) -> Outcome {
    let (mut reader, mut outcome) = (Reader::default(), Outcome::default());
    let mut sent = [Vec::new(), Vec::new()];
    for (side, piece) in pieces {
        let at = side as usize;
        sent[at].extend_from_slice(piece);
        match reader.feed(side, &Bytes::copy_from_slice(piece), &mut outcome.seen) {
            Ok(passed) => {
                for piece in passed.pieces() {
                    outcome.passed[at].extend_from_slice(&piece);
                }
                assert!(sent[at].len() - outcome.passed[at].len() <= MAX_HELD + 4, "held back");
            }
            Err(broken) => {
                outcome.broken = Some(broken);
                break;
            }
        }
    }
    for (sent, passed) in sent.iter().zip(&outcome.passed) {
        assert!(sent.starts_with(passed), "only what was sent, in its order");
    }
    reader.finish(&mut outcome.seen);
    outcome
}
