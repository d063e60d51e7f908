//! Which key exchange a connection began with.
//!
//! The SSH library does not say. The client's identification line and its `SSH_MSG_KEXINIT` go over the
//! wire in clear, and RFC 4253 section 7.1 makes the outcome a function of the two lists: the first
//! method on the client's that the server has too.

use std::task::Poll;

/// The methods offered here, the post-quantum hybrid first. No plain Diffie-Hellman.
pub const OFFERED: [russh::kex::Name; 3] =
    [russh::kex::MLKEM768X25519_SHA256, russh::kex::CURVE25519, russh::kex::CURVE25519_PRE_RFC_8731];

/// RFC 4253 section 6.1: packets up to 35000 bytes; a KEXINIT is far smaller.
const MOST: usize = 16 * 1024;

/// Reads a client's first bytes as they pass by.
#[derive(Debug, Default)]
pub struct Sniffer {
    seen: Vec<u8>,
}

impl Sniffer {
    /// Ready when there is an answer, or there will be none.
    pub fn feed(&mut self, bytes: &[u8]) -> Poll<Option<String>> {
        let take = bytes.len().min(MOST - self.seen.len());
        self.seen.extend_from_slice(&bytes[..take]);
        match chosen(&self.seen) {
            Read::Whole(list) => {
                let ours = |name: &&str| OFFERED.iter().any(|offered| offered.as_ref() == *name);
                Poll::Ready(list.split(',').find(ours).map(str::to_owned))
            }
            Read::More if self.seen.len() < MOST && !bytes.is_empty() => Poll::Pending,
            Read::More | Read::Not => Poll::Ready(None),
        }
    }
}

enum Read<'a> {
    Whole(&'a str),
    More,
    Not,
}

fn chosen(seen: &[u8]) -> Read<'_> {
    let Some(line) = seen.iter().position(|byte| *byte == b'\n') else { return Read::More };
    // uint32 length, byte padding, byte 20, 16 bytes cookie, name-list kex_algorithms
    let packet = &seen[line + 1..];
    let Some(head) = packet.first_chunk::<26>() else { return Read::More };
    if head[5] != 20 {
        return Read::Not;
    }
    let len = u32::from_be_bytes([head[22], head[23], head[24], head[25]]) as usize;
    if len > MOST {
        return Read::Not;
    }
    match packet.get(26..26 + len).map(std::str::from_utf8) {
        None => Read::More,
        Some(Ok(list)) => Read::Whole(list),
        Some(Err(_)) => Read::Not,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(list: &str) -> Vec<u8> {
        let mut bytes = b"SSH-2.0-OpenSSH_9.2\r\n".to_vec();
        bytes.extend_from_slice(&[0, 0, 4, 0, 6, 20]);
        bytes.extend_from_slice(&[9; 16]);
        bytes.extend_from_slice(&u32::try_from(list.len()).unwrap().to_be_bytes());
        bytes.extend_from_slice(list.as_bytes());
        bytes
    }

    #[test]
    fn the_first_method_of_the_client_that_the_server_has_is_it() {
        let bytes = start("sntrup761x25519-sha512,curve25519-sha256,mlkem768x25519-sha256");
        let mut sniffer = Sniffer::default();
        for byte in &bytes[..bytes.len() - 1] {
            assert!(sniffer.feed(&[*byte]).is_pending());
        }
        assert_eq!(
            sniffer.feed(&bytes[bytes.len() - 1..]),
            Poll::Ready(Some("curve25519-sha256".to_owned()))
        );
    }

    #[test]
    fn what_does_not_read_has_no_answer_and_no_memory() {
        assert_eq!(Sniffer::default().feed(&start("none")), Poll::Ready(None));
        assert_eq!(Sniffer::default().feed(&vec![0; 100_000]), Poll::Ready(None));
        let mut huge = start("x");
        huge[43..47].copy_from_slice(&[255; 4]);
        assert_eq!(Sniffer::default().feed(&huge), Poll::Ready(None));
    }
}
