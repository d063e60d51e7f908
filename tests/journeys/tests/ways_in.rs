//! The ways in: what an engineer's own `ssh` does with the configuration that `daypass setup ssh` wrote.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use journeys::{Device, Program, World, programs};
use std::process::Command;
use std::sync::Arc;

/// With a live grant for gw-0043, which is in the lab.
fn world() -> Arc<World> {
    let world = World::shared();
    world.ask("gw-0043", "30m");
    world
}

#[test]
fn plain_ssh_carries_input_output_and_exit_code() {
    let world = world();
    let mut command = world.ssh_command(&["diag@gw-0043.daypass", "wc -c; echo apart >&2; exit 7"]);
    command.stdin(std::process::Stdio::piped());
    let done = Program::run(command, &vec![b'x'; 300_000]).with(7);
    assert_eq!(done.out().trim(), "300000");
    assert_eq!(done.stderr, "apart\n");
}

#[test]
fn straight_and_through_the_jump_host_it_is_the_same() {
    let world = world();
    let straight = ["diag@gw-0043.daypass", "echo here; exit 4"];
    let jump = [&["-J", "daypass-gateway-engineer"], &straight[..]].concat();
    for args in [&straight[..], &jump] {
        assert_eq!(world.ssh(args).with(4).out(), "here\n");
    }
}

#[test]
fn where_there_is_no_ticket_the_gateway_is_a_jump_host() {
    let world = World::start();
    world.ask("gw-0043", "30m");
    let hello = ["diag@gw-0043.daypass", "echo hello"];
    let done = world.ssh(&hello).ok();
    assert_eq!((done.out().as_str(), done.stderr.as_str()), ("hello\n", ""));
    // The tokens are gone from here; the certificate is good as long as the sign-in is.
    std::fs::remove_file(world.profile("engineer", "tokens.json")).unwrap();
    let done = world.ssh(&hello).ok();
    assert_eq!(done.out(), "hello\n");
    done.says("going through the gateway as a jump host");
    world.evidence_is_whole();
}

#[test]
fn every_byte_value_comes_through_unchanged() {
    let world = world();
    let bytes: Vec<u8> = (0..=255).cycle().take(70_000).collect();
    let done = Program::run(world.ssh_command(&["diag@gw-0043.daypass", "cat"]), &bytes).ok();
    assert_eq!(done.stdout, bytes);
}

#[test]
fn a_single_hop_is_enough() {
    let world = world();
    let done = world.ssh(&["-l", "diag%gw-0043", "daypass-gateway-engineer", "echo one hop; exit 3"]).with(3);
    assert_eq!(done.out(), "one hop\n");
}

#[test]
fn a_terminal_has_the_size_and_the_type_that_the_engineer_has() {
    let world = world();
    // `script` gives ssh a terminal of its own.
    let mut command = Command::new("script");
    let ssh = format!(
        "stty rows 33 cols 101; ssh -F {} -t diag@gw-0043.daypass 'stty size; echo $TERM'",
        world.home("engineer").join(".ssh/config").display()
    );
    command.args(["-qec", &ssh, "/dev/null"]).env("TERM", "xterm-256color");
    let done = Program::run(command, b"").ok();
    assert!(done.out().contains("33 101\r\n"), "{done}");
    assert!(done.out().contains("xterm-256color"), "{done}");
}

#[test]
fn one_command_of_the_command_line_does_it_all() {
    let world = world();
    let done = world.cli("engineer", &["ssh", "gw-0043", "-l", "diag", "--", "echo", "hello"]).ok();
    assert_eq!(done.out(), "hello\n");
    assert_eq!(done.stderr, "", "there is a grant: nothing to say");
}

#[test]
fn channels_that_are_named_are_asked_for_also_where_a_grant_lives() {
    let world = World::shared();
    let device = Device::enrol(&world, "gw-named", "lab");
    world.ask(&device.id, "30m");
    let args = [
        "ssh",
        "gw-named",
        "-l",
        "diag",
        "--channel",
        "sftp",
        "--reason",
        "its files",
        "--",
        "echo",
        "hello",
    ];
    for _ in 0..2 {
        assert_eq!(world.cli("engineer", &args).ok().out(), "hello\n");
        let asked = requests(&world, &device.id);
        assert_eq!(asked, [serde_json::json!(["exec", "sftp"]), serde_json::json!(["shell", "exec"])]);
    }
}

