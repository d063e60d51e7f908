//! Who is believed: enrolment, hello, bundles, state; and what a hostile broker can do.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a broken test may break")]

mod broker;

use broker::*;
use bytes::BytesMut;
use daypass_protocol::signed::{Purpose, SignedText};
use daypass_protocol::ssh_key::PublicKey;
use daypass_protocol::tunnel::control::{FromDevice, ToDevice};
use daypass_protocol::tunnel::frame::{CloseCode, Frame, Stream};
use daypass_protocol::tunnel::hello::{
    Answer, Binding, Challenge, Conversation, Enrol, EnrolAsk, Enrolled, RefusalCode, Welcome,
};
use daypass_protocol::tunnel::open::{OpenKind, RefusedCode};
use daypass_shim::state::StateDir;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;

fn enrol_process(device: &Device, token: &str) -> tokio::process::Child {
    let state = device.state();
    shim(&[
        "enrol",
        token,
        "--state",
        state.path().to_str().unwrap(),
        "--serial-number",
        "SN-42",
        "--device",
        "gw-0042",
    ])
    .spawn()
    .unwrap()
}

fn enrolled(enrol: &Enrol) -> Enrolled {
    let own = PublicKey::from_openssh(&enrol.public_key).unwrap();
    Enrolled {
        v: 1,
        device: device_id(),
        host_certificate: host_certificate(&own),
        bundle: sealed_bundle(&bundle(1)),
        broker_keys: vec![public(EVIDENCE)],
    }
}

async fn enrol_until_ask(broker: &Broker) -> (Caller, EnrolAsk, Enrol) {
    let mut caller = broker.accept().await;
    assert_eq!(caller.what, Conversation::Enrolment);
    let challenge = caller.challenge();
    caller.say(&SignedText::seal(&key(EVIDENCE), Purpose::Challenge, &challenge).unwrap()).await;
    let ask: EnrolAsk = caller.hear().await.unwrap();
    let signer = ask.enrol.unverified_signer().unwrap();
    let enrol: Enrol = ask.enrol.open(std::slice::from_ref(&signer), Purpose::Enrol, "an enrolment").unwrap();
    assert_eq!(PublicKey::from_openssh(&enrol.public_key).unwrap().key_data(), signer.key_data());
    assert_eq!(enrol.binding, challenge.binding);
    (caller, ask, enrol)
}

#[tokio::test]
async fn a_device_enrols_and_then_runs() {
    let broker = Broker::start().await;
    let mut device = Device::empty();
    let process = enrol_process(&device, &broker.token().to_string());
    let (mut caller, ask, enrol) = enrol_until_ask(&broker).await;
    assert_eq!(ask.secret, broker.token().secret);
    assert_eq!((enrol.serial_number.as_str(), enrol.device.clone()), ("SN-42", Some(device_id())));
    caller.say(&Answer::Welcome(enrolled(&enrol))).await;
    let output = soon("the enrolment", process.wait_with_output()).await.unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("enrolled as gw-0042 at https://127.0.0.1"));

    device.run();
    let mut joined = broker.join().await;
    let own = PublicKey::from_openssh(&enrol.public_key).unwrap();
    assert_eq!(joined.hello(&own).bundle_version, 1);
    assert_eq!(joined.open(exec("echo in")).await.rest().await.text(), "in\n");

    // A second enrolment does not replace the first.
    let process = enrol_process(&device, &broker.token().to_string());
    let output = soon("the refusal", process.wait_with_output()).await.unwrap();
    assert_eq!(output.status.code(), Some(1));
}

#[tokio::test]
async fn a_broker_without_the_pinned_key_never_learns_the_tokens_secret() {
    let broker = Broker::start().await;
    let device = Device::empty();
    let process = enrol_process(&device, &broker.token().to_string());
    let mut caller = broker.accept().await;
    let challenge = caller.challenge();
    caller.say(&SignedText::seal(&key(FOREIGN), Purpose::Challenge, &challenge).unwrap()).await;
    assert!(caller.hear::<serde_json::Value>().await.is_none(), "the device said something");
    let output = soon("the enrolment", process.wait_with_output()).await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("not our broker"), "{output:?}");
    assert!(!device.state().is_enrolled());
}

