//! Promise 4: access ends on time, and everything that ran on the device ends with it.
#![allow(
    non_snake_case,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests, named for their promise"
)]

use journeys::{Device, Done, Program, World, marker, sleepers, until};
use nix::sys::signal::Signal;
use std::time::Instant;

/// A session on a device of its own, with a process that left its terminal and its process group.
struct Running {
    device: Device,
    request: String,
    session: String,
    ssh: Program,
    marker: String,
}

impl Running {
    fn start(world: &World, device: &str, duration: &str) -> Self {
        let device = Device::enrol(world, device, "lab");
        let request = world.ask(&device.id, duration);
        let marker = marker();
        let command = format!("setsid sleep {marker} & sleep {marker}");
        let ssh = world.ssh_start(&device.id, &["-tt"], &command);
        until("both processes on the device", || sleepers(&marker).len() == 2);
        let session = world.live_session(&device.id);
        Self { device, request, session, ssh, marker }
    }

    /// Does it, waits until nothing of the session is left on the device, and prints how long that took.
    fn ends_by(self, world: &World, what: &str, act: impl FnOnce(&Self)) -> (Device, Done) {
        let began = Instant::now();
        act(&self);
        let answered = began.elapsed();
        until(&format!("the processes to be gone after {what}"), || sleepers(&self.marker).is_empty());
        println!(
            "{what}: the command took {} ms, the device was empty {} ms after it began",
            answered.as_millis(),
            began.elapsed().as_millis()
        );
        let done = self.ssh.ends();
        assert_ne!(done.code(), 0, "{done}");
        world.ended(&self.session);
        (self.device, done)
    }
}

fn said(done: &Done) -> String {
    format!("{}{}", done.out(), done.stderr)
}

#[test]
fn promise_4_access_ends_on_time__when_the_window_is_over() {
    let world = World::shared();
    let running = Running::start(&world, "gw-expiry", "30s");
    let session = running.session.clone();
    let grant = world.json("engineer", &["requests", "--mine"]);
    let grant = grant.as_array().unwrap().iter().find(|one| one["id"] == running.request.as_str()).unwrap();
    let ends_at = grant["grant"]["ends_at"].as_u64().unwrap();
    let (_device, done) = running.ends_by(&world, "expiry", |_| {});
    let now = u64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap();
    println!(
        "expiry: the session was gone from both ends {} ms after the window",
        now.saturating_sub(ends_at)
    );
    assert!(now >= ends_at, "not before its time");
    assert!(now - ends_at < 5000, "{} ms late", now - ends_at);
    assert!(said(&done).contains("its time is over"), "{done}");
    assert_eq!(world.ended(&session)["end_reason"], "expired");
    let again = world.ssh(&["diag@gw-expiry.daypass", "echo reached"]).with(255);
    assert_eq!(again.out(), "");
}

#[test]
fn promise_4_access_ends_on_time__with_a_warning_one_minute_before() {
    let world = World::shared();
    let device = Device::enrol(&world, "gw-warned", "lab");
    world.ask(&device.id, "63s");
    let mut shell = world.ssh_start(&device.id, &["-tt"], "");
    // On standard error, which the engineer's terminal shows too.
    shell.complains("daypass: your access ends in one minute");
    shell.send(b"exit 4\n");
    let _ = shell.finish().with(4);
}

#[test]
fn promise_4_access_ends_on_time__when_the_grant_is_revoked() {
    let world = World::shared();
    let running = Running::start(&world, "gw-revoked", "10m");
    let session = running.session.clone();
    let (device, done) = running.ends_by(&world, "revocation", |running| {
        let args = ["revoke", &running.request, "--reason", "wrong customer"];
        let _ = world.cli("approver", &args).ok();
    });
    assert!(said(&done).contains("your access was revoked"), "{done}");
    assert_eq!(world.ended(&session)["end_reason"], "revoked");
    let journal = device.journal();
    let again = world.ssh(&["diag@gw-revoked.daypass", "echo reached"]).with(255);
    assert_eq!(again.out(), "");
    assert_eq!(device.journal(), journal, "nothing reached the device");
}

#[test]
fn promise_4_access_ends_on_time__when_a_person_ends_the_session() {
    let world = World::shared();
    let running = Running::start(&world, "gw-ended", "10m");
    let session = running.session.clone();
    let (_device, done) = running.ends_by(&world, "daypass end", |running| {
        let _ = world.cli("reviewer", &["end", &running.session, "--reason", "not what was asked for"]).ok();
    });
    assert!(said(&done).contains("the session was ended"), "{done}");
    assert_eq!(world.ended(&session)["end_reason"], "ended_by_person");
}

#[test]
fn promise_4_access_ends_on_time__when_the_device_is_suspended() {
    let world = World::shared();
    let running = Running::start(&world, "gw-suspended", "10m");
    let session = running.session.clone();
    let (device, done) = running.ends_by(&world, "device suspend", |running| {
        let args = ["device", "suspend", &running.device.id, "--reason", "stolen van"];
        let _ = world.cli("operator", &args).ok();
    });
    assert!(said(&done).contains("the device was suspended"), "{done}");
    assert_eq!(world.ended(&session)["end_reason"], "device_suspended");
    let journal = device.journal();
    let again = world.ssh(&["diag@gw-suspended.daypass", "echo reached"]).with(255);
    assert_eq!(again.out(), "");
    assert_eq!(device.journal(), journal, "nothing reached the device");
    let args = ["device", "resume", &device.id, "--reason", "it was the wrong van"];
    let _ = world.cli("operator", &args).ok();
    assert_eq!(world.ssh(&["diag@gw-suspended.daypass", "echo again"]).ok().out(), "again\n");
}

#[test]
fn promise_4_access_ends_on_time__when_policy_changes_and_not_when_it_is_broken() {
    let world = World::start();
    let mut running = Running::start(&world, "gw-policy", "10m");
    // A set that does not parse is refused as a whole: the old one stays in force.
    let extra = world.policies().join("zz-closed.cedar");
    std::fs::write(&extra, "forbid (principal, action == Action::\"connect\"").unwrap();
    world.signal(Signal::SIGHUP);
    world.audited("policy.refused", &["zz-closed"]);
    assert!(running.ssh.is_running());
    assert_eq!(sleepers(&running.marker).len(), 2);
    assert_eq!(world.ssh(&["diag@gw-policy.daypass", "echo open"]).ok().out(), "open\n");

    let session = running.session.clone();
    let (_device, done) = running.ends_by(&world, "a policy that forbids", |_| {
        let text = "@id(\"closed\")\n@description(\"Closed for the night.\")\n\
                    forbid (principal, action == Action::\"connect\", resource);\n";
        std::fs::write(&extra, text).unwrap();
        world.signal(Signal::SIGHUP);
    });
    assert!(said(&done).contains("policy does not allow this session any more"), "{done}");
    assert_eq!(world.ended(&session)["end_reason"], "policy_changed");
    let again = world.ssh(&["diag@gw-policy.daypass", "echo reached"]).with(255);
    assert_eq!(again.out(), "");
}
