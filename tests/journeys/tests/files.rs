//! Copying files with the programs that people have: sftp, scp, rsync. What came over sftp is on record by
//! path, size and hash; what came as a command, as a command.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use journeys::{Place, Program, content, sha256};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// The close of a file that was moved `way`.
#[track_caller]
fn moved<'e>(events: &'e [Value], way: &str, path: &Path) -> &'e Value {
    let path = path.to_str().unwrap();
    let found = events.iter().find(|event| {
        event["event"] == "sftp"
            && event["op"] == "close"
            && event["path"]["text"] == path
            && event[way].is_object()
    });
    &found.unwrap_or_else(|| panic!("{way} {path} in {events:#?}"))[way]
}

#[track_caller]
fn is_on_record(events: &[Value], way: &str, path: &Path, content: &[u8]) {
    let moved = moved(events, way, path);
    assert_eq!(moved["bytes"], content.len());
    assert_eq!(moved["sha256"], sha256(content), "{moved}");
    assert_eq!(moved["whole"], true);
}

#[test]
fn sftp_up_and_down_is_equal_and_on_record_by_path_size_and_hash() {
    let place = Place::new("gw-sftp", "sftp");
    let big = content(3_000_001);
    let up = place.write("up", &big);
    let (there, down) = (place.there.join("it"), place.here.join("down"));
    let single = ["-o", "User=diag%gw-sftp", "daypass-gateway-engineer"];
    let host = place.host();
    for way_in in [&[host.as_str()][..], &single] {
        let folder = place.there.join("d");
        let batch = format!(
            "put {} {there}\nget {there} {}\nmkdir {folder}\nrename {there} {folder}/x\nchmod 600 {folder}/x\n\
             symlink x {folder}/link\nls {folder}\nrm {folder}/x\nrm {folder}/link\nrmdir {folder}\n",
            up.display(),
            down.display(),
            there = there.display(),
            folder = folder.display(),
        );
        let done = place.sftp(way_in, &batch);
        assert_eq!(done.code(), 0, "{done}");
        assert!(std::fs::read(&down).unwrap() == big, "what came back differs");
        std::fs::remove_file(&down).unwrap();

        let session = place.session();
        let events = place.events(&session);
        is_on_record(&events, "written", &there, &big);
        is_on_record(&events, "read", &there, &big);
        for (op, path) in [
            ("mkdir", folder.clone()),
            ("posix_rename", there.clone()),
            ("setstat", folder.join("x")),
            ("symlink", folder.join("link")),
            ("remove", folder.join("x")),
            ("rmdir", folder.clone()),
        ] {
            let of = |event: &str| {
                let is = |one: &&Value| {
                    one["event"] == event && one["op"] == op && one["path"]["text"] == path.to_str().unwrap()
                };
                events.iter().position(|one| is(&one)).unwrap_or_else(|| panic!("{op} {events:#?}"))
            };
            assert!(of("sftp_asked") < of("sftp"), "asked before it was done");
            assert_eq!(events[of("sftp")]["result"], "ok");
        }
        // Nothing else was recorded, least of all what was in the files.
        let listed = place.world.json("reviewer", &["sessions", "--device", "gw-sftp"]);
        assert_eq!(listed[0]["recordings"].as_array().unwrap().len(), 1, "{listed:#?}");
        let told = place.world.cli("reviewer", &["play", &session]).ok();
        let put = format!("put {} {} bytes sha256:{}\n", there.display(), big.len(), sha256(&big));
        assert!(told.out().contains(&put), "{told}");
        assert!(told.out().contains(&format!("mkdir {}", folder.display())), "{told}");
    }
    place.world.audited("channel.opened", &["\"kind\":\"sftp\""]);
    place.world.evidence_is_whole();
}

#[test]
fn scp_of_today_copies_over_sftp_both_ways() {
    let place = Place::new("gw-scp", "sftp");
    let bytes = content(700_000);
    let (up, there, down) = (place.write("up", &bytes), place.there.join("it"), place.here.join("down"));
    let remote = format!("{}:{}", place.host(), there.display());
    for (from, to) in [(up.to_str().unwrap(), remote.as_str()), (remote.as_str(), down.to_str().unwrap())] {
        let _ = Program::run(place.command("scp", &[from, to]), b"").ok();
    }
    assert!(std::fs::read(&down).unwrap() == bytes, "what came back differs");
    let sessions = place.world.sessions("gw-scp");
    assert_eq!(sessions.len(), 2);
    let events: Vec<Value> = sessions
        .iter()
        .flat_map(|session| {
            let id = session["id"].as_str().unwrap();
            place.world.ended(id);
            place.events(id)
        })
        .collect();
    is_on_record(&events, "written", &there, &bytes);
    is_on_record(&events, "read", &there, &bytes);
}

