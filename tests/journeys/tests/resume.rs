//! The device's connection is lost and comes back: the engineer sees a pause, not a lost shell.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use journeys::{Device, Proxy, World, marker, sleepers, until};
use std::time::{Duration, Instant};

fn world_with_a_bad_network(id: &str, more: &str) -> (World, Proxy, Device) {
    behind_a_bad_network(World::start(), id, more)
}

fn behind_a_bad_network(world: World, id: &str, more: &str) -> (World, Proxy, Device) {
    let proxy = Proxy::to(world.port("https"));
    let device = Device::enrol_behind(&world, id, &proxy, more);
    world.ask(id, "20m");
    (world, proxy, device)
}

/// Cuts the connection and waits until the device is back.
fn cut(world: &World, proxy: &Proxy, device: &Device) {
    let before = proxy.accepted();
    proxy.cut();
    until("the device to dial again", || proxy.accepted() > before);
    device.is_online(world);
}

/// Bytes that repeat nowhere.
fn bytes(count: u32) -> Vec<u8> {
    (0..count / 8).flat_map(|n| format!("{n:07}\n").into_bytes()).collect()
}

#[test]
fn a_terminal_that_prints_and_one_where_nobody_types_outlive_lost_connections() {
    let (world, proxy, device) = world_with_a_bad_network("gw-modem", "");
    let mut printing = world.ssh_start(
        "gw-modem",
        &["-tt"],
        "stty -onlcr; i=1; while [ $i -le 1500 ]; do echo line $i; i=$((i+1)); sleep 0.003; done; echo all",
    );
    let mut idle = world.ssh_start("gw-modem", &["-tt"], "echo ready; read line; echo got $line");
    idle.shows("ready");
    for line in ["line 100\n", "line 600\n", "line 1100\n"] {
        printing.shows(line);
        cut(&world, &proxy, &device);
    }
    idle.complains("the device's connection was lost; waiting for it");
    idle.complains("the device is back after");
    idle.send(b"words\n");
    idle.shows("got words");
    assert_eq!(idle.finish().ok().code(), 0);
    let done = printing.finish().ok();
    let mut expected: Vec<_> = (1..=1500).map(|n| format!("line {n}")).collect();
    expected.push("all".to_owned());
    assert!(done.out().lines().eq(expected));

    let session = world.sessions("gw-modem")[0]["id"].as_str().unwrap().to_owned();
    assert_eq!(world.ended(&session)["end_reason"], "closed");
    world.audited("session.waiting", &[&session]);
    world.audited("session.resumed", &[&session]);
    world.evidence_is_whole();
}

#[test]
fn files_that_go_up_and_down_are_whole_though_the_connection_is_lost() {
    let (world, proxy, device) = world_with_a_bad_network("gw-files", "");
    let sent = bytes(24_000_000);
    let (up, down) = (device.dir.join("up"), device.dir.join("down"));
    std::fs::write(&down, &sent).unwrap();
    let mut uploading = world.ssh_start("gw-files", &[], &format!("cat > {}", up.display()));
    let mut downloading = world.ssh_start("gw-files", &[], &format!("cat {}", down.display()));
    until("the download to begin", || !downloading.out().is_empty());
    std::thread::scope(|scope| {
        let feeding = scope.spawn(|| {
            uploading.send(&sent);
            uploading
        });
        for at in [1_000_000, 6_000_000, 12_000_000] {
            until("more of both", || {
                std::fs::metadata(&up).is_ok_and(|file| file.len() > at) || feeding.is_finished()
            });
            cut(&world, &proxy, &device);
        }
        let done = feeding.join().unwrap().finish().ok();
        assert_eq!(done.stderr, "", "files are not told of it");
    });
    downloading.shows(std::str::from_utf8(&sent[sent.len() - 8..]).unwrap());
    let done = downloading.finish().ok();
    assert!(done.stdout == sent, "{} bytes came down", done.stdout.len());
    let arrived = std::fs::read(up).unwrap();
    assert!(arrived == sent, "{} bytes went up", arrived.len());
    world.evidence_is_whole();
}

#[test]
fn a_connection_that_dies_in_silence_is_replaced_and_the_session_goes_on() {
    let (world, proxy, device) = world_with_a_bad_network("gw-silent", "keepalive_s = 1");
    let mut session = world.ssh_start("gw-silent", &["-tt"], "echo ready; read line; echo got $line");
    session.shows("ready");
    let before = proxy.accepted();
    proxy.swallow();
    // Typed into the void: the broker has it, and sends it again.
    session.send(b"words\n");
    until("the device to dial again, from another port", || proxy.accepted() > before);
    device.is_online(&world);
    session.shows("got words");
    assert_eq!(session.finish().ok().code(), 0);
    assert!(!world.has_event("device.clone_suspected", &["gw-silent"]), "it is no clone");
    world.evidence_is_whole();
}

#[test]
fn promise_4_access_ends_on_time_a_device_that_stays_away_ends_the_session_on_both_sides() {
    // The broker waits longer than this device.
    let world = World::start_with("[sessions]\nresume_grace_s = 12\n");
    let (world, proxy, device) = behind_a_bad_network(world, "gw-away", "resume_grace_s = 3");
    let marker = marker();
    let mut session =
        world.ssh_start("gw-away", &["-tt"], &format!("echo ready; setsid sleep {marker} & sleep {marker}"));
    session.shows("ready");
    until("both processes", || sleepers(&marker).len() == 2);
    let id = world.live_session("gw-away");
    proxy.open(false);
    proxy.cut();
    let lost = Instant::now();
    session.complains("waiting for it, 12 s at most");
    assert_eq!(sleepers(&marker).len(), 2, "they are kept for a while");
    until("the processes to be gone", || sleepers(&marker).is_empty());
    assert!(session.is_running(), "gone at the device after {:?}, and not before", lost.elapsed());
    until("the broker to give the device up, too", || !session.is_running());
    assert!(lost.elapsed() > Duration::from_secs(11), "{:?}", lost.elapsed());
    let done = session.ends();
    assert_ne!(done.code(), 0, "{done}");
    let said = format!("{}{}", done.out(), done.stderr);
    assert!(
        said.contains("the connection to the device is lost: it did not come back within 12 s"),
        "{done}"
    );
    assert_eq!(world.ended(&id)["end_reason"], "device_lost");
    proxy.open(true);
    device.is_online(&world);
    assert_eq!(world.ssh(&["diag@gw-away.daypass", "echo again"]).ok().out(), "again\n");
    world.evidence_is_whole();
}

#[test]
fn promise_4_access_ends_on_time_what_a_device_kept_for_a_broker_that_died_ends_when_it_is_back() {
    let world = World::start();
    let proxy = Proxy::to(world.port("https"));
    let device = Device::enrol_behind(&world, "gw-orphan", &proxy, "resume_grace_s = 600");
    world.ask("gw-orphan", "20m");
    let marker = marker();
    let session = world.ssh_start("gw-orphan", &["-tt"], &format!("setsid sleep {marker} & sleep {marker}"));
    until("both processes", || sleepers(&marker).len() == 2);
    let id = world.live_session("gw-orphan");
    world.crash();
    assert_ne!(session.ends().code(), 0);
    assert_eq!(sleepers(&marker).len(), 2, "kept: the device cannot know that nobody will come");
    world.start_again();
    device.is_online(&world);
    until("the processes to be gone", || sleepers(&marker).is_empty());
    assert_eq!(world.ended(&id)["end_reason"], "interrupted");
    assert_eq!(world.ssh(&["diag@gw-orphan.daypass", "echo again"]).ok().out(), "again\n");
    world.evidence_is_whole();
}
