//! Frames of a channel stream and messages of the control stream, `TUNNEL.md` sections 6 and 7.

use crate::input::{Input, cut};
use bytes::{BufMut as _, Bytes, BytesMut};
use daypass_protocol::signed::{Purpose, SignedText, sign};
use daypass_protocol::ssh_key::{Certificate, PrivateKey, PublicKey, private::Ed25519Keypair};
use daypass_protocol::tunnel::control::{self, FromDevice, ToDevice};
use daypass_protocol::tunnel::frame::{Frame, MAX_FRAME};
use daypass_protocol::tunnel::open::{Open, UnverifiedClaim};
use daypass_protocol::tunnel::stream::Frames;

/// What reads is the same however it arrives and reads again when it is said again; memory is bounded.
pub fn frame(data: &[u8]) {
    let mut input = Input(data);
    match input.byte() % 4 {
        0 => frames(input.byte(), input.rest()),
        1 => {
            // With lengths that are right, so that what is behind them is reached.
            let (seed, mut wire) = (input.byte(), BytesMut::new());
            while !input.0.is_empty() {
                let count = usize::from(input.byte()) << 4 | usize::from(input.byte() & 15);
                let body = input.bytes(count);
                wire.put_u32(u32::try_from(body.len()).unwrap());
                wire.put_slice(body);
            }
            frames(seed, &wire);
        }
        2 => {
            let (seed, body) = (input.byte(), input.rest());
            let mut wire = BytesMut::new();
            wire.put_u32(u32::try_from(body.len()).unwrap());
            wire.put_slice(body);
            for wire in [&wire[..], body] {
                messages::<ToDevice>(seed, wire);
                messages::<FromDevice>(seed, wire);
            }
        }
        _ => open(&input.rest_as_text()),
    }
}

fn frames(seed: u8, wire: &[u8]) {
    let decode = |input: &mut BytesMut| Frame::decode(input).map_err(|error| error.to_string());
    let whole = read(&[wire], decode);
    let pieces = cut(wire, seed);
    assert_eq!(whole, read(&pieces, decode));
    for pieces in [&[wire][..], &pieces[..]] {
        assert_eq!(packets(pieces), (whole.0.clone(), whole.2.clone()));
    }
    for frame in whole.0 {
        let mut said = BytesMut::new();
        frame.encode(&mut said).unwrap();
        assert!(said.len() <= MAX_FRAME + 4);
        if let Frame::Open(signed) = &frame {
            judge(signed);
        }
        assert_eq!(Frame::decode(&mut said).unwrap(), Some(frame));
        assert!(said.is_empty());
    }
}

/// The same as it comes off a stream of the tunnel.
fn packets(pieces: &[&[u8]]) -> (Vec<Frame>, Option<String>) {
    let (mut frames, mut found) = (Frames::default(), Vec::new());
    for piece in pieces {
        frames.push(Bytes::copy_from_slice(piece));
        loop {
            match frames.take() {
                Ok(Some(frame)) => found.push(frame),
                Ok(None) => break,
                Err(error) => return (found, Some(error.to_string())),
            }
        }
    }
    (found, None)
}

/// Everything that decodes, the rest, and the first error. A stream is given up at an error, so what is
/// left of it then means nothing.
fn read<T>(
    pieces: &[&[u8]],
    decode: impl Fn(&mut BytesMut) -> Result<Option<T>, String>,
) -> (Vec<T>, Bytes, Option<String>) {
    let (mut input, mut found) = (BytesMut::new(), Vec::new());
    let mut longest = 0;
    for piece in pieces {
        longest = longest.max(piece.len());
        input.extend_from_slice(piece);
        loop {
            match decode(&mut input) {
                Ok(Some(one)) => found.push(one),
                Ok(None) => break,
                Err(error) => return (found, Bytes::new(), Some(error)),
            }
        }
        // A length alone makes nobody keep more than one frame's worth; a buffer may double when it grows.
        assert!(input.capacity() <= 4 * (MAX_FRAME + longest), "{}", input.capacity());
    }
    (found, input.freeze(), None)
}

fn messages<T>(seed: u8, wire: &[u8])
where
    T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let decode = |input: &mut BytesMut| control::decode::<T>(input).map_err(|error| error.to_string());
    let whole = read(&[wire], decode);
    assert_eq!(whole, read(&cut(wire, seed), decode));
    for message in whole.0 {
        let mut said = BytesMut::new();
        control::encode(&message, &mut said).unwrap();
        assert_eq!(control::decode::<T>(&mut said).unwrap(), Some(message));
    }
}

/// As the shim does, up to the certificate.
fn judge(signed: &SignedText) {
    let Ok(claim) = UnverifiedClaim::read(signed) else { return };
    let Ok(certificate) = Certificate::from_openssh(&claim.certificate) else { return };
    if let Ok(open) = Open::open_with(signed, &PublicKey::from(certificate.public_key().clone())) {
        assert_eq!((open.certificate, open.login), (claim.certificate, claim.login));
    }
}

/// A body that somebody with the session's key has signed.
fn open(body: &str) {
    let key = PrivateKey::from(Ed25519Keypair::from_seed(&[7; 32]));
    let signature = sign(&key, Purpose::Open, body.as_bytes()).unwrap();
    let signed = SignedText::from_parts(body.to_owned(), signature);
    judge(&signed);
    if let Ok(open) = Open::open_with(&signed, key.public_key()) {
        let claim = UnverifiedClaim::read(&signed).unwrap();
        assert_eq!((&open.certificate, &open.login), (&claim.certificate, &claim.login));
        let again = open.seal(&key).unwrap();
        assert_eq!(Open::open_with(&again, key.public_key()).unwrap(), open);
    }
}
