//! The connection is lost, and comes back: nothing is lost with it, and nobody else can pick it up.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a broken test may break")]

mod broker;

use broker::*;
use daypass_protocol::tunnel::control::{FromDevice, ToDevice};
use daypass_protocol::tunnel::frame::{CloseCode, Exit, Frame};
use daypass_protocol::tunnel::hello::{Binding, Welcome};
use daypass_protocol::tunnel::open::{OpenKind, Received, RefusedCode};
use std::fmt::Write as _;
use std::time::Duration;
use tokio::time::Instant;

async fn joined_with(more: &str) -> (Broker, Device, Joined) {
    let broker = Broker::start().await;
    let mut device = Device::enrolled(&broker);
    device.run_with(more);
    let joined = broker.join().await;
    (broker, device, joined)
}

async fn joined() -> (Broker, Device, Joined) {
    joined_with("").await
}

/// Loses the connection without a word; the binding that it had.
fn lose(channel: Channel, joined: Joined) -> Binding {
    let binding = joined.binding.clone();
    drop((channel, joined));
    binding
}

/// How much of the input the device has, from an answer that has to be `resumed`.
fn received(answer: Option<Frame>, first: &Binding) -> u64 {
    match answer {
        Some(Frame::Resumed { received, opened_on }) => {
            assert_eq!(opened_on, *first, "it proves which tunnel it was opened on");
            received
        }
        other => panic!("not resumed: {other:?}"),
    }
}

fn refusal(answer: (Channel, Option<Frame>)) -> RefusedCode {
    match answer.1 {
        Some(Frame::Refused(refused)) => refused.code,
        other => panic!("not refused: {other:?}"),
    }
}

/// A command that says `up` and then waits, named by `mark`, with the tunnel it runs on lost.
async fn kept(broker: &Broker, mut joined: Joined, cert: &Cert, mark: &str) -> (Joined, OpenKind, Said) {
    let kind = exec(&format!("echo up; read line; sleep {mark}; echo not reached"));
    let mut channel = joined.open_with(cert, kind.clone()).await;
    let mut said = Said::default();
    channel.until(&mut said, "up\n").await;
    channel.data(b"go\n").await;
    while !lives(&format!("sleep\0{mark}")) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    lose(channel, joined);
    (broker.join().await, kind, said)
}

#[tokio::test]
async fn output_goes_on_where_it_was_without_a_byte_lost_or_doubled() {
    let (broker, _device, mut joined) = joined().await;
    let kind = exec("seq 1 400000; echo end >&2; exit 3");
    let mut channel = joined.open(kind.clone()).await;
    let mut said = Said::default();
    channel.until(&mut said, "\n1000\n").await;
    let mut first = None;
    // Lost three times, each time with output on its way.
    for at in ["\n100000\n", "\n200000\n", "\n300000\n"] {
        let binding = lose(channel, joined);
        let first = first.get_or_insert(binding).clone();
        joined = broker.join().await;
        let (next, answer) = joined.resume(&Cert::default(), kind.clone(), &said).await;
        assert_eq!(received(answer, &first), 0);
        channel = next;
        channel.until(&mut said, at).await;
    }
    channel.rest_into(&mut said).await;
    let mut whole = String::new();
    for n in 1..=400_000 {
        writeln!(whole, "{n}").unwrap();
    }
    assert!(said.text() == whole, "{} bytes of {}", said.out.len(), whole.len());
    assert_eq!((said.err.as_slice(), said.exit), (&b"end\n"[..], Some(Exit::Status(3))));
    assert_eq!(said.close.unwrap().0, CloseCode::Done);
}