#[test]
fn a_hundred_small_files_and_an_empty_one_are_all_on_record() {
    let place = Place::new("gw-small", "sftp");
    let tree = place.here.join("tree");
    std::fs::create_dir_all(&tree).unwrap();
    for i in 0..100 {
        std::fs::write(tree.join(format!("f{i}")), content(i)).unwrap();
    }
    let batch = format!("put -r {} {}\n", tree.display(), place.there.display());
    let done = place.sftp(&[&place.host()], &batch);
    assert_eq!(done.code(), 0, "{done}");
    let events = place.events(&place.session());
    for i in 0..100 {
        is_on_record(&events, "written", &place.there.join(format!("tree/f{i}")), &content(i));
    }
}

#[test]
fn what_the_device_refuses_is_on_record_with_its_answer() {
    let place = Place::new("gw-denied", "sftp");
    let missing = place.there.join("missing");
    let done = place.sftp(&[&place.host()], &format!("get {}\n", missing.display()));
    assert_ne!(done.code(), 0);
    let batch = format!("-rm {0}\n-rmdir {0}\n", missing.display());
    let _ = place.sftp(&[&place.host()], &batch);
    let events = place.events(&place.session());
    let rmdir = events.iter().find(|event| event["event"] == "sftp" && event["op"] == "rmdir").unwrap();
    assert_eq!(rmdir["result"], "no_such_file");
}

#[test]
fn copies_by_command_are_commands_with_byte_counts_whatever_their_first_word() {
    let place = Place::new("gw-legacy", "exec");
    let bytes = content(300_000);
    let (up, there) = (place.write("up", &bytes), place.there.join("it"));
    let remote = format!("{}:{}", place.host(), there.display());
    let commands = |place: &Place| {
        let events = place.events(&place.session());
        let opened = events.iter().find(|event| event["event"] == "channel_opened").unwrap();
        let closed = events.iter().find(|event| event["event"] == "channel_closed").unwrap();
        assert!(!events.iter().any(|event| event["event"].as_str().unwrap().starts_with("sftp")));
        assert_eq!(opened["kind"], "exec");
        (opened["command"]["text"].as_str().unwrap().to_owned(), closed["input_bytes"].as_u64().unwrap())
    };
    let _ = Program::run(place.command("scp", &["-O", up.to_str().unwrap(), &remote]), b"").ok();
    assert!(std::fs::read(&there).unwrap() == bytes);
    let (command, input) = commands(&place);
    assert!(command.starts_with("scp -t "), "{command}");
    assert!(input > 300_000, "{input}");

    std::fs::remove_file(&there).unwrap();
    let mut rsync = Command::new("rsync");
    let shell = format!("ssh -F {}", place.world.home("engineer").join(".ssh/config").display());
    rsync.args(["-e", &shell]).arg(&up).arg(&remote).env("HOME", place.world.home("engineer"));
    let _ = Program::run(rsync, b"").ok();
    assert!(std::fs::read(&there).unwrap() == bytes);
    let (command, input) = commands(&place);
    assert!(command.starts_with("rsync --server "), "{command}");
    assert!(input > 300_000, "{input}");

    // The first word says nothing about what a command does.
    let sneaky = "scp -t /dev/null </dev/null; echo and more";
    let done = place.world.ssh(&[&place.host(), sneaky]);
    assert!(done.out().contains("and more\n"), "{done}");
    assert_eq!(commands(&place).0, sneaky);
}

#[test]
fn a_device_without_an_sftp_server_says_so() {
    let mut place = Place::new("gw-bare", "sftp,exec");
    let config = place.device.dir.join("device.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, format!("sftp_server = \"/nonexistent/sftp-server\"\n{text}")).unwrap();
    place.device.kill();
    place.device.start();
    // The broker may still hold the old connection for a moment.
    journeys::until("the device to take commands again", || {
        place.world.ssh(&[&place.host(), "true"]).code() == 0
    });
    let done = place.sftp(&[&place.host()], "pwd\n");
    assert_ne!(done.code(), 0);
    assert!(done.stderr.contains("this device has no sftp-server"), "{done}");
}
