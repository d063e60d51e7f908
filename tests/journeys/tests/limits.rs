//! Limits: what is too long, too much or too many ends or is refused with a sentence.
#![allow(
    non_snake_case,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests, named for what they try"
)]

use journeys::{World, marker, sleepers, until};
use nix::sys::signal::Signal;

/// A world whose policy for the lab carries these annotations.
fn world_with(annotations: &str) -> World {
    let world = World::start();
    let file = world.policies().join("support.cedar");
    let text = std::fs::read_to_string(&file).unwrap();
    let limited = text.replace("@id(\"support-lab\")", &format!("@id(\"support-lab\")\n{annotations}"));
    assert_ne!(text, limited);
    std::fs::write(&file, limited).unwrap();
    world.signal(Signal::SIGHUP);
    world.audited("policy.loaded", &[]);
    world
}

#[test]
fn limits__a_terminal_on_which_nobody_types_ends_and_one_that_is_used_does_not() {
    let world = world_with("@idle_timeout(\"4s\")");
    world.ask("gw-0043", "10m");
    let marker = marker();
    // Output alone is nobody typing.
    let command = format!("setsid sleep {marker} & while sleep 0.5; do echo tick; done");
    let mut idle = world.ssh_start("gw-0043", &["-tt"], &command);
    idle.shows("tick");
    let session = world.live_session("gw-0043");
    let done = idle.ends();
    assert_ne!(done.code(), 0);
    let said = format!("{}{}", done.out(), done.stderr);
    assert!(said.contains("nobody typed for too long"), "{said}");
    assert_eq!(world.ended(&session)["end_reason"], "idle");
    until("everything of the session to be gone", || sleepers(&marker).is_empty());

    let mut typed = world.ssh_start("gw-0043", &["-tt"], "cat");
    for n in 0..6 {
        std::thread::sleep(std::time::Duration::from_secs(1));
        typed.send(format!("line {n}\n").as_bytes());
        typed.shows(&format!("line {n}"));
    }
    assert!(typed.is_running(), "typing keeps it");
    drop(typed);
    // Without a terminal there is nobody who could type.
    assert_eq!(world.ssh(&["diag@gw-0043.daypass", "sleep 6; echo done"]).ok().out(), "done\n");
    world.evidence_is_whole();
}

#[test]
fn limits__a_session_that_says_more_than_policy_allows_ends_and_its_recording_is_whole() {
    let world = world_with("@recording_limit(\"2MiB\")");
    world.ask("gw-0043", "10m");
    let done = world.ssh(&["diag@gw-0043.daypass", "head -c 3000000 /dev/zero"]);
    assert_ne!(done.code(), 0);
    assert!(
        done.stderr.contains("the recording of this session has reached its limit of 2 MiB"),
        "{}",
        done.stderr
    );
    assert!(done.stdout.len() <= 2 << 20, "{} bytes were delivered", done.stdout.len());
    let id = world.sessions("gw-0043")[0]["id"].as_str().unwrap().to_owned();
    assert_eq!(world.ended(&id)["end_reason"], "recording_limit");
    // Another session has its own measure.
    let done = world.ssh(&["diag@gw-0043.daypass", "head -c 1000000 /dev/zero"]).ok();
    assert_eq!(done.stdout.len(), 1_000_000);
    world.evidence_is_whole();
    assert!(!world.has_event("recording.interrupted", &[]), "it closed in order");
}

#[test]
fn limits__recordings_that_take_all_they_may_deny_new_sessions_and_harm_none() {
    let world = World::start_with("[recordings]\nmin_free_mib = 16\ntotal_mib = 3\n");
    world.ask("gw-0043", "10m");
    // What cannot be compressed.
    let long = world.ssh_start("gw-0043", &[], "head -c 4000000 /dev/urandom | base64; read x; echo $x");
    until("the output to be sealed", || {
        world.sessions("gw-0043").first().is_some_and(|session| {
            session["recordings"]
                .as_array()
                .is_some_and(|all| all.iter().any(|one| one["bytes"].as_u64().unwrap_or(0) > 4_000_000))
        })
    });
    let refused = world.ssh(&["diag@gw-0043.daypass", "echo reached"]);
    assert_ne!(refused.code(), 0);
    assert_eq!(refused.out(), "");
    refused.says("cannot be recorded");
    let mut long = long;
    long.send(b"still here\n");
    let done = long.ends();
    assert!(done.out().ends_with("still here\n"), "the old session goes on");
    world.evidence_is_whole();
}