#[tokio::test]
async fn input_goes_on_where_it_was_without_a_byte_lost_or_doubled() {
    let (broker, device, mut joined) = joined().await;
    let mut bytes = vec![0; 6_000_000];
    getrandom::fill(&mut bytes).unwrap();
    let path = device.dir.path().join("uploaded");
    // Slow enough that input waits in the pipe, in the shim and on the way when the connection goes.
    let kind = exec(&format!("dd bs=1000 count=200 2>/dev/null; sleep 1; cat > {}", path.display()));
    let mut channel = joined.open(kind.clone()).await;
    let mut sent = 0;
    let sending = async {
        for chunk in bytes.chunks(20_000) {
            channel.data(chunk).await;
            sent += chunk.len();
        }
    };
    // The process does not read all of it: the sender has to wait.
    let _ = tokio::time::timeout(Duration::from_millis(400), sending).await;
    assert!(sent > 100_000, "{sent}");
    let mut said = Said::default();
    let mut first = None;
    for part in [1, 2] {
        let binding = lose(channel, joined);
        let first = first.get_or_insert(binding).clone();
        joined = broker.join().await;
        let (next, answer) = joined.resume(&Cert::default(), kind.clone(), &said).await;
        channel = next;
        let at = received(answer, &first);
        channel.sent = at;
        let end = bytes.len() * part / 2;
        for chunk in bytes[usize::try_from(at).unwrap()..end].chunks(20_000) {
            channel.data(chunk).await;
        }
    }
    channel.eof().await;
    channel.rest_into(&mut said).await;
    assert_eq!(said.exit, Some(Exit::Status(0)));
    let mut arrived = said.out;
    arrived.extend(std::fs::read(path).unwrap());
    assert!(arrived == bytes, "{} bytes of {}", arrived.len(), bytes.len());
}

#[tokio::test]
async fn what_a_process_says_last_while_it_is_kept_is_told_and_told_again() {
    let (broker, device, mut joined) = joined().await;
    let (go, done) = (device.dir.path().join("go"), device.dir.path().join("done"));
    let kind = exec(&format!(
        "echo up; while [ ! -e {} ]; do sleep 0.02; done; echo last; touch {}; exit 9",
        go.display(),
        done.display()
    ));
    let mut channel = joined.open(kind.clone()).await;
    let mut said = Said::default();
    channel.until(&mut said, "up\n").await;
    let first = lose(channel, joined);
    std::fs::write(&go, "").unwrap();
    while !done.exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Its end was not acknowledged by a close, so it is said again, however often.
    for _ in 0..2 {
        let mut joined = broker.join().await;
        let (mut channel, answer) = joined.resume(&Cert::default(), kind.clone(), &said).await;
        assert_eq!(received(answer, &first), 0);
        let mut frames = Vec::new();
        while let Some(frame) = channel.next().await {
            let last = matches!(frame, Frame::Close { .. });
            frames.push(frame);
            if last {
                break;
            }
        }
        assert!(frames.contains(&Frame::Exit(Exit::Status(9))), "{frames:?}");
        lose(channel, joined);
    }
    let mut joined = broker.join().await;
    let (mut channel, answer) = joined.resume(&Cert::default(), kind.clone(), &said).await;
    received(answer, &first);
    channel.rest_into(&mut said).await;
    assert_eq!((said.text().as_str(), &said.exit), ("up\nlast\n", &Some(Exit::Status(9))));
    // Now it was heard, and is forgotten.
    let answer = joined.resume(&Cert::default(), kind, &said).await;
    assert_eq!(refusal(answer), RefusedCode::Gone);
}

#[tokio::test]
async fn a_terminal_and_its_shell_go_on() {
    let (broker, _device, mut joined) = joined().await;
    let kind = OpenKind::Shell { pty: pty() };
    let mut channel = joined.open(kind.clone()).await;
    let mut said = Said::default();
    channel.data(b"here=still; tty\n").await;
    channel.until(&mut said, "/dev/pts/").await;
    let sent = channel.sent;
    let first = lose(channel, joined);
    let mut joined = broker.join().await;
    let (mut channel, answer) = joined.resume(&Cert::default(), kind, &said).await;
    channel.sent = received(answer, &first);
    assert_eq!(channel.sent, sent);
    channel.data(b"echo $here alive\n").await;
    channel.until(&mut said, "still alive\r\n").await;
}

#[tokio::test]
async fn a_process_that_talks_without_end_waits_and_costs_bounded_memory() {
    let (broker, device, mut joined) = joined().await;
    let kind = exec("head -c 30000000 /dev/zero | tr '\\0' x");
    let channel = joined.open(kind.clone()).await;
    let before = resident(device.pid());
    let first = lose(channel, joined);
    let mut joined = broker.join().await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let grown = resident(device.pid()).saturating_sub(before);
    println!("grown by {grown} bytes");
    assert!(grown < 2 * 1024 * 1024, "{grown}");
    let (mut channel, answer) = joined.resume(&Cert::default(), kind, &Said::default()).await;
    received(answer, &first);
    let said = channel.rest().await;
    assert_eq!((said.out.len(), said.exit), (30_000_000, Some(Exit::Status(0))));
}

