//! Access ends, and nothing of it is left on the device.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a broken test may break")]

mod broker;

use broker::*;
use daypass_protocol::tunnel::control::{FromDevice, ToDevice};
use daypass_protocol::tunnel::frame::{CloseCode, Frame};
use daypass_protocol::tunnel::hello::Welcome;
use daypass_protocol::tunnel::open::{OpenKind, RefusedCode};
use std::time::Duration;
use tokio::time::Instant;

async fn joined() -> (Broker, Device, Joined) {
    let broker = Broker::start().await;
    let mut device = Device::enrolled(&broker);
    device.run();
    let joined = broker.join().await;
    (broker, device, joined)
}

/// A command that leaves processes in its own group, in another session, twice removed, and deaf to
/// SIGHUP and SIGTERM; all of them named by `mark`.
fn spreading(mark: &str) -> OpenKind {
    exec(&format!(
        "sleep {mark} & setsid sleep {mark} & nohup sleep {mark} >/dev/null 2>&1 & \
         (setsid sh -c 'trap \"\" HUP TERM; env -i setsid sleep {mark} & sleep {mark}' &) ; \
         sh -c 'trap \"\" HUP TERM INT; while :; do sleep {mark}; done' & \
         sleep 0.2; echo spread; wait"
    ))
}

async fn spread(joined: &mut Joined, cert: &Cert, mark: &str) -> (Channel, Said) {
    let mut channel = joined.open_with(cert, spreading(mark)).await;
    let mut said = Said::default();
    channel.until(&mut said, "spread\n").await;
    assert!(lives(mark));
    (channel, said)
}

#[tokio::test]
async fn the_end_of_the_certificate_ends_every_process_of_the_session() {
    let (_broker, _device, mut joined) = joined().await;
    let mark = mark();
    let until = now() + Duration::from_secs(3);
    let until = daypass_protocol::time::Timestamp::from_secs(until.as_secs());
    let cert = Cert { until, ..Cert::default() };
    let (mut channel, mut said) = spread(&mut joined, &cert, &mark).await;
    channel.rest_into(&mut said).await;
    assert_eq!(said.close.as_ref().unwrap().0, CloseCode::Expired, "{said:?}");
    let late = until.until(now());
    assert!(now() >= until, "not before its time");
    assert!(late < Duration::from_millis(500), "the broker was told {late:?} late");
    let took = gone(&mark).await;
    println!("told {late:?} after valid_before, the last process gone {took:?} after that");
    assert!(took < Duration::from_secs(2));
    // And the certificate opens nothing any more.
    assert_eq!(joined.refusal(&cert, exec("true")).await.code, RefusedCode::NotAuthorized);
}

#[tokio::test]
async fn ending_a_session_ends_every_process_of_it_and_of_no_other() {
    let (_broker, device, mut joined) = joined().await;
    let (ours, theirs) = (mark(), mark());
    let (mut channel, mut said) = spread(&mut joined, &Cert::default(), &ours).await;
    let mut other = joined.body(
        &Cert { key_id: "person=ben@example.com session=S-00000001".into(), serial: 8, ..Cert::default() },
        exec(&format!("setsid sleep {theirs} & echo up; wait")),
    );
    other.session = "S-00000001".parse().unwrap();
    let mut neighbour = joined.open_body(&other).await;
    assert_eq!(neighbour.next().await, Some(Frame::Opened));
    neighbour.until(&mut Said::default(), "up\n").await;

    let started = Instant::now();
    joined.tell(&ToDevice::EndSession { session: session_id(), reason: "by Chloe".into() }).await;
    channel.rest_into(&mut said).await;
    let told = started.elapsed();
    assert_eq!(said.close, Some((CloseCode::Ended, "the session was ended: by Chloe".into())));
    assert_eq!(joined.told().await, Some(FromDevice::SessionGone { session: session_id() }));
    println!("closed after {told:?}, all processes gone after {:?}", started.elapsed());
    assert!(!lives(&ours), "session_gone was said too early");
    assert!(lives(&theirs), "a neighbour was hit");

    // It stays ended, though its certificate is still valid.
    assert_eq!(joined.refusal(&Cert::default(), exec("true")).await.code, RefusedCode::NotAuthorized);
    // The owner can read who was there.
    let journal = std::fs::read_to_string(device.journal()).unwrap();
    let lines: Vec<serde_json::Value> =
        journal.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 3, "{journal}");
    assert_eq!((&lines[0]["event"], &lines[0]["person"]), (&"opened".into(), &"ana@example.com".into()));
    assert_eq!((&lines[2]["event"], &lines[2]["session"]), (&"ended".into(), &"S-7K2M9QXD".into()));
}