#[tokio::test]
async fn somebody_in_between_never_learns_the_tokens_secret() {
    let broker = Broker::start().await;
    let device = Device::empty();
    let _process = enrol_process(&device, &broker.token().to_string());
    let mut caller = broker.accept().await;
    // What the real broker would sign towards the one in between: that one's own TLS connection.
    let real = caller.challenge();
    let elsewhere = Binding::new(Conversation::Enrolment, &[0; 32], &caller.device_nonce, &[8; 32]);
    let challenge = Challenge { binding: elsewhere, ..real };
    caller.say(&SignedText::seal(&key(EVIDENCE), Purpose::Challenge, &challenge).unwrap()).await;
    assert!(caller.hear::<serde_json::Value>().await.is_none(), "the device said something");
}

#[tokio::test]
async fn an_enrolment_whose_answer_does_not_fit_stores_no_identity() {
    for wrong in 0..4 {
        let broker = Broker::start().await;
        let device = Device::empty();
        let process = enrol_process(&device, &broker.token().to_string());
        let (mut caller, _, enrol) = enrol_until_ask(&broker).await;
        let mut answer = enrolled(&enrol);
        match wrong {
            0 => answer.bundle = SignedText::seal(&key(FOREIGN), Purpose::Bundle, &bundle(1)).unwrap(),
            1 => answer.broker_keys.push(public(FOREIGN)),
            2 => answer.host_certificate = host_certificate(key(FOREIGN).public_key()),
            _ => answer.device = "gw-0043".parse().unwrap(),
        }
        caller.say(&Answer::Welcome(answer)).await;
        let output = soon("the enrolment", process.wait_with_output()).await.unwrap();
        assert_eq!(output.status.code(), Some(1), "case {wrong}: {output:?}");
        assert!(!device.state().is_enrolled());
    }
}

#[tokio::test]
async fn a_refused_enrolment_says_why_and_can_be_tried_again_with_the_same_key() {
    let broker = Broker::start().await;
    let device = Device::empty();
    let mut keys = Vec::new();
    for _ in 0..2 {
        let process = enrol_process(&device, &broker.token().to_string());
        let (mut caller, _, enrol) = enrol_until_ask(&broker).await;
        keys.push(enrol.public_key);
        let message = "this token was used".to_owned();
        caller.say(&Answer::<Enrolled>::Refused { code: RefusalCode::TokenUnusable, message }).await;
        let output = soon("the enrolment", process.wait_with_output()).await.unwrap();
        assert!(String::from_utf8_lossy(&output.stderr).contains("this token was used"), "{output:?}");
    }
    assert_eq!(keys[0], keys[1]);
}

#[tokio::test]
async fn a_device_says_nothing_to_whoever_is_not_its_broker_and_keeps_trying() {
    let broker = Broker::start().await;
    let mut device = Device::enrolled(&broker);
    device.run();
    // Another key.
    let mut caller = broker.accept().await;
    let challenge = caller.challenge();
    caller.say(&SignedText::seal(&key(FOREIGN), Purpose::Challenge, &challenge).unwrap()).await;
    assert!(caller.hear::<serde_json::Value>().await.is_none());
    device.logged("this is not our broker").await;
    // The right key, on the far side of somebody in between.
    let mut caller = broker.accept().await;
    let elsewhere = Binding::new(Conversation::Tunnel, &[0; 32], &caller.device_nonce, &[8; 32]);
    let challenge = Challenge { binding: elsewhere, ..caller.challenge() };
    caller.say(&SignedText::seal(&key(EVIDENCE), Purpose::Challenge, &challenge).unwrap()).await;
    assert!(caller.hear::<serde_json::Value>().await.is_none());
    device.logged("somebody is in between").await;
    // Its time was not believed either; the real broker's is.
    let mut joined = broker.join().await;
    assert_eq!(joined.open(exec("echo in")).await.rest().await.text(), "in\n");
}

#[tokio::test]
async fn a_time_that_was_not_proven_is_not_believed() {
    let broker = Broker::start().await;
    let mut device = Device::enrolled(&broker);
    device.run();
    let far = now() + Duration::from_hours(10 * 365 * 24);
    let mut caller = broker.accept().await;
    let elsewhere = Binding::new(Conversation::Tunnel, &[0; 32], &caller.device_nonce, &[8; 32]);
    let challenge = Challenge { binding: elsewhere, time: far, ..caller.challenge() };
    caller.say(&SignedText::seal(&key(EVIDENCE), Purpose::Challenge, &challenge).unwrap()).await;
    assert!(caller.hear::<serde_json::Value>().await.is_none());
    let mut joined = broker.join().await;
    joined.tell(&ToDevice::Tick { time: far }).await;
    assert!(matches!(joined.told().await, Some(FromDevice::Tock { .. })));
    assert_eq!(joined.open(exec("echo still")).await.rest().await.text(), "still\n");
    assert!(device.state().time().unwrap() < far);
}

