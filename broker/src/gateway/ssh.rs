//! What the SSH library is told.

use super::door::HostIdentity;
use super::kex::OFFERED;
use super::limits::Limits;
use daypass_protocol::ssh_key::{Algorithm, EcdsaCurve};
use russh::server::Config;
use russh::{MethodKind, MethodSet, Preferred, SshId, cipher, compression, kex, mac};
use std::borrow::Cow;
use std::time::Duration;

/// What the server says first (RFC 4253 section 4.2), without its end of line.
pub const IDENTIFICATION: &str = "SSH-2.0-Daypass";

/// Certificates only, post-quantum key exchange first, authenticated ciphers only, no SHA-1, no plain
/// Diffie-Hellman, no compression.
pub fn config(identity: HostIdentity, limits: &Limits) -> Config {
    let mut kexes = OFFERED.to_vec();
    // RFC 8308, and the answer to CVE-2023-48795 (Terrapin).
    kexes.extend([kex::EXTENSION_SUPPORT_AS_SERVER, kex::EXTENSION_OPENSSH_STRICT_KEX_AS_SERVER]);
    let window = limits.window;
    Config {
        server_id: SshId::Standard(Cow::Borrowed(IDENTIFICATION)),
        methods: MethodSet::from(&[MethodKind::PublicKey][..]),
        // A refusal is not slower than a success: nothing here is guessable.
        auth_rejection_time: Duration::ZERO,
        auth_rejection_time_initial: Some(Duration::ZERO),
        keys: vec![identity.key],
        certificates: vec![identity.certificate],
        window_size: window,
        maximum_packet_size: 32 * 1024,
        // The read half of every channel is dropped; nothing is ever stored there.
        channel_buffer_size: 1,
        event_buffer_size: 16,
        max_auth_attempts: limits.auth_attempts,
        // Keepalives find the dead first; this also ends a write that makes no progress.
        inactivity_timeout: Some(limits.keepalive * u32::try_from(limits.keepalive_max + 2).unwrap_or(8)),
        keepalive_interval: Some(limits.keepalive),
        keepalive_max: limits.keepalive_max,
        nodelay: true,
        preferred: Preferred {
            kex: Cow::Owned(kexes),
            key: Cow::Borrowed(&[Algorithm::Ed25519, Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 }]),
            host_key_certificates: Cow::Borrowed(&[]),
            cipher: Cow::Borrowed(&[cipher::AES_128_GCM, cipher::AES_256_GCM, cipher::CHACHA20_POLY1305]),
            mac: Cow::Borrowed(&[mac::HMAC_SHA512_ETM, mac::HMAC_SHA256_ETM]),
            compression: Cow::Borrowed(&[compression::NONE]),
        },
        ..Config::default()
    }
}