#[tokio::test]
async fn a_session_that_does_not_run_is_gone_at_once() {
    let (_broker, _device, mut joined) = joined().await;
    joined.tell(&ToDevice::EndSession { session: session_id(), reason: "x".into() }).await;
    assert_eq!(joined.told().await, Some(FromDevice::SessionGone { session: session_id() }));
}

#[tokio::test]
async fn a_suspended_device_ends_its_sessions_and_opens_none_until_it_is_resumed() {
    let (_broker, _device, mut joined) = joined().await;
    let mark = mark();
    let (mut channel, mut said) = spread(&mut joined, &Cert::default(), &mark).await;
    joined.tell(&ToDevice::Suspend { reason: "theft".into() }).await;
    channel.rest_into(&mut said).await;
    assert_eq!(said.close.unwrap().0, CloseCode::Suspended);
    gone(&mark).await;
    assert_eq!(joined.refusal(&Cert::default(), exec("true")).await.code, RefusedCode::SwitchedOff);
    joined.tell(&ToDevice::Resume).await;
    joined.tell(&ToDevice::Tick { time: now() }).await;
    assert!(matches!(joined.told().await, Some(FromDevice::Tock { sessions, .. }) if sessions.is_empty()));
    assert_eq!(joined.open(exec("echo back")).await.rest().await.text(), "back\n");
}

#[tokio::test]
async fn a_device_that_is_suspended_when_it_connects_opens_nothing() {
    let broker = Broker::start().await;
    let mut device = Device::enrolled(&broker);
    device.run();
    let welcome = Welcome { v: 1, bundle: None, accepts_sessions: false };
    let mut joined = broker.accept().await.welcome(welcome).await;
    assert_eq!(joined.refusal(&Cert::default(), exec("true")).await.code, RefusedCode::SwitchedOff);
}

#[tokio::test]
async fn a_retired_device_ends_its_sessions_wipes_its_key_and_never_comes_back() {
    let (_broker, mut device, mut joined) = joined().await;
    let mark = mark();
    let (mut channel, mut said) = spread(&mut joined, &Cert::default(), &mark).await;
    joined.tell(&ToDevice::Retire { reason: "sold".into() }).await;
    channel.rest_into(&mut said).await;
    assert_eq!(said.close.unwrap().0, CloseCode::Suspended);
    assert_eq!(joined.told().await, Some(FromDevice::Wiped));
    assert!(!lives(&mark));
    let status = soon("the shim to stop", device.shim.as_mut().unwrap().wait()).await.unwrap();
    assert!(status.success());
    let mut left: Vec<_> =
        std::fs::read_dir(device.state().path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["lock", "retired"]);
    // Started again, by an init system say, it stops at once.
    device.run();
    assert!(soon("the end", device.shim.as_mut().unwrap().wait()).await.unwrap().success());
}

#[tokio::test]
async fn a_revoked_certificate_ends_its_running_session() {
    let (_broker, _device, mut joined) = joined().await;
    let mut channel = joined.open(exec("echo up; sleep 600")).await;
    let mut said = Said::default();
    channel.until(&mut said, "up\n").await;
    let mut newer = bundle(6);
    newer.revoked_serials.push(Cert::default().serial);
    joined.tell(&ToDevice::Bundle { bundle: sealed_bundle(&newer) }).await;
    assert_eq!(joined.told().await, Some(FromDevice::BundleHeld { version: 6 }));
    channel.rest_into(&mut said).await;
    assert_eq!(said.close.unwrap().0, CloseCode::Ended);
    assert_eq!(joined.refusal(&Cert::default(), exec("true")).await.code, RefusedCode::NotAuthorized);
}

#[tokio::test]
async fn without_a_grace_the_loss_of_the_tunnel_ends_the_session_and_the_device_comes_back() {
    let broker = Broker::start().await;
    let mut device = Device::enrolled(&broker);
    device.run_with("resume_grace_s = 0");
    let mut joined = broker.join().await;
    let mark = mark();
    let (channel, _) = spread(&mut joined, &Cert::default(), &mark).await;
    drop((channel, joined));
    gone(&mark).await;
    let mut again = broker.join().await;
    assert_eq!(again.open(exec("echo again")).await.rest().await.text(), "again\n");
}