#[tokio::test]
async fn a_passing_refusal_is_tried_again() {
    let broker = Broker::start().await;
    let mut device = Device::enrolled(&broker);
    device.run();
    let mut caller = broker.accept().await;
    caller.hello().await.unwrap();
    let message = "another connection is alive".to_owned();
    caller.say(&Answer::<Welcome>::Refused { code: RefusalCode::AlreadyConnected, message }).await;
    let line = device.logged("AlreadyConnected").await;
    assert!(line.contains("trying again in 0.") || line.contains("trying again in 1."), "{line}");
    broker.join().await;
}

#[tokio::test]
async fn a_refusal_that_only_a_person_can_change_is_tried_rarely() {
    let broker = Broker::start().await;
    let mut device = Device::enrolled(&broker);
    device.run();
    let mut caller = broker.accept().await;
    caller.hello().await.unwrap();
    let message = "no such device".to_owned();
    caller.say(&Answer::<Welcome>::Refused { code: RefusalCode::UnknownDevice, message }).await;
    let line = device.logged("UnknownDevice").await;
    let secs: f64 = line.rsplit(' ').nth(1).unwrap().parse().unwrap();
    assert!(secs >= 1800.0, "{line}");
}

#[tokio::test]
async fn a_newer_bundle_is_kept_and_an_older_or_foreign_one_ends_the_tunnel() {
    let broker = Broker::start().await;
    let mut device = Device::enrolled(&broker);
    device.run();
    let newer = Welcome { v: 1, bundle: Some(sealed_bundle(&bundle(8))), accepts_sessions: true };
    let mut joined = broker.accept().await.welcome(newer).await;
    joined.tell(&ToDevice::Bundle { bundle: sealed_bundle(&bundle(9)) }).await;
    assert_eq!(joined.told().await, Some(FromDevice::BundleHeld { version: 9 }));
    for wrong in [
        sealed_bundle(&bundle(8)),
        SignedText::seal(&key(FOREIGN), Purpose::Bundle, &bundle(10)).unwrap(),
        sealed_bundle(&daypass_protocol::bundle::TrustBundle {
            device: "gw-0043".parse().unwrap(),
            ..bundle(10)
        }),
    ] {
        joined.tell(&ToDevice::Bundle { bundle: wrong }).await;
        assert_eq!(joined.told().await, None);
        device.logged("not acceptable").await;
        joined = broker.join().await;
        let own = device.state().device_key().unwrap();
        assert_eq!(joined.hello(own.public_key()).bundle_version, 9);
    }
}

#[tokio::test]
async fn broker_keys_roll_over_by_a_bundle_and_survive_a_restart() {
    let broker = Broker::start().await;
    let mut device = Device::enrolled(&broker);
    device.run();
    let mut joined = broker.join().await;
    let mut next = bundle(6);
    next.broker_keys = vec![public(6)];
    joined.tell(&ToDevice::Bundle { bundle: sealed_bundle(&next) }).await;
    assert_eq!(joined.told().await, Some(FromDevice::BundleHeld { version: 6 }));
    device.shim.take().unwrap().kill().await.unwrap();
    drop(joined);
    device.run();
    // The old key is nobody now.
    let mut caller = broker.accept().await;
    assert!(caller.hello().await.is_none());
    let mut caller = broker.accept().await;
    let challenge = caller.challenge();
    caller.say(&SignedText::seal(&key(6), Purpose::Challenge, &challenge).unwrap()).await;
    assert!(caller.hear::<SignedText>().await.is_some());
}

#[tokio::test]
async fn a_damaged_state_file_stops_the_shim_and_stays_as_it_is() {
    let broker = Broker::start().await;
    for name in ["device_key", "identity.json", "trust.json", "clock.json"] {
        let device = Device::enrolled(&broker);
        let state: StateDir = device.state();
        state.store_time(now()).unwrap();
        let path = state.path().join(name);
        let whole = std::fs::read(&path).unwrap();
        let half = &whole[..whole.len() / 2];
        std::fs::write(&path, half).unwrap();
        let config = device.configure("");
        for command in ["run", "status"] {
            let output = shim(&[command, "--config", config.to_str().unwrap()]).output();
            let output = soon("the error", output).await.unwrap();
            assert_eq!(output.status.code(), Some(1), "{name}: {output:?}");
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(text.contains(name) && text.contains("damaged"), "{text}");
        }
        assert_eq!(std::fs::read(&path).unwrap(), half);
    }
}

