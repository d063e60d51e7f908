//! Forwards over a real tunnel to a real shim.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a broken test may break")]

mod broker;

use broker::*;
use daypass_protocol::certificate::{FORWARD_TARGETS, PERMIT_PORT_FORWARDING, PERMIT_PTY};
use daypass_protocol::tunnel::control::ToDevice;
use daypass_protocol::tunnel::frame::{CloseCode, Frame};
use daypass_protocol::tunnel::open::{OpenKind, RefusedCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

/// A port of the "device", and a certificate that names it.
async fn service() -> (TcpListener, u16, Cert) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let named: &'static str = Box::leak(format!("127.0.0.1:{port}").into_boxed_str());
    (listener, port, Cert { critical: vec![(FORWARD_TARGETS, named)], ..Cert::default() })
}

fn to(host: &str, port: u16) -> OpenKind {
    OpenKind::Forward { host: host.to_owned(), port }
}

async fn joined_with(more: &str) -> (Broker, Device, Joined) {
    let broker = Broker::start().await;
    let mut device = Device::enrolled(&broker);
    device.run_with(more);
    let joined = broker.join().await;
    (broker, device, joined)
}

#[tokio::test]
async fn a_forward_carries_every_byte_both_ways_and_each_direction_ends_by_itself() {
    let (_broker, device, mut joined) = joined_with("").await;
    let (listener, port, cert) = service().await;
    let mut channel = joined.open_with(&cert, to("localhost", port)).await;
    let (mut served, _) = listener.accept().await.unwrap();

    // The server's direction ends first; what the client still says arrives.
    served.write_all(b"hello").await.unwrap();
    served.shutdown().await.unwrap();
    let mut said = Said::default();
    channel.until(&mut said, "hello").await;
    let sent: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    for part in sent.chunks(32_768) {
        channel.data(part).await;
    }
    channel.eof().await;
    let mut received = Vec::new();
    served.read_to_end(&mut received).await.unwrap();
    assert!(received == sent, "{} bytes", received.len());
    channel.rest_into(&mut said).await;
    assert_eq!(said.close.unwrap().0, CloseCode::Done);

    // And the client's first: the server answers after it.
    let mut channel = joined.open_with(&cert, to("127.0.0.1", port)).await;
    let (mut served, _) = listener.accept().await.unwrap();
    channel.data(b"question").await;
    channel.eof().await;
    let mut question = String::new();
    served.read_to_string(&mut question).await.unwrap();
    served.write_all(b"answer").await.unwrap();
    drop(served);
    assert_eq!((question.as_str(), channel.rest().await.text().as_str()), ("question", "answer"));

    let journal = std::fs::read_to_string(device.journal()).unwrap();
    let lines: Vec<&str> = journal.lines().filter(|line| line.contains("\"opened\"")).collect();
    assert_eq!(lines.len(), 2, "{journal}");
    assert!(lines.iter().all(|line| line.contains(&format!("\"target\":\"127.0.0.1:{port}\""))), "{journal}");
}

#[tokio::test]
async fn the_end_of_a_session_closes_its_sockets() {
    let (_broker, _device, mut joined) = joined_with("").await;
    let (listener, port, cert) = service().await;
    let _channel = joined.open_with(&cert, to("localhost", port)).await;
    let (mut served, _) = listener.accept().await.unwrap();
    joined.tell(&ToDevice::EndSession { session: session_id(), reason: "over".to_owned() }).await;
    let mut rest = Vec::new();
    let closed = tokio::time::timeout(PATIENCE, served.read_to_end(&mut rest)).await;
    // Closed or reset: both are the end.
    assert!(closed.is_ok() && rest.is_empty());
}

#[tokio::test]
async fn a_paused_forward_stops_no_other_channel() {
    let (_broker, _device, mut joined) = joined_with("").await;
    let (listener, port, cert) = service().await;
    let _paused = joined.open_with(&cert, to("localhost", port)).await;
    let (mut served, _) = listener.accept().await.unwrap();
    // Until nothing more fits anywhere between the server and the broker, which does not read.
    let piece = vec![0; 65_536];
    while tokio::time::timeout(std::time::Duration::from_millis(500), served.write_all(&piece)).await.is_ok()
    {
    }
    let mut other = joined.open(exec("echo on")).await;
    assert_eq!(other.rest().await.text(), "on\n");
}