#[tokio::test]
async fn a_channel_that_the_broker_closes_or_drops_leaves_no_process() {
    let (_broker, _device, mut joined) = joined().await;
    let (closed, dropped) = (mark(), mark());
    let (mut channel, _) = spread(&mut joined, &Cert::default(), &closed).await;
    channel.send(Frame::Close { code: CloseCode::Done, message: String::new() }).await;
    gone(&closed).await;
    let (channel, _) = spread(&mut joined, &Cert::default(), &dropped).await;
    drop(channel);
    gone(&dropped).await;
}

#[tokio::test]
async fn a_command_that_ends_by_itself_leaves_no_process_behind() {
    let (_broker, _device, mut joined) = joined().await;
    let mark = mark();
    let started = Instant::now();
    let command = format!(
        "nohup sleep {mark} >/dev/null 2>&1 & setsid sleep {mark} >/dev/null 2>&1 </dev/null & echo ok"
    );
    let said = joined.open(exec(&command)).await.rest().await;
    assert_eq!(said.text(), "ok\n");
    assert!(started.elapsed() < Duration::from_secs(1), "what stays behind does not delay the answer");
    gone(&mark).await;
}

#[tokio::test]
async fn the_shims_own_death_ends_every_process_of_its_sessions() {
    let (_broker, mut device, mut joined) = joined().await;
    let mark = mark();
    let _held = spread(&mut joined, &Cert::default(), &mark).await;
    device.shim.as_mut().unwrap().kill().await.unwrap();
    gone(&mark).await;
}

#[tokio::test]
async fn the_death_of_a_monitor_frees_no_process() {
    let (_broker, device, mut joined) = joined().await;
    let mark = mark();
    let (mut channel, mut said) = spread(&mut joined, &Cert::default(), &mark).await;
    let children = format!("/proc/{0}/task/{0}/children", device.pid());
    let monitor: i32 = std::fs::read_to_string(children).unwrap().trim().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(monitor), nix::sys::signal::Signal::SIGKILL).unwrap();
    channel.rest_into(&mut said).await;
    assert_eq!(said.close.unwrap().0, CloseCode::Failed);
    gone(&mark).await;
    // The shim itself goes on, and holds no zombies.
    assert_eq!(joined.open(exec("echo on")).await.rest().await.text(), "on\n");
}

#[tokio::test]
async fn a_stopped_shim_ends_its_sessions_and_says_so() {
    let (_broker, mut device, mut joined) = joined().await;
    let mark = mark();
    let (mut channel, mut said) = spread(&mut joined, &Cert::default(), &mark).await;
    let pid = nix::unistd::Pid::from_raw(i32::try_from(device.pid()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    channel.rest_into(&mut said).await;
    assert_eq!(said.close.unwrap().0, CloseCode::Suspended);
    assert!(soon("the shim to stop", device.shim.as_mut().unwrap().wait()).await.unwrap().success());
    gone(&mark).await;
}

#[tokio::test]
async fn sessions_run_as_the_logins_user_who_cannot_become_root_again() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("needs root; as an ordinary user only that user is served, which config tests");
        return;
    }
    let broker = Broker::start().await;
    let mut device = Device::enrolled(&broker);
    let config = device.configure("");
    let text = std::fs::read_to_string(&config).unwrap().replace("\"root\"", "\"nobody\"");
    std::fs::write(&config, text).unwrap();
    device.shim = Some(shim(&["run", "--config", config.to_str().unwrap()]).spawn().unwrap());
    let mut joined = broker.join().await;
    let said = joined
        .open(exec("id -u; id -g; id -G; grep -E '^(Uid|Gid|CapEff)' /proc/self/status; pwd"))
        .await
        .rest()
        .await;
    let text = said.text();
    assert!(text.starts_with("65534\n65534\n65534\n"), "{text}");
    assert!(text.contains("Uid:\t65534\t65534\t65534\t65534\n"), "{text}");
    assert!(text.contains("Gid:\t65534\t65534\t65534\t65534\n"), "{text}");
    assert!(text.contains("CapEff:\t0000000000000000\n"), "{text}");
    // The terminal belongs to the user.
    let mut channel = joined.open(OpenKind::Shell { pty: pty() }).await;
    let mut said = Said::default();
    channel.data(b"stat -c 'owner %u' $(tty)\n").await;
    channel.until(&mut said, "owner 65534\r\n").await;
}
