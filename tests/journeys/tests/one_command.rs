//! A grant of one command: that command runs, and nothing else does.
#![allow(
    non_snake_case,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests, named for their promise"
)]

use journeys::{Device, Program, World};

/// How the gateway says no.
const ONLY: &str = "is for one command and nothing else: ";

#[test]
fn promise_3_one_certificate__a_command_that_is_asked_for_alone_runs_and_nothing_else_does() {
    let world = World::shared();
    let device = Device::enrol(&world, "gw-one", "lab");
    let ask = ["ssh", "gw-one", "-l", "diag", "--reason", "one look", "--", "echo", "one", "look"];
    let done = world.cli("engineer", &ask).ok();
    assert_eq!(done.out(), "one look\n");
    world.audited("certificate.issued", &["force-command", "echo one look", "diag@gw-one"]);

    // The same again needs no new grant, from here or by plain ssh.
    let again = world.cli("engineer", &ask).ok();
    assert_eq!((again.out().as_str(), again.stderr.as_str()), ("one look\n", ""));
    assert_eq!(world.ssh(&["diag@gw-one.daypass", "echo", "one", "look"]).ok().out(), "one look\n");
    assert_eq!(world.ssh(&["-tt", "diag@gw-one.daypass", "echo one look"]).ok().out(), "one look\r\n");
    // The end of the last one may still be on its way into the journal.
    let comings = || device.journal().matches("\"opened\"").count();
    let before = comings();

    let target = "diag@gw-one.daypass";
    for args in [
        &[target, "echo one look; echo two"][..],
        &[target, "echo one  look"],
        &[target, "echo two"],
        &["-l", "diag%gw-one", "daypass-gateway-engineer", "echo two"],
    ] {
        let done = world.ssh(args).with(255);
        assert_eq!(done.out(), "", "{done}");
        done.says(ONLY).says("echo one look");
    }
    let shell = Program::run(world.ssh_command(&["-tt", target]), b"echo rea''ched\n").with(255);
    assert!(!shell.out().contains("reached"), "{shell}");
    for args in [&["-s", target, "sftp"][..], &["-W", "localhost:80", target]] {
        let done = world.ssh(args);
        assert_ne!(done.code(), 0, "{done}");
        assert_eq!(done.out(), "", "{done}");
    }
    assert_eq!(comings(), before, "nothing else reached the device");
}

#[test]
fn promise_1_no_grant_no_bytes__a_second_command_on_the_same_connection_is_refused() {
    let world = World::shared();
    let device = Device::enrol(&world, "gw-master", "lab");
    let ask = ["request", "gw-master", "-l", "diag", "--reason", "one look", "--", "echo ready; cat"];
    let _ = world.cli("engineer", &ask).ok();
    let socket = world.dir().join("one");
    let socket = socket.to_str().unwrap();
    let mut first = world.ssh_start("gw-master", &["-M", "-S", socket], "echo ready; cat");
    first.shows("ready");
    let before = device.journal();
    let second = world.ssh(&["-S", socket, "diag@gw-master.daypass", "echo two"]);
    assert_ne!(second.code(), 0, "{second}");
    assert_eq!(second.out(), "");
    second.says(ONLY);
    assert_eq!(device.journal(), before, "nothing else reached the device");
    assert!(first.is_running(), "the command goes on");
    let _ = first.finish().ok();
}

#[test]
fn who_approves_sees_the_command() {
    let world = World::shared();
    let device = Device::enrol(&world, "gw-seen", "field");
    let ask = ["request", "gw-seen", "-l", "diag", "--reason", "modem resets", "--", "echo", "seen"];
    let asked = world.cli("engineer", &ask).ok();
    asked.says("to run `echo seen` waits");
    let listed = world.cli("approver", &["requests", "--answerable"]).ok();
    assert!(listed.out().contains("asks to run: echo seen"), "{listed}");
    let all = world.json("approver", &["requests", "--answerable"]);
    let request = all.as_array().unwrap().iter().find(|one| one["device"] == "gw-seen").unwrap();
    assert_eq!(request["command"], "echo seen");
    let approved = world.cli("approver", &["approve", request["id"].as_str().unwrap()]).ok();
    assert!(approved.out().contains("asks to run"), "{approved}");
    assert_eq!(world.ssh(&["diag@gw-seen.daypass", "echo seen"]).ok().out(), "seen\n");
    let done = world.ssh(&["diag@gw-seen.daypass", "echo unseen"]).with(255);
    assert_eq!(done.out(), "");
    assert!(!device.journal().contains("unseen"));
}
