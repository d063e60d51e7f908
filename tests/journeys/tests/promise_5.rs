//! Promise 5: every decision leaves evidence, and evidence that was touched is found.
#![allow(
    non_snake_case,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests, named for their promise"
)]

use journeys::{World, flip_one_bit, recordings_of};
use std::path::PathBuf;

/// A broker that has stopped, and one recording of it.
fn recorded() -> (World, PathBuf, String) {
    let world = World::start();
    world.ask("gw-0043", "10m");
    let _ = world.ssh(&["diag@gw-0043.daypass", "seq 2000"]).ok();
    let id = world.sessions("gw-0043")[0]["id"].as_str().unwrap().to_owned();
    world.ended(&id);
    world.stop();
    world.evidence_is_whole();
    let file = recordings_of(&world.broker(), &id)
        .into_iter()
        .find(|file| file.to_string_lossy().contains("output"))
        .unwrap();
    (world, file, id)
}

/// `verify` finds it, names the session, and ends with 1.
fn found(world: &World, session: &str) {
    let verified = world.verify().with(1);
    let said = format!("{}{}", verified.out(), verified.stderr);
    assert!(said.contains(session), "{verified}");
    assert!(!said.contains("The evidence is whole."), "{verified}");
}

#[test]
fn promise_5_evidence__one_flipped_bit_in_a_recording_is_found() {
    let (world, file, session) = recorded();
    flip_one_bit(&file);
    found(&world, &session);
    // Put back, all is well: it was the bit that was found.
    flip_one_bit(&file);
    world.evidence_is_whole();
}

#[test]
fn promise_5_evidence__a_truncated_and_a_removed_recording_are_found() {
    let (world, file, session) = recorded();
    let whole = std::fs::read(&file).unwrap();
    std::fs::write(&file, &whole[..whole.len() - 1]).unwrap();
    found(&world, &session);
    std::fs::remove_file(&file).unwrap();
    found(&world, &session);
    std::fs::write(&file, &whole).unwrap();
    world.evidence_is_whole();
}

#[test]
fn promise_5_evidence__a_crash_loses_no_decision_and_marks_what_it_cut() {
    let world = World::start();
    world.ask("gw-0043", "10m");
    let mut session = world.ssh_start("gw-0043", &["-tt"], "echo before-the-crash; cat");
    session.shows("before-the-crash");
    let id = world.live_session("gw-0043");
    world.crash();
    let done = session.ends();
    assert_ne!(done.code(), 0, "{done}");
    world.start_again();
    let ended = world.ended(&id);
    assert_eq!(ended["end_reason"], "interrupted", "{ended}");
    world.audited("session.interrupted", &[&id]);
    world.evidence_is_whole();
    // And on it goes.
    assert_eq!(world.ssh(&["diag@gw-0043.daypass", "echo again"]).ok().out(), "again\n");
    world.evidence_is_whole();
}

#[test]
fn promise_5_evidence__every_step_of_a_request_is_in_the_log() {
    let world = World::start();
    let request = world.ask("gw-0042", "10m");
    world.audited("request.asked", &["ana@example.com", &request, "gw-0042"]);
    let _ = world.cli("approver", &["approve", &request]).ok();
    world.audited("request.answered", &["ben@example.com", &request]);
    world.audited("grant.made", &[&request]);
    let _ = world.ssh(&["diag@gw-0042.daypass", "true"]).ok();
    let id = world.sessions("gw-0042")[0]["id"].as_str().unwrap().to_owned();
    world.audited("session.opened", &[&id]);
    world.audited("channel.opened", &[&id]);
    world.audited("recording.started", &[&id]);
    world.audited("recording.closed", &[&id]);
    world.audited("session.ended", &[&id, "closed"]);
    let _ = world.cli("reviewer", &["play", &id, "--raw"]).ok();
    world.audited("recording.read", &["chloe@example.com", &id]);
    // What was refused, too: the engineer does not run the fleet.
    let refused = world.cli("engineer", &["device", "enrol-token", "--line", "edge-gateway"]);
    assert_eq!(refused.code(), 4, "{refused}");
    world.audited("action.refused", &["ana@example.com", "enrol_device"]);
    world.evidence_is_whole();
}
