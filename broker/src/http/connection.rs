//! What is known about the connection that a request came in on.

use std::net::SocketAddr;

/// Facts of the TLS connection, put into each request's extensions by the accept loop. A request without
/// them did not come through it.
#[derive(Clone)]
pub struct TlsFacts {
    /// The TLS exporter (RFC 5705) with [`daypass_protocol::tunnel::EXPORTER_LABEL`] and no context.
    pub exporter_tunnel: [u8; 32],
    /// The key exchange that was negotiated, as rustls spells it: `X25519MLKEM768`.
    pub group: String,
    /// `TLSv1_3`.
    pub version: String,
    pub peer: SocketAddr,
}

// The exporter is a secret of the connection.
impl std::fmt::Debug for TlsFacts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TlsFacts({} {} {})", self.peer, self.version, self.group)
    }
}