#[tokio::test]
async fn promise_1_no_grant_no_bytes_what_the_certificate_does_not_name_is_not_connected_to() {
    let (_broker, _device, mut joined) = joined_with("").await;
    let (listener, port, cert) = service().await;
    let (other, other_port, _) = service().await;
    for (cert, kind) in [
        (&cert, to("127.0.0.1", other_port)),
        (&cert, to("127.0.0.2", port)),
        (&Cert::default(), to("127.0.0.1", port)),
        (
            &Cert { extensions: vec![PERMIT_PTY], critical: cert.critical.clone(), ..Cert::default() },
            to("::1", port),
        ),
        (
            &Cert { extensions: vec![PERMIT_PTY], critical: cert.critical.clone(), ..Cert::default() },
            to("localhost", port),
        ),
    ] {
        let refused = joined.refusal(cert, kind.clone()).await;
        assert_eq!(refused.code, RefusedCode::KindForbidden, "{kind:?}");
    }
    let quiet = std::time::Duration::from_millis(200);
    assert!(tokio::time::timeout(quiet, listener.accept()).await.is_err());
    assert!(tokio::time::timeout(quiet, other.accept()).await.is_err());
}

#[tokio::test]
async fn promise_1_no_grant_no_bytes_the_devices_own_ssh_is_not_connected_to_even_if_named() {
    let (_listener, port, _) = service().await;
    let (_broker, _device, mut joined) = joined_with(&format!("ssh_ports = [{port}]")).await;
    let named: &'static str = Box::leak(
        format!("127.0.0.1:{port},127.9.9.9:{port},[::1]:{port},127.0.0.1:22,[::1]:22").into_boxed_str(),
    );
    let extensions = vec![PERMIT_PORT_FORWARDING];
    let cert = Cert { critical: vec![(FORWARD_TARGETS, named)], extensions, ..Cert::default() };
    for port in [port, 22] {
        for host in ["localhost", "127.0.0.1", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1", "127.9.9.9"] {
            if (host, port) == ("127.9.9.9", 22) {
                continue;
            }
            let refused = joined.refusal(&cert, to(host, port)).await;
            assert!(refused.message.contains("the device's own SSH"), "{host}:{port}: {refused:?}");
        }
    }
}

#[tokio::test]
async fn a_port_where_nobody_listens_is_told_in_words() {
    let (listener, port, cert) = service().await;
    drop(listener);
    let (_broker, _device, mut joined) = joined_with("").await;
    let refused = joined.refusal(&cert, to("localhost", port)).await;
    assert_eq!(refused.code, RefusedCode::Failed);
    assert_eq!(refused.message, format!("127.0.0.1:{port} is not reached: connection refused"));
}

#[tokio::test]
async fn a_forward_outlives_a_lost_connection_of_the_device() {
    let (broker, _device, mut joined) = joined_with("").await;
    let (listener, port, cert) = service().await;
    let mut channel = joined.open_with(&cert, to("127.0.0.1", port)).await;
    let (mut served, _) = listener.accept().await.unwrap();
    served.write_all(b"before, ").await.unwrap();
    let mut said = Said::default();
    channel.until(&mut said, "before, ").await;
    drop((channel, joined));
    served.write_all(b"between, ").await.unwrap();
    let mut joined = broker.join().await;
    let (mut channel, answer) = joined.resume(&cert, to("127.0.0.1", port), &said).await;
    assert!(matches!(answer, Some(Frame::Resumed { received: 0, .. })), "{answer:?}");
    channel.data(b"asked").await;
    channel.eof().await;
    let mut received = Vec::new();
    served.read_to_end(&mut received).await.unwrap();
    assert_eq!(received, b"asked");
    served.write_all(b"after").await.unwrap();
    drop(served);
    channel.rest_into(&mut said).await;
    assert_eq!(said.text(), "before, between, after");
    assert_eq!(said.close.unwrap().0, CloseCode::Done);
}