#[test]
fn limits__a_device_and_a_person_have_so_many_sessions_and_no_more() {
    let world = World::start_with("[sessions]\nper_device = 2\n");
    world.ask("gw-0043", "10m");
    let mut first = world.ssh_start("gw-0043", &[], "echo one; cat");
    let mut second = world.ssh_start("gw-0043", &[], "echo two; cat");
    first.shows("one");
    second.shows("two");
    let third = world.ssh(&["diag@gw-0043.daypass", "echo reached"]);
    assert_ne!(third.code(), 0);
    assert_eq!(third.out(), "");
    third.says("gw-0043 has 2 sessions open already; that is the limit");
    world.audited("session.refused", &["that is the limit"]);
    drop(first);
    until("room for another", || world.ssh(&["diag@gw-0043.daypass", "true"]).code() == 0);
    drop(second);
}

#[test]
fn limits__policy_counts_channels_and_sessions() {
    let world = world_with("@channel_limit(\"2\") @sessions_per_device(\"1\")");
    world.ask("gw-0043", "10m");
    let socket = world.dir().join("m");
    let socket = socket.to_str().unwrap();
    let mut first = world.ssh_start("gw-0043", &["-M", "-S", socket], "echo one; cat");
    first.shows("one");
    let mut second = world.ssh_start("gw-0043", &["-S", socket], "echo two; cat");
    second.shows("two");
    let third = world.ssh(&["-S", socket, "diag@gw-0043.daypass", "echo three"]);
    assert_ne!(third.code(), 0);
    assert_eq!(third.out(), "");
    let other = world.ssh(&["diag@gw-0043.daypass", "echo other"]).with(255);
    other.says("gw-0043 has 1 sessions open already; that is the limit");
    assert_eq!(other.out(), "");
    assert!(first.is_running() && second.is_running());
    drop(second);
    until("room for a channel", || {
        world.ssh(&["-S", socket, "diag@gw-0043.daypass", "echo three"]).out() == "three\n"
    });
    let _ = first.finish().ok();
}

#[test]
fn limits__recordings_are_removed_when_policy_says_so_and_the_evidence_stays_whole() {
    let world = world_with("@keep_recordings(\"2s\")");
    world.ask("gw-0043", "10m");
    let _ = world.ssh(&["diag@gw-0043.daypass", "echo for a while"]).ok();
    let id = world.sessions("gw-0043")[0]["id"].as_str().unwrap().to_owned();
    world.ended(&id);
    assert!(!journeys::recordings_of(&world.broker(), &id).is_empty());
    world.audited("recordings.removed", &[&id, "policy"]);
    until("the files to be gone", || journeys::recordings_of(&world.broker(), &id).is_empty());
    let played = world.cli("reviewer", &["play", &id]);
    assert_ne!(played.code(), 0);
    played.says("it was kept as long as it had to be");
    world.evidence_is_whole();
}

#[test]
fn limits__however_many_ask_at_once_no_more_sessions_open_than_may() {
    let world = World::start_with("[sessions]\nper_device = 3\n");
    world.ask("gw-0043", "10m");
    let mut all: Vec<_> = (0..12).map(|_| world.ssh_start("gw-0043", &[], "echo in; cat")).collect();
    let mut inside = Vec::new();
    until("everybody to be let in or refused", || {
        let (now, still): (Vec<_>, Vec<_>) =
            all.drain(..).partition(|one: &journeys::Program| one.out().contains("in\n"));
        inside.extend(now);
        all = still;
        all.iter_mut().all(|one| !one.is_running())
    });
    assert_eq!(inside.len(), 3, "as many as may, and no more");
    for refused in all {
        let done = refused.ends();
        assert_eq!(done.out(), "");
        done.says("gw-0043 has 3 sessions open already; that is the limit");
    }
    drop(inside);
    until("room again", || world.ssh(&["diag@gw-0043.daypass", "true"]).code() == 0);
    world.evidence_is_whole();
}
