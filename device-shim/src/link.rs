//! The way to the broker: TCP (or an HTTP proxy), TLS 1.3, WebSocket; and what binds signatures to it.
//!
//! The broker's TLS certificate is not judged, because a device may have no right time and no
//! authorities. What is judged is that a pinned key signed this connection's exporter ([`crate::hello`]).
//! For that to mean anything the handshake signature is verified, and only TLS 1.3 is spoken.

use crate::config::Proxy;
use base64::Engine as _;
use daypass_protocol::tunnel::hello::{Conversation, Nonce, encode_nonce};
use daypass_protocol::tunnel::{
    ENROL_PATH, ENROL_PROTOCOL, EXPORTER_LABEL, MAX_ANSWER, NONCE_HEADER, TUNNEL_PATH, TUNNEL_PROTOCOL,
};
use rustls::pki_types::ServerName;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::header::{RETRY_AFTER, SEC_WEBSOCKET_PROTOCOL};
use tokio_tungstenite::tungstenite::http::{HeaderValue, StatusCode, Uri};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error as WsError, error::UrlError};

/// From the first SYN to the end of the upgrade.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(45);
/// Longest head of a proxy's answer.
const MAX_PROXY_HEAD: usize = 8 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("{0:?} is not a broker address like https://broker.example.com:8443")]
    Address(String),
    #[error("cannot reach {to}: {why}")]
    Reach { to: String, why: io::Error },
    #[error("the proxy refused: {0}")]
    Proxy(String),
    #[error("TLS with {to}: {why}")]
    Tls { to: String, why: io::Error },
    #[error("the TLS connection cannot be bound to: {0}")]
    Exporter(rustls::Error),
    #[error("the broker answered the upgrade with HTTP {0}")]
    Status(StatusCode),
    #[error("the broker has no room; it asks to come again within {0} seconds")]
    Busy(u32),
    #[error("the WebSocket upgrade: {0}")]
    Upgrade(Box<WsError>),
    #[error("the broker did not agree to {0}")]
    Subprotocol(&'static str),
    #[error("connecting to {0} took longer than {secs} seconds", secs = CONNECT_TIMEOUT.as_secs())]
    Timeout(String),
    #[error("no randomness: {0}")]
    Random(String),
}

/// Where the broker listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Endpoint {
    /// `https://host[:port]`, without a path.
    pub fn parse(url: &str) -> Result<Self, LinkError> {
        let bad = || LinkError::Address(url.chars().take(200).collect());
        let uri: Uri = url.parse().map_err(|_| bad())?;
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(bad)?;
        let plain = uri.path() == "/" && uri.query().is_none();
        if uri.scheme_str() != Some("https")
            || !plain
            || uri.authority().is_some_and(|a| a.as_str().contains('@'))
        {
            return Err(bad());
        }
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self { host, port: uri.port_u16().unwrap_or(443) })
    }

    /// `host:port`, an IPv6 address in brackets.
    fn authority(&self) -> String {
        authority(&self.host, self.port)
    }
}

fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// A WebSocket to something that may or may not be the broker, and what proves which.
pub struct Link {
    pub socket: WebSocketStream<TlsStream<TcpStream>>,
    pub exporter: [u8; 32],
    pub nonce: Nonce,
    /// TLS key exchange, `X25519MLKEM768`.
    pub tls_group: String,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Link({})", self.tls_group)
    }
}

/// Connects for one conversation.
pub async fn connect(to: &Endpoint, proxy: Option<&Proxy>, what: Conversation) -> Result<Link, LinkError> {
    timeout(CONNECT_TIMEOUT, connect_unbounded(to, proxy, what))
        .await
        .unwrap_or_else(|_| Err(LinkError::Timeout(to.authority())))
}

