//! Promise 1: no grant, no bytes.
#![allow(
    non_snake_case,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests, named for their promise"
)]

use journeys::{Device, Program, World, until};
use std::process::Command;

#[test]
fn promise_1_no_grant_no_bytes__without_a_grant_one_line_and_a_hint() {
    let world = World::shared();
    let device = Device::enrol(&world, "gw-none", "field");
    let jump = ["diag@gw-none.daypass", "echo reached"];
    let single = ["-l", "diag%gw-none", "daypass-gateway-engineer", "echo reached"];
    let shell = ["-tt", "diag@gw-none.daypass"];
    for args in [&jump[..], &single, &shell] {
        let done = Program::run(world.ssh_command(args), b"touch /tmp/reached\n");
        assert_eq!(done.code(), 255, "{done}");
        let said = format!("{}{}", done.out(), done.stderr);
        let lines: Vec<&str> = said
            .lines()
            .map(str::trim)
            .filter(|line| line.starts_with("daypass:") || line.starts_with("hint:"))
            .collect();
        assert_eq!(lines.len(), 2, "{done}");
        assert!(lines[0].contains("gw-none"), "{done}");
        assert!(lines[1].contains("daypass request gw-none -l diag"), "{done}");
        assert!(!done.out().contains("reached\n") || done.out().contains("daypass:"), "{done}");
    }
    assert_eq!(device.journal(), "", "nothing reached the device");
    world.audited("session.refused", &["ana@example.com", "gw-none"]);
    assert!(world.sessions("gw-none").is_empty());
}

#[test]
fn promise_1_no_grant_no_bytes__a_pending_request_opens_nothing() {
    let world = World::shared();
    let device = Device::enrol(&world, "gw-pending", "field");
    let request = world.ask("gw-pending", "10m");
    let done = world.ssh(&["diag@gw-pending.daypass", "echo reached"]).with(255);
    done.says("still waiting for an answer").says(&request);
    assert_eq!(done.out(), "");
    let _ = world.cli("approver", &["deny", &request, "--comment", "not today"]).ok();
    let done = world.ssh(&["diag@gw-pending.daypass", "echo reached"]).with(255);
    assert_eq!(done.out(), "");
    assert_eq!(device.journal(), "", "nothing reached the device");
}

#[test]
fn promise_1_no_grant_no_bytes__a_grant_of_one_person_opens_nothing_for_another() {
    let world = World::shared();
    let device = Device::enrol(&world, "gw-others", "lab");
    world.ask("gw-others", "10m");
    // Ben has a certificate of his own, which is good, and no grant.
    let args = [
        "-o",
        &format!("IdentityFile={}", world.profile("approver", "id_ed25519").display()),
        "-o",
        &format!("CertificateFile={}", world.profile("approver", "id_ed25519-cert.pub").display()),
        "-o",
        &format!("UserKnownHostsFile={}", world.profile("engineer", "known_hosts").display()),
        "-o",
        "IdentitiesOnly=yes",
        "-p",
        world.port("ssh"),
        "-l",
        "diag%gw-others",
        "127.0.0.1",
        "echo reached",
    ];
    let mut ssh = Command::new("ssh");
    ssh.args(["-F", "none"]).args(args);
    let done = Program::run(ssh, b"").with(255);
    assert_eq!(done.out(), "");
    done.says("hint: ");
    assert_eq!(device.journal(), "", "nothing reached the device");
    world.audited("session.refused", &["ben@example.com", "gw-others"]);
}