#[tokio::test]
async fn an_open_replayed_on_the_wire_opens_nothing() {
    let broker = Broker::start().await;
    let mut device = Device::enrolled(&broker);
    device.run();
    let mut joined = broker.join().await;
    let body = joined.body(&Cert::default(), exec("echo once"));
    let signed = body.seal(&key(SESSION)).unwrap();
    let mut channel = joined.open_signed(signed.clone()).await;
    assert_eq!(channel.next().await, Some(Frame::Opened));
    assert_eq!(channel.rest().await.text(), "once\n");
    let refused = joined.open_signed(signed.clone()).await.refused().await;
    assert_eq!(refused.code, RefusedCode::NotAuthorized);
    // Nor on the next tunnel.
    drop(joined);
    let joined = broker.join().await;
    let refused = joined.open_signed(signed).await.refused().await;
    assert_eq!(refused.code, RefusedCode::NotAuthorized);
    device.logged("another tunnel").await;
}

#[tokio::test]
async fn garbage_on_a_channel_ends_that_channel_alone() {
    let broker = Broker::start().await;
    let mut device = Device::enrolled(&broker);
    device.run();
    let mut joined = broker.join().await;
    let mut neighbour = joined.open(exec("cat")).await;
    // In place of an open: noise, a length of 4 GiB, another frame, JSON that is no open.
    for first in [&[0, 0, 0, 2, 77, 1][..], &[0xff; 64], &[0, 0, 0, 1, 2], b"\0\0\0\x03\x01{}"] {
        let mut channel = joined.stream().await;
        channel.stream.write_all(first).await.unwrap();
        channel.stream.flush().await.unwrap();
        assert_eq!(channel.refused().await.code, RefusedCode::Malformed);
    }
    // In a channel that runs: noise, a gap, an overlap, an ack of what was never sent, a frame of the other side.
    let data = |offset| Frame::Data { stream: Stream::Data, offset, bytes: "x".into() };
    for wrong in [
        None,
        Some(data(5)),
        Some(Frame::Ack { stream: Stream::Data, offset: 1 << 40 }),
        Some(Frame::Opened),
        Some(Frame::Eof { stream: Stream::Data, offset: 9 }),
        Some(Frame::Data { stream: Stream::Stderr, offset: 0, bytes: "x".into() }),
        Some(Frame::Resize(daypass_protocol::tunnel::open::WindowSize::default())),
    ] {
        let mark = mark();
        let mut channel = joined.open(exec(&format!("sleep {mark}"))).await;
        match wrong.clone() {
            Some(frame) => channel.send(frame).await,
            None => {
                channel.stream.write_all(&[0xff; 8]).await.unwrap();
                channel.stream.flush().await.unwrap();
            }
        }
        let said = channel.rest().await;
        assert_eq!(said.close.expect("a close").0, CloseCode::Protocol, "{wrong:?}");
        gone(&mark).await;
    }
    neighbour.data(b"still here\n").await;
    neighbour.until(&mut Said::default(), "still here\n").await;
}

#[tokio::test]
async fn garbage_on_the_control_stream_ends_the_tunnel_and_the_device_comes_back() {
    let broker = Broker::start().await;
    let mut device = Device::enrolled(&broker);
    device.run();
    for wrong in [&[0xff; 8][..], b"\0\0\0\x02{}", b"\0\0\0\x10{\"v\":2,\"type\":1}"] {
        let mut joined = broker.join().await;
        joined.control.write_all(wrong).await.unwrap();
        joined.control.flush().await.unwrap();
        assert_eq!(joined.told().await, None);
    }
    broker.join().await;
}