async fn connect_unbounded(
    to: &Endpoint,
    proxy: Option<&Proxy>,
    what: Conversation,
) -> Result<Link, LinkError> {
    let tcp = match proxy {
        Some(proxy) => through_proxy(proxy, to).await?,
        None => dial(&to.host, to.port).await?,
    };
    let tls_error = |why| LinkError::Tls { to: to.authority(), why };
    let name = ServerName::try_from(to.host.clone()).map_err(|_| LinkError::Address(to.host.clone()))?;
    let config = crate::tls::config().map_err(|error| tls_error(io::Error::other(error)))?;
    let tls = tokio_rustls::TlsConnector::from(config).connect(name, tcp).await.map_err(tls_error)?;

    let session = tls.get_ref().1;
    let exporter =
        session.export_keying_material([0; 32], EXPORTER_LABEL, None).map_err(LinkError::Exporter)?;
    let tls_group = session
        .negotiated_key_exchange_group()
        .map_or_else(|| "unknown".to_owned(), |group| format!("{:?}", group.name()));

    let (path, subprotocol) = match what {
        Conversation::Tunnel => (TUNNEL_PATH, TUNNEL_PROTOCOL),
        Conversation::Enrolment => (ENROL_PATH, ENROL_PROTOCOL),
    };
    let mut nonce = [0; 32];
    getrandom::fill(&mut nonce).map_err(|error| LinkError::Random(error.to_string()))?;
    let upgrade = |error| LinkError::Upgrade(Box::new(error));
    let mut request = format!("wss://{}{path}", to.authority()).into_client_request().map_err(upgrade)?;
    request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(subprotocol));
    let encoded = HeaderValue::from_str(&encode_nonce(&nonce))
        .map_err(|_| upgrade(WsError::Url(UrlError::UnsupportedUrlScheme)))?;
    request.headers_mut().insert(NONCE_HEADER, encoded);
    let (socket, answer) = tokio_tungstenite::client_async_with_config(request, tls, Some(ws_config()))
        .await
        .map_err(|error| match error {
            WsError::Http(answer) => refused(answer.status(), answer.headers().get(RETRY_AFTER)),
            other => upgrade(other),
        })?;
    if answer.headers().get(SEC_WEBSOCKET_PROTOCOL).is_none_or(|agreed| agreed != subprotocol) {
        return Err(LinkError::Subprotocol(subprotocol));
    }
    Ok(Link { socket, exporter, nonce, tls_group })
}

/// RFC 9110 section 10.2.3; only seconds, as the broker says them.
fn refused(status: StatusCode, retry_after: Option<&HeaderValue>) -> LinkError {
    let seconds = retry_after.and_then(|value| value.to_str().ok()).and_then(|value| value.parse().ok());
    match seconds {
        Some(seconds) if status == StatusCode::SERVICE_UNAVAILABLE => LinkError::Busy(seconds),
        _ => LinkError::Status(status),
    }
}

/// Small buffers: a device has little memory, and the windows of yamux do the flow control.
fn ws_config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(16 * 1024)
        .write_buffer_size(32 * 1024)
        .max_write_buffer_size(1024 * 1024)
        .max_message_size(Some(MAX_ANSWER))
        .max_frame_size(Some(MAX_ANSWER))
}

async fn dial(host: &str, port: u16) -> Result<TcpStream, LinkError> {
    let reach = |why| LinkError::Reach { to: authority(host, port), why };
    let tcp = TcpStream::connect((host, port)).await.map_err(reach)?;
    tcp.set_nodelay(true).map_err(reach)?;
    Ok(tcp)
}

/// RFC 9110 section 9.3.6.
async fn through_proxy(proxy: &Proxy, to: &Endpoint) -> Result<TcpStream, LinkError> {
    let mut tcp = dial(&proxy.host, proxy.port).await?;
    let target = to.authority();
    let authorization = proxy.userinfo.as_ref().map_or_else(String::new, |userinfo| {
        let basic = base64::engine::general_purpose::STANDARD.encode(userinfo);
        format!("Proxy-Authorization: Basic {basic}\r\n")
    });
    let request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{authorization}\r\n");
    let failed = |error: io::Error| LinkError::Proxy(error.to_string());
    tcp.write_all(request.as_bytes()).await.map_err(failed)?;
    // One byte at a time: what follows the head belongs to TLS already.
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= MAX_PROXY_HEAD {
            return Err(LinkError::Proxy("its answer is too long".to_owned()));
        }
        head.push(tcp.read_u8().await.map_err(failed)?);
    }
    let head = String::from_utf8_lossy(&head);
    let status = head.lines().next().unwrap_or_default();
    if status.starts_with("HTTP/1.") && status.split(' ').nth(1).is_some_and(|code| code.starts_with('2')) {
        Ok(tcp)
    } else {
        Err(LinkError::Proxy(status.chars().take(200).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_without_room_says_when_to_come_again() {
        let busy = |status, value: Option<&'static str>| {
            refused(StatusCode::from_u16(status).unwrap(), value.map(HeaderValue::from_static).as_ref())
        };
        assert!(matches!(busy(503, Some("20")), LinkError::Busy(20)));
        for (status, value) in [(503, None), (503, Some("soon")), (503, Some("-1")), (400, Some("20"))] {
            assert!(matches!(busy(status, value), LinkError::Status(_)), "{status} {value:?}");
        }
    }

    #[test]
    fn broker_addresses_read_or_are_refused() {
        let parse = |url| Endpoint::parse(url).map(|to| to.authority());
        assert_eq!(parse("https://broker.example.com").unwrap(), "broker.example.com:443");
        assert_eq!(parse("https://127.0.0.1:8443/").unwrap(), "127.0.0.1:8443");
        assert_eq!(parse("https://[::1]:8443").unwrap(), "[::1]:8443");
        for bad in ["http://x", "https://", "x", "https://x/path", "https://a@x", "https://x?q"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