#[test]
fn promise_1_no_grant_no_bytes__no_kind_of_channel_is_an_exception() {
    let world = World::shared();
    let device = Device::enrol(&world, "gw-kinds", "lab");
    world.ask("gw-kinds", "10m");
    let target = "diag@gw-kinds.daypass";
    let refused = |done: &journeys::Done, kind: &str| {
        assert_ne!(done.code(), 0, "{done}");
        assert_eq!(done.out(), "", "{done}");
        world.audited("gateway.refused", &["ana@example.com", "gw-kinds", &format!("\"what\":\"{kind}\"")]);
    };
    let done = world.ssh(&["-W", "localhost:22", target]);
    done.says("no forward leads to the device's own SSH");
    refused(&done, "forward");
    let done = world.ssh(&["-o", "ExitOnForwardFailure=yes", "-R", "0:localhost:22", target, "true"]);
    refused(&done, "remote-forward");
    let done = world.ssh(&["-s", target, "netconf"]);
    done.says("the subsystem netconf is not open here");
    refused(&done, "subsystem");
    assert_eq!(device.journal(), "", "nothing reached the device");

    // An agent is not taken along, and -L listens in vain.
    let mut agent = Command::new("ssh-agent");
    agent.args(["ssh", "-F"]).arg(world.home("engineer").join(".ssh/config")).args([
        "-A",
        target,
        "echo agent=$SSH_AUTH_SOCK",
    ]);
    assert_eq!(Program::run(agent, b"").ok().out(), "agent=\n");
    world.audited("gateway.refused", &["ana@example.com", "gw-kinds", "\"what\":\"agent"]);
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let forward = format!("{port}:127.0.0.1:{}", world.port("https"));
    let mut session = world.ssh_start("gw-kinds", &["-L", &forward], "echo ready; cat");
    session.shows("ready");
    let mut through = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    std::io::Write::write_all(&mut through, b"GET / HTTP/1.0\r\n\r\n").unwrap();
    session.complains("does not include forward");
    let mut answer = Vec::new();
    // Closed or reset: both say no.
    let _ = std::io::Read::read_to_end(&mut through, &mut answer);
    assert_eq!(answer, b"");
    let _ = session.finish().ok();
}

#[test]
fn promise_1_no_grant_no_bytes__sftp_without_the_channel_granted() {
    let world = World::shared();
    let device = Device::enrol(&world, "gw-nosftp", "lab");
    world.ask("gw-nosftp", "10m");
    let target = "diag@gw-nosftp.daypass";
    // As the first channel of a session, by both ways in.
    for args in
        [&["-s", target, "sftp"][..], &["-s", "-l", "diag%gw-nosftp", "daypass-gateway-engineer", "sftp"]]
    {
        let done = Program::run(world.ssh_command(args), b"\0\0\0\x05\x01\0\0\0\x03").with(255);
        assert_eq!(done.out(), "", "{done}");
        done.says("does not include sftp");
        done.says("hint: ask for it with: daypass request gw-nosftp -l diag --channel sftp");
    }
    world.audited("session.refused", &["ana@example.com", "gw-nosftp", "does not include sftp"]);
    assert_eq!(device.journal(), "", "nothing reached the device");

    // And beside a command that runs.
    let socket = world.dir().join("nosftp.sock");
    let control = format!("ControlPath={}", socket.display());
    let mut master = world.ssh_start("gw-nosftp", &["-M", "-o", &control], "echo ready; cat");
    master.shows("ready");
    let journal = device.journal();
    let done = world.ssh(&["-o", &control, "-s", target, "sftp"]).with(255);
    assert_eq!(done.out(), "", "{done}");
    done.says("your grant does not include sftp");
    world.audited("channel.refused", &["does not include sftp"]);
    assert_eq!(device.journal(), journal, "nothing more reached the device");
    let _ = master.finish().ok();
}

#[test]
fn promise_1_no_grant_no_bytes__a_grant_for_commands_opens_no_shell() {
    let world = World::shared();
    let device = Device::enrol(&world, "gw-exec", "lab");
    let args = ["request", "gw-exec", "-l", "diag", "--channel", "exec", "--reason", "one command"];
    let _ = world.cli("engineer", &args).ok();
    let shell = Program::run(world.ssh_command(&["-tt", "diag@gw-exec.daypass"]), b"echo rea''ched\n");
    assert_ne!(shell.code(), 0, "{shell}");
    assert!(!shell.out().contains("reached"), "{shell}");
    assert_eq!(device.journal(), "", "nothing reached the device");
    assert_eq!(world.ssh(&["diag@gw-exec.daypass", "echo allowed"]).ok().out(), "allowed\n");
}

#[test]
fn promise_1_no_grant_no_bytes__a_connection_of_somebody_who_has_signed_out_begins_no_session() {
    let world = World::start();
    let device = Device::enrol(&world, "gw-left", "lab");
    world.ask("gw-left", "10m");
    let socket = world.dir().join("left.sock");
    let control = format!("ControlPath={}", socket.display());
    let target = "diag@gw-left.daypass";
    // Proven, and nothing begun yet.
    let mut master = Program::start(world.ssh_command(&["-M", "-N", "-o", &control, target]));
    until("the connection", || socket.exists());
    let _ = world.cli("engineer", &["logout"]).ok();
    let done = world.ssh(&["-o", &control, target, "echo reached"]).with(255);
    assert_eq!(done.out(), "", "{done}");
    done.says("your sign-in is not valid any more").says("daypass login");
    assert!(master.is_running());
    assert_eq!(device.journal(), "", "nothing reached the device");
}