#[tokio::test]
async fn promise_4_access_ends_on_time_the_end_of_the_grace_ends_every_process() {
    let (broker, _device, joined) = joined_with("resume_grace_s = 1").await;
    let mark = mark();
    let (mut joined, kind, said) = kept(&broker, joined, &Cert::default(), &mark).await;
    let took = gone(&mark).await;
    assert!(took > Duration::from_millis(500), "it was kept for a while: {took:?}");
    let answer = joined.resume(&Cert::default(), kind, &said).await;
    assert_eq!(refusal(answer), RefusedCode::Gone);
}

#[tokio::test]
async fn promise_4_access_ends_on_time_the_end_of_the_certificate_ends_what_is_kept() {
    let (broker, _device, joined) = joined().await;
    let mark = mark();
    let until = daypass_protocol::time::Timestamp::from_secs((now() + Duration::from_secs(3)).as_secs());
    let cert = Cert { until, ..Cert::default() };
    let (mut joined, kind, said) = kept(&broker, joined, &cert, &mark).await;
    assert!(lives(&mark) && now() < until);
    gone(&mark).await;
    assert!(now() >= until, "not before its time");
    assert!(until.until(now()) < Duration::from_secs(1), "and not long after");
    let answer = joined.resume(&cert, kind, &said).await;
    assert_eq!(refusal(answer), RefusedCode::NotAuthorized);
}

#[tokio::test]
async fn promise_4_access_ends_on_time_what_is_kept_is_reported_and_ended_by_a_word() {
    let (broker, _device, joined) = joined().await;
    let mark = mark();
    let (mut joined, kind, said) = kept(&broker, joined, &Cert::default(), &mark).await;
    joined.tell(&ToDevice::Tick { time: now() }).await;
    let Some(FromDevice::Tock { sessions, .. }) = joined.told().await else { panic!("no tock") };
    assert_eq!(sessions, [session_id()]);
    joined.tell(&ToDevice::EndSession { session: session_id(), reason: "x".into() }).await;
    assert_eq!(joined.told().await, Some(FromDevice::SessionGone { session: session_id() }));
    assert!(!lives(&mark));
    let answer = joined.resume(&Cert::default(), kind, &said).await;
    assert_eq!(refusal(answer), RefusedCode::NotAuthorized);
}

#[tokio::test]
async fn promise_4_access_ends_on_time_a_device_that_comes_back_suspended_or_revoked_keeps_nothing() {
    for (serial, accepts_sessions) in [(7, false), (8, true)] {
        let (broker, _device, joined) = joined().await;
        let mark = mark();
        let cert = Cert { serial, ..Cert::default() };
        let (joined, kind, said) = kept(&broker, joined, &cert, &mark).await;
        drop(joined);
        assert!(lives(&mark));
        let mut newer = bundle(6);
        newer.revoked_serials.push(8);
        let welcome = Welcome { v: 1, bundle: Some(sealed_bundle(&newer)), accepts_sessions };
        let mut joined = broker.accept().await.welcome(welcome).await;
        gone(&mark).await;
        let answer = joined.resume(&cert, kind, &said).await;
        let code = if accepts_sessions { RefusedCode::NotAuthorized } else { RefusedCode::SwitchedOff };
        assert_eq!(refusal(answer), code);
    }
}