#[tokio::test]
async fn a_peer_that_never_reads_costs_bounded_memory_and_stops_only_itself() {
    let broker = Broker::start().await;
    let mut device = Device::enrolled(&broker);
    device.run();
    let mut joined = broker.join().await;
    assert_eq!(joined.open(exec("echo warm")).await.rest().await.text(), "warm\n");
    let before = resident(device.pid());
    let mut deaf = Vec::new();
    for _ in 0..4 {
        deaf.push(joined.open(exec("cat /dev/zero")).await);
    }
    // Input for a process that never reads, until the window is full.
    let mut full = joined.open(exec("sleep 600")).await;
    let mut wire = BytesMut::new();
    while wire.len() < 2 * 1024 * 1024 {
        let offset = full.sent;
        full.sent += 30_000;
        Frame::Data { stream: Stream::Data, offset, bytes: vec![0; 30_000].into() }
            .encode(&mut wire)
            .unwrap();
    }
    let stuffing = tokio::spawn(async move {
        let _ = full.stream.write_all(&wire).await;
        full
    });
    // The others go on meanwhile.
    for _ in 0..50 {
        assert_eq!(joined.open(exec("echo on")).await.rest().await.text(), "on\n");
    }
    let grown = resident(device.pid()).saturating_sub(before);
    println!("five stalled channels cost {} KiB in the shim", grown / 1024);
    assert!(grown < 5 * 2 * 1024 * 1024, "{grown}");
    assert!(!stuffing.is_finished(), "the window is bounded");
    stuffing.abort();
    // And they end when told to, though nobody reads.
    joined.tell(&ToDevice::EndSession { session: session_id(), reason: "x".into() }).await;
    assert_eq!(joined.told().await, Some(FromDevice::SessionGone { session: session_id() }));
}

#[tokio::test]
async fn the_number_of_channels_is_limited_and_each_end_makes_room() {
    let broker = Broker::start().await;
    let mut device = Device::enrolled(&broker);
    device.run_with("max_channels = 2");
    let mut joined = broker.join().await;
    let mut one = joined.open(exec("cat")).await;
    let _two = joined.open(exec("cat")).await;
    assert_eq!(joined.refusal(&Cert::default(), exec("true")).await.code, RefusedCode::Busy);
    one.eof().await;
    one.rest().await;
    let opened = async {
        loop {
            let body = joined.body(&Cert::default(), exec("echo room"));
            let mut channel = joined.open_body(&body).await;
            if channel.next().await == Some(Frame::Opened) {
                return channel.rest().await;
            }
        }
    };
    assert_eq!(soon("room", opened).await.text(), "room\n");
}

#[tokio::test]
async fn the_owners_switch_and_a_full_disk_keep_everybody_out() {
    let broker = Broker::start().await;
    let mut device = Device::enrolled(&broker);
    device.run_with("remote_access = false");
    let mut joined = broker.join().await;
    let refused = joined.refusal(&Cert::default(), OpenKind::Shell { pty: pty() }).await;
    assert_eq!(refused.code, RefusedCode::SwitchedOff);
    device.shim.take().unwrap().kill().await.unwrap();
    drop(joined);

    std::os::unix::fs::symlink("/dev/full", device.journal()).unwrap();
    device.run();
    let mut joined = broker.join().await;
    let refused = joined.refusal(&Cert::default(), exec("true")).await;
    assert_eq!(refused.code, RefusedCode::Failed);
    device.logged("journal cannot be written").await;
}

#[tokio::test]
async fn a_device_reaches_its_broker_through_an_http_proxy() {
    use tokio::io::{AsyncReadExt as _, copy_bidirectional};
    let broker = Broker::start().await;
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let proxy = listener.local_addr().unwrap().port();
    let to = broker.port;
    let asked = tokio::spawn(async move {
        let (mut near, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(near.read_u8().await.unwrap());
        }
        let mut far = tokio::net::TcpStream::connect(("127.0.0.1", to)).await.unwrap();
        near.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.unwrap();
        tokio::spawn(async move { copy_bidirectional(&mut near, &mut far).await });
        String::from_utf8(head).unwrap()
    });
    let mut device = Device::enrolled(&broker);
    device.run_with(&format!("proxy = \"http://ana:pw@127.0.0.1:{proxy}\""));
    let mut joined = broker.join().await;
    let head = asked.await.unwrap();
    assert!(head.starts_with(&format!("CONNECT 127.0.0.1:{to} HTTP/1.1\r\n")), "{head}");
    assert!(head.contains("Proxy-Authorization: Basic YW5hOnB3\r\n"), "{head}");
    assert_eq!(joined.open(exec("echo through")).await.rest().await.text(), "through\n");
}

#[tokio::test]
async fn a_broker_that_speaks_only_tls_1_2_gets_no_hello() {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config));
    let broker = Broker::start().await;
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let mut device = Device::enrolled(&broker);
    device.run_with(&format!("broker_url = \"https://127.0.0.1:{}\"", listener.local_addr().unwrap().port()));
    let (tcp, _) = listener.accept().await.unwrap();
    assert!(acceptor.accept(tcp).await.is_err());
}
