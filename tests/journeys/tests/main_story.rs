//! The whole idea, as four people live it; once on each database.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use journeys::{Program, World, programs, until};
use std::process::Command;

/// Ask, approve for less, connect with and without a terminal, replay, verify.
fn story(world: &World) {
    // The request that the demonstration left is in the way of a fresh one.
    let left = world.json("engineer", &["requests", "--mine", "--state", "pending"]);
    let _ = world.cli("engineer", &["cancel", left[0]["id"].as_str().unwrap()]).ok();

    // The engineer asks, waits, and is let in for as long as the approver thinks right.
    let mut waiting = Program::start(world.command(
        "engineer",
        &[
            "ssh",
            "gw-0042",
            "-l",
            "diag",
            "--for",
            "30m",
            "--reason",
            "modem drops",
            "--channel",
            "shell,exec",
            "--",
            "cat; echo apart >&2; exit 7",
        ],
    ));
    waiting.complains("waits for somebody of support-leads");
    let answerable = world.json("approver", &["requests", "--answerable"]);
    assert_eq!(answerable[0]["reason"], "modem drops");
    let request = answerable[0]["id"].as_str().unwrap().to_owned();
    assert!(waiting.is_running());
    assert_eq!(world.journal("gw-0042"), "", "nothing reaches the device before the answer");
    let _ = world.cli("approver", &["approve", &request, "--for", "10m"]).ok();
    waiting.send(b"to the end of input\n");
    let done = waiting.finish().with(7);
    assert_eq!(done.out(), "to the end of input\n", "standard output is apart: {done}");
    done.says("is granted for 10m instead of 30m.").says("apart\n");
    let granted = world.json("engineer", &["requests", "--mine", "--state", "granted"]);
    let grant =
        &granted.as_array().unwrap().iter().find(|one| one["id"] == request.as_str()).unwrap()["grant"];
    let window = grant["ends_at"].as_i64().unwrap() - grant["starts_at"].as_i64().unwrap();
    assert_eq!(window, 600_000, "the approver's ten minutes");

    // A shell on a terminal, by plain ssh.
    let mut shell = world.ssh_start("gw-0042", &["-tt"], "");
    shell.send(b"stty size; echo seen-$((40 + 2)); exit 5\n");
    shell.shows("seen-42");
    let _ = shell.finish().with(5);

    // The reviewer sees what the screen showed.
    let session = world.sessions("gw-0042")[0].clone();
    let id = session["id"].as_str().unwrap();
    let session = world.ended(id);
    assert_eq!(session["person"]["email"], "ana@example.com");
    assert_eq!(session["request"], request.as_str());
    let raw = world.cli("reviewer", &["play", id, "--raw"]).ok();
    let header: serde_json::Value = serde_json::from_str(raw.out().lines().next().unwrap()).unwrap();
    assert_eq!(header["version"], 2, "asciicast: {header}");
    assert!(raw.out().contains("seen-42"), "{raw}");
    let played = world.cli("reviewer", &["play", id, "--speed", "1000"]).ok();
    assert!(played.out().contains("seen-42"), "{played}");

    // The evidence is whole while the broker runs, and afterwards.
    world.evidence_is_whole();
    world.stop();
    world.evidence_is_whole();
}

#[test]
fn four_people_ask_approve_connect_and_replay_on_sqlite() {
    story(&World::start());
}

#[test]
fn four_people_ask_approve_connect_and_replay_on_postgresql() {
    let Ok(server) = std::env::var("DAYPASS_TEST_POSTGRES") else {
        println!("DAYPASS_TEST_POSTGRES is not set: tests/run starts a PostgreSQL for this");
        return;
    };
    let name = format!("journeys_{}", std::process::id());
    let sql = |text: String| {
        let mut psql = Command::new("psql");
        psql.args([&format!("{server}/postgres"), "-qc", &text]);
        Program::run(psql, b"")
    };
    let _ = sql(format!("CREATE DATABASE {name}")).ok();
    let world = World::start_on(Some(format!("{server}/{name}")));
    story(&world);
    let files = std::fs::read_dir(world.broker().join("data")).unwrap();
    assert!(
        files.flatten().all(|file| !file.file_name().to_string_lossy().ends_with(".db")),
        "everything is in PostgreSQL"
    );
    drop(world);
    let _ = sql(format!("DROP DATABASE {name} WITH (FORCE)")).ok();
}

#[test]
fn the_devices_have_no_open_port() {
    let world = World::start();
    let listening = |pid: &str| {
        let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        let inodes: Vec<String> = fds
            .flatten()
            .filter_map(|fd| std::fs::read_link(fd.path()).ok())
            .filter_map(|link| {
                Some(link.to_str()?.strip_prefix("socket:[")?.trim_end_matches(']').to_owned())
            })
            .collect();
        ["tcp", "tcp6"].iter().any(|table| {
            std::fs::read_to_string(format!("/proc/net/{table}")).unwrap_or_default().lines().skip(1).any(
                |line| {
                    let fields: Vec<&str> = line.split_whitespace().collect();
                    // 0A is LISTEN.
                    fields[3] == "0A" && inodes.iter().any(|inode| inode == fields[9])
                },
            )
        })
    };
    let shim = programs().join("daypass-shim");
    let mut shims = 0;
    until("the two shims", || {
        shims = 0;
        for process in std::fs::read_dir("/proc").unwrap().flatten() {
            let name = process.file_name().to_string_lossy().into_owned();
            let line = std::fs::read_to_string(process.path().join("cmdline")).unwrap_or_default();
            if line.starts_with(shim.to_str().unwrap())
                && line.contains(world.dir().to_str().unwrap())
                && line.contains("run")
            {
                shims += 1;
                assert!(!listening(&name), "{line} listens");
            }
        }
        shims == 2
    });
}
