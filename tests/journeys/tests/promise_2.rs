//! Promise 2: no recorder, no session.
#![allow(
    non_snake_case,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests, named for their promise"
)]

use journeys::{Device, Program, SmallDisk, World, marker, shown, sleepers, until};
use std::process::Command;

#[test]
fn promise_2_no_recorder_no_session__a_full_disk_ends_the_session_and_nothing_is_delivered_unrecorded() {
    let world = World::start();
    let disk = SmallDisk::mount(&world.broker().join("data/recordings"), 22);
    world.ask("gw-0043", "10m");
    let marker = marker();
    // The terminal's own echo and line ends are off: what the device sends is what is compared.
    let flood = format!("stty raw -echo; setsid sleep {marker} & seq -f %060.0f 100000000");
    let mut session = world.ssh_start("gw-0043", &["-tt"], &flood);
    session.shows("000000000001");
    let done = session.ends();
    assert_ne!(done.code(), 0);
    let out = done.out();
    let said = format!("{}{}", &out[out.len().saturating_sub(600)..], done.stderr);
    assert!(said.contains("recording failed, and nothing happens here unrecorded"), "{said}");
    until("everything of the session to be gone", || sleepers(&marker).is_empty());

    let id = world.sessions("gw-0043")[0]["id"].as_str().unwrap().to_owned();
    assert_eq!(world.ended(&id)["end_reason"], "recorder_failed");
    world.audited("session.ended", &[&id, "recorder_failed"]);

    // What was delivered is in the recording, byte for byte.
    let delivered = out.split("\r\ndaypass: ").next().unwrap();
    let raw = world.cli("reviewer", &["play", &id, "--raw"]).ok();
    let recorded = shown(&raw.out());
    // The gateway's own line comes after what the device sent.
    println!("delivered {} bytes, recorded {}", delivered.len(), recorded.len());
    assert!(delivered.len() > 100_000);
    assert!(recorded.starts_with(delivered), "delivered and not recorded");

    // With the disk still full, nobody comes in.
    let journal = world.journal("gw-0043");
    disk.fill();
    let refused = world.ssh(&["diag@gw-0043.daypass", "echo reached"]).with(255);
    refused.says("cannot be recorded");
    assert_eq!(refused.out(), "");
    assert_eq!(world.journal("gw-0043"), journal, "nothing reached the device");
    // Room again, and it goes on.
    disk.make_room();
    disk.grow(64);
    assert_eq!(world.ssh(&["diag@gw-0043.daypass", "echo again"]).ok().out(), "again\n");
    world.evidence_is_whole();
}

#[test]
fn promise_2_no_recorder_no_session__a_full_disk_ends_a_file_transfer_with_the_reason() {
    let world = World::start();
    let disk = SmallDisk::mount(&world.broker().join("data/recordings"), 22);
    let ask = ["request", "gw-0043", "-l", "diag", "--channel", "sftp", "--reason", "files"];
    let _ = world.cli("engineer", &ask).ok();
    let (here, there) = (world.dir().join("tree"), world.dir().join("there"));
    std::fs::create_dir_all(&here).unwrap();
    std::fs::create_dir_all(&there).unwrap();
    for i in 0..400 {
        std::fs::write(here.join(format!("f{i}")), b"content").unwrap();
    }
    let mut sftp = Command::new("sftp");
    sftp.arg("-F").arg(world.home("engineer").join(".ssh/config")).args(["-b", "-", "diag@gw-0043.daypass"]);
    sftp.env_remove("SSH_AUTH_SOCK").env("HOME", world.home("engineer"));
    let mut transfer = Program::start(sftp);
    transfer.send(format!("mkdir {}/first\n", there.display()).as_bytes());
    until("the first folder to be made", || there.join("first").exists());
    let id = world.live_session("gw-0043");
    disk.fill();
    transfer.send(format!("put -r {} {}\n", here.display(), there.display()).as_bytes());
    let done = transfer.ends();
    assert_ne!(done.code(), 0, "{done}");
    assert!(done.stderr.contains("recording failed, and nothing happens here unrecorded"), "{done}");
    assert_eq!(world.ended(&id)["end_reason"], "recorder_failed");

    // What is on the device is on record, and not all of the tree is there.
    disk.make_room();
    let events = world.cli("reviewer", &["play", &id, "--files", "--json"]).ok().out();
    let made: Vec<_> = std::fs::read_dir(there.join("tree"))
        .map(|dir| dir.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect())
        .unwrap_or_default();
    assert!(made.len() < 400, "{}", made.len());
    for name in made {
        assert!(events.contains(&format!("tree/{name}\"")), "{name} is on the device and not on record");
    }
}

#[test]
fn promise_2_no_recorder_no_session__without_a_place_for_recordings_nobody_comes_in() {
    let world = World::start();
    world.ask("gw-0043", "10m");
    let place = world.broker().join("data/recordings");
    // Gone, and something in its place that is no folder: root cannot write there either.
    let _ = std::fs::rename(&place, place.with_extension("away"));
    std::fs::write(&place, b"not a folder").unwrap();
    for args in [
        &["diag@gw-0043.daypass", "echo reached"][..],
        &["-tt", "diag@gw-0043.daypass", "echo reached"],
        &["-l", "diag%gw-0043", "daypass-gateway-engineer", "echo reached"],
    ] {
        let done = world.ssh(args);
        assert_ne!(done.code(), 0, "{done}");
        let said = format!("{}{}", done.out(), done.stderr);
        assert!(said.contains("cannot be recorded"), "{done}");
        assert!(!said.contains("reached"), "{done}");
    }
    assert_eq!(world.journal("gw-0043"), "", "nothing reached the device");
    std::fs::remove_file(&place).unwrap();
    assert_eq!(world.ssh(&["diag@gw-0043.daypass", "echo again"]).ok().out(), "again\n");
}

#[test]
fn promise_2_no_recorder_no_session__what_was_delivered_is_in_the_recording_of_a_session_that_was_cut() {
    let world = World::shared();
    let device = Device::enrol(&world, "gw-cut", "lab");
    world.ask("gw-cut", "10m");
    let mut session = world.ssh_start("gw-cut", &["-tt"], "stty raw -echo; seq -f line-%010.0f 100000000");
    session.shows("line-0000000999");
    let id = world.live_session(&device.id);
    let _ = world.cli("reviewer", &["end", &id, "--reason", "enough"]).ok();
    let out = session.ends().out();
    let delivered = out.split("\r\ndaypass: ").next().unwrap();
    world.ended(&id);
    let raw = world.cli("reviewer", &["play", &id, "--raw"]).ok();
    let recorded = shown(&raw.out());
    assert!(
        recorded.starts_with(delivered),
        "delivered {} bytes, recorded {}",
        delivered.len(),
        recorded.len()
    );
}