#[tokio::test]
async fn promise_1_no_grant_no_bytes_a_kept_channel_takes_no_forged_replayed_or_stale_resumption() {
    let (broker, _device, joined) = joined().await;
    let mark = mark();
    let (mut joined, kind, said) = kept(&broker, joined, &Cert::default(), &mark).await;
    let at = Some(Received { data: said.out.len() as u64, stderr: 0 });
    let cert = Cert::default();

    // Signed by another key than the certified one.
    let mut body = joined.body(&cert, kind.clone());
    body.resume = at;
    let mut forged = joined.open_signed(body.seal(&key(FOREIGN)).unwrap()).await;
    assert_eq!(forged.refused().await.code, RefusedCode::NotAuthorized);

    // A certificate by somebody else, and one whose time is over.
    for cert in [
        Cert { ca: FOREIGN, ..cert.clone() },
        Cert { until: now() - Duration::from_secs(10), ..cert.clone() },
    ] {
        let answer = joined.resume(&cert, kind.clone(), &said).await;
        assert_eq!(refusal(answer), RefusedCode::NotAuthorized);
    }

    // Made for another tunnel.
    let mut body = joined.body(&cert, kind.clone());
    body.resume = at;
    let signed = body.seal(&key(SESSION)).unwrap();
    let mut channel = joined.open_signed(signed.clone()).await;
    assert!(matches!(channel.next().await, Some(Frame::Resumed { .. })), "the right one is taken");
    // The very same again, on this tunnel and on the next.
    assert_eq!(joined.open_signed(signed.clone()).await.refused().await.code, RefusedCode::NotAuthorized);
    lose(channel, joined);
    let mut joined = broker.join().await;
    assert_eq!(joined.open_signed(signed).await.refused().await.code, RefusedCode::NotAuthorized);
    assert!(lives(&mark), "and all of that has harmed nothing");
    let (_channel, answer) = joined.resume(&cert, kind, &said).await;
    assert!(matches!(answer, Some(Frame::Resumed { .. })));
}

#[tokio::test]
async fn promise_3_one_certificate_one_session_another_sessions_certificate_resumes_nothing_of_it() {
    let (broker, _device, joined) = joined().await;
    let mark = mark();
    let (mut joined, kind, said) = kept(&broker, joined, &Cert::default(), &mark).await;
    let at = Some(Received { data: said.out.len() as u64, stderr: 0 });

    // Another session's good certificate, for its own session, and aimed at this one.
    let other = Cert {
        key_id: "person=ben@example.com grant=R-7K2M9QXD session=S-00000001".into(),
        serial: 8,
        ..Cert::default()
    };
    for (session, code) in
        [("S-00000001", RefusedCode::Gone), (session_id().as_str(), RefusedCode::NotAuthorized)]
    {
        let mut body = joined.body(&other, kind.clone());
        (body.resume, body.session) = (at, session.parse().unwrap());
        assert_eq!(joined.open_body(&body).await.refused().await.code, code, "{session}");
    }
    // Even with the serial of this one's certificate.
    let mut body = joined.body(&Cert { serial: Cert::default().serial, ..other }, kind.clone());
    (body.resume, body.session) = (at, "S-00000001".parse().unwrap());
    assert_eq!(joined.open_body(&body).await.refused().await.code, RefusedCode::Gone);
    // Another certificate for the same session, and another channel of it.
    let answer = joined.resume(&Cert { serial: 8, ..Cert::default() }, kind.clone(), &said).await;
    assert_eq!(refusal(answer), RefusedCode::Gone);
    let mut body = joined.body(&Cert::default(), kind.clone());
    (body.resume, body.channel) = (at, 1);
    assert_eq!(joined.open_body(&body).await.refused().await.code, RefusedCode::Gone);
    assert!(lives(&mark));

    // Offsets that were never sent end the channel.
    let past = Said { out: vec![0; said.out.len() + 1], ..Said::default() };
    let (_channel, answer) = joined.resume(&Cert::default(), kind, &past).await;
    assert!(matches!(answer, Some(Frame::Close { code: CloseCode::Protocol, .. })), "{answer:?}");
    gone(&mark).await;
}

#[tokio::test]
async fn a_shim_that_is_stopped_while_it_keeps_a_channel_ends_it_first() {
    let (broker, mut device, joined) = joined().await;
    let mark = mark();
    let (joined, ..) = kept(&broker, joined, &Cert::default(), &mark).await;
    drop((joined, broker));
    device.logged("trying again").await;
    assert!(lives(&mark));
    let pid = nix::unistd::Pid::from_raw(i32::try_from(device.pid()).unwrap());
    let asked = Instant::now();
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(soon("the shim to stop", device.shim.as_mut().unwrap().wait()).await.unwrap().success());
    assert!(!lives(&mark));
    assert!(asked.elapsed() < Duration::from_secs(5));
}