/// The channels that were asked for on this device, newest first.
fn requests(world: &World, device: &str) -> Vec<serde_json::Value> {
    let all = world.json("engineer", &["requests", "--mine"]);
    let all = all.as_array().unwrap().iter().filter(|request| request["device"] == device);
    all.map(|request| request["channels"].clone()).collect()
}

#[test]
fn a_forward_that_ssh_would_refuse_is_refused_before_anybody_is_asked() {
    let world = World::shared();
    let device = Device::enrol(&world, "gw-broken", "lab");
    for (option, forward) in [("-L", "8080:80"), ("-L", "8080:/run/docker.sock"), ("-D", "socks")] {
        let args = ["ssh", "gw-broken", "-l", "diag", "--reason", "its page", "-N", option, forward];
        world.cli("engineer", &args).with(2).says(forward);
    }
    let both =
        ["ssh", "gw-broken", "-l", "diag", "--reason", "x", "-N", "-L", "8080:localhost:80", "-D", "1080"];
    world.cli("engineer", &both).with(2).says("--forward HOST:PORT");
    assert_eq!(requests(&world, &device.id), [] as [serde_json::Value; 0]);
}

#[test]
fn a_command_in_a_hint_can_be_copied() {
    let world = World::shared();
    world.cli("nobody", &["whoami"]).says("hint: run `daypass --profile nobody login --broker");
    world
        .cli("engineer", &["ssh", "gw-unknown", "--reason", "x"])
        .says("`daypass --profile engineer devices`");
}

#[test]
fn an_impostor_gateway_is_not_believed() {
    let world = world();
    // What the engineer would hold if it trusted somebody else's host CA: the real gateway is then the
    // impostor, and must not get a byte.
    let key = world.dir().join("impostor");
    let mut keygen = Command::new("ssh-keygen");
    keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key);
    let _ = Program::run(keygen, b"").ok();
    let public = std::fs::read_to_string(key.with_extension("pub")).unwrap();
    let public: Vec<&str> = public.split_whitespace().take(2).collect();
    let known = world.dir().join("impostor_known_hosts");
    let gateway = format!("[127.0.0.1]:{}", world.port("ssh"));
    let authority = public.join(" ");
    std::fs::write(
        &known,
        format!("@cert-authority {gateway} {authority}\n@cert-authority *.daypass {authority}\n"),
    )
    .unwrap();
    let before = world.journal("gw-0043");
    let known = format!("UserKnownHostsFile={}", known.display());
    let single = ["-o", &known, "-l", "diag%gw-0043", "daypass-gateway-engineer", "echo reached"];
    for args in [&single[..], &["-o", &known, "diag@gw-0043.daypass", "echo reached"]] {
        let done = world.ssh(args).with(255);
        done.says("Host key verification failed.");
        assert_eq!(done.out(), "");
    }
    assert!(!world.journal("gw-0043")[before.len()..].contains("echo reached"));
}

#[test]
fn the_device_shows_a_host_certificate_for_its_own_name_only() {
    let world = world();
    // The host CA speaks for every device; the name in the certificate must be this one's.
    let alias = ["-o", "HostKeyAlias=gw-0042.daypass", "diag@gw-0043.daypass", "echo reached"];
    let done = world.ssh(&alias).with(255);
    assert_eq!(done.out(), "");
    done.says("name is not a listed principal");
}

#[test]
fn a_certificate_about_to_end_is_renewed_on_the_way() {
    let world = World::start();
    world.ask("gw-0043", "30m");
    // Gone is as good as ended.
    std::fs::remove_file(world.profile("engineer", "id_ed25519-cert.pub")).unwrap();
    let done = world.ssh(&["diag@gw-0043.daypass", "echo renewed"]).ok();
    assert_eq!(done.out(), "renewed\n");
    assert!(programs().join("daypass").is_file());
}
