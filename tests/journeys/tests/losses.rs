//! What is lost on the way: a shim, a broker. Everybody is told, nothing runs on, and all comes back.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use journeys::{Device, Proxy, World, marker, sleepers, until};
use std::time::Duration;

#[test]
fn a_shim_that_is_killed_takes_its_sessions_along_and_the_engineer_is_told() {
    let world = World::start();
    let mut device = Device::enrol(&world, "gw-killed", "lab");
    world.ask("gw-killed", "10m");
    let marker = marker();
    let command = format!("setsid sleep {marker} & sleep {marker}");
    let session = world.ssh_start("gw-killed", &["-tt"], &command);
    until("both processes on the device", || sleepers(&marker).len() == 2);
    let id = world.live_session("gw-killed");
    device.kill();
    until("the processes to be gone", || sleepers(&marker).is_empty());
    // The broker cannot know that yet, and waits for the device.
    session.complains("the device's connection was lost; waiting for it");
    let refused = world.ssh(&["diag@gw-killed.daypass", "echo reached"]).with(255);
    refused.says("not connected");

    device.start();
    device.is_online(&world);
    let done = session.ends();
    assert_ne!(done.code(), 0, "{done}");
    let said = format!("{}{}", done.out(), done.stderr);
    assert!(
        said.contains("the connection to the device is lost: the processes of this session are gone"),
        "{done}"
    );
    assert_eq!(world.ended(&id)["end_reason"], "device_lost");
    assert_eq!(world.ssh(&["diag@gw-killed.daypass", "echo again"]).ok().out(), "again\n");
    world.evidence_is_whole();
}

#[test]
fn a_broker_that_stops_tells_the_engineer_and_devices_come_back_by_themselves() {
    let world = World::start();
    let mut device = Device::enrol(&world, "gw-patient", "lab");
    world.ask("gw-patient", "20m");
    let marker = marker();
    let session = world.ssh_start("gw-patient", &["-tt"], &format!("setsid sleep {marker} & sleep {marker}"));
    until("both processes on the device", || sleepers(&marker).len() == 2);
    let id = world.live_session("gw-patient");
    world.stop();
    until("the processes to be gone", || sleepers(&marker).is_empty());
    let done = session.ends();
    assert_ne!(done.code(), 0, "{done}");
    let said = format!("{}{}", done.out(), done.stderr);
    assert!(said.contains("the broker is stopping"), "{done}");
    assert!(device.shim().is_running());
    // It said goodbye to everybody: what was recorded is closed under its seal, and the device has nothing left.
    assert_eq!(world.sql(&format!("SELECT end_reason FROM session WHERE id = '{id}'")), ["broker_stopped"]);
    let states = world.sql(&format!("SELECT DISTINCT state FROM recording WHERE session = '{id}'"));
    assert_eq!(states, ["closed"]);
    world.evidence_is_whole();

    world.start_again();
    assert_eq!(world.ended(&id)["end_reason"], "broker_stopped");
    device.is_online(&world);
    // The grant outlives the broker that made it.
    assert_eq!(world.ssh(&["diag@gw-patient.daypass", "echo again"]).ok().out(), "again\n");
    world.evidence_is_whole();
}

#[test]
fn devices_that_lost_their_broker_come_back_at_times_of_their_own() {
    /// Between the first and the last, of six that wait for up to six seconds each.
    const APART_MS: i64 = 300;
    let world = World::start();
    let mut fleet: Vec<_> =
        (0..6).map(|number| Device::enrol(&world, &format!("gw-fleet-{number}"), "lab")).collect();
    for device in &mut fleet {
        device.kill();
        let config = device.dir.join("device.toml");
        let text = std::fs::read_to_string(&config).unwrap();
        let patient = text.replace("reconnect_max_s = 1\n", "reconnect_max_s = 6\n");
        assert_ne!(text, patient);
        std::fs::write(&config, patient).unwrap();
        device.start();
        device.is_online(&world);
    }
    world.crash();
    // Long enough for the waits to grow.
    std::thread::sleep(Duration::from_secs(6));
    let last = world.sql("SELECT MAX(seq) FROM audit_event");
    world.start_again();
    for device in &fleet {
        device.is_online(&world);
    }
    let since = format!("device LIKE 'gw-fleet-%' AND seq > {}", last[0]);
    let came = world
        .sql(&format!("SELECT at FROM audit_event WHERE kind = 'device.connected' AND {since} ORDER BY at"));
    let came: Vec<i64> = came.iter().map(|at| at.parse().unwrap()).collect();
    assert_eq!(came.len(), fleet.len(), "each came once");
    println!("came at {:?} ms", came.iter().map(|at| at - came[0]).collect::<Vec<_>>());
    assert!(came[came.len() - 1] - came[0] > APART_MS, "in one wave: {came:?}");
    let refused =
        world.sql(&format!("SELECT kind FROM audit_event WHERE kind = 'device.refused' AND {since}"));
    assert!(refused.is_empty(), "{refused:?}");
}

#[test]
fn an_idle_device_says_nothing_but_a_ping_and_hears_nothing_but_its_answer() {
    /// A WebSocket ping, masked, and its pong, each a TLS record of its own.
    const EXCHANGE: usize = 28 + 24;
    /// Longer than the ten seconds after which yamux would measure the round trip.
    const KEEPALIVE: Duration = Duration::from_secs(12);
    let world = World::start();
    let proxy = Proxy::to(world.port("https"));
    let more = format!("keepalive_s = {}", KEEPALIVE.as_secs());
    let _device = Device::enrol_behind(&world, "gw-idle", &proxy, &more);
    let mut said = proxy.carried();
    until("the hello and the first words of the control stream to be over", || {
        let before = std::mem::replace(&mut said, proxy.carried());
        std::thread::sleep(Duration::from_secs(1));
        before == proxy.carried()
    });
    let (said, began) = (proxy.carried(), std::time::Instant::now());
    until("two keepalives", || proxy.carried() >= said + 2 * EXCHANGE);
    let exchanges = usize::try_from(began.elapsed().as_secs() / KEEPALIVE.as_secs()).unwrap() + 1;
    assert!(proxy.carried() <= said + exchanges * EXCHANGE, "{} bytes", proxy.carried() - said);
    assert!(began.elapsed() > KEEPALIVE, "two keepalives are one apart");
}
