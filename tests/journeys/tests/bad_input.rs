//! Bad input, as it reaches the programs: a clear error, and nothing lost.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use journeys::{Device, Program, World, configure, join_token, shim_enrol};
use std::path::Path;
use std::process::Command;

fn run(program: &str, args: &[&str]) {
    let mut command = Command::new(program);
    command.args(args);
    let _ = Program::run(command, b"").ok();
}

#[test]
fn a_reason_with_escapes_bidi_marks_or_100_kb_is_refused_in_words() {
    // Its own: others ask for access meanwhile, and this one counts.
    let world = World::start();
    let before = world.json("engineer", &["requests", "--mine", "--limit", "0"]).as_array().unwrap().len();
    let long = "x".repeat(100_000);
    for (reason, says) in [
        ("look \u{1b}[2J\u{1b}]0;owned\u{7}", "U+001B"),
        ("look \u{202e}drawkcab", "U+202E"),
        ("look \u{2066}here", "U+2066"),
        ("two\r\nlines", "U+000D"),
        (long.as_str(), "at most 2000"),
        ("  ", "reason"),
    ] {
        let done = world.cli("engineer", &["request", "gw-0042", "-l", "diag", "--reason", reason]);
        assert_ne!(done.code(), 0, "{done}");
        done.says("error:").says(says);
        assert!(!done.stderr.contains('\u{1b}') && !done.stderr.contains('\u{202e}'), "{done}");
    }
    let ticket = ["request", "gw-0042", "-l", "diag", "--reason", "look", "--ticket", "SUP\u{1b}[31m"];
    world.cli("engineer", &ticket).with(2).says("U+001B");
    let after = world.json("engineer", &["requests", "--mine", "--limit", "0"]).as_array().unwrap().len();
    assert_eq!(after, before, "nothing was stored");
}

#[test]
fn unknown_devices_and_logins_are_refused_in_words() {
    let world = World::shared();
    let unknown = world.cli("engineer", &["request", "gw-9999", "-l", "diag", "--reason", "look"]).with(6);
    unknown.says("error:").says("gw-9999");
    for login in ["nobody", "root"] {
        let done =
            world.cli("engineer", &["request", "gw-0043", "-l", login, "--for", "8h", "--reason", "look"]);
        assert_eq!(done.code(), 4, "{done}");
        done.says("error:");
    }
    let bad = world.cli("engineer", &["request", "../etc", "-l", "diag", "--reason", "look"]).with(2);
    assert!(!bad.stderr.is_empty());
    let done = world.ssh(&["diag@gw-9999.daypass", "echo reached"]).with(255);
    assert_eq!(done.out(), "");
    let done = world.ssh(&["-l", "diag%gw-9999", "daypass-gateway-engineer", "echo reached"]).with(255);
    assert_eq!(done.out(), "");
}

/// `ssh` to the gateway with a key, a certificate and the real known_hosts.
fn with_certificate(world: &World, key: &Path, certificate: &Path) -> journeys::Done {
    let mut ssh = Command::new("ssh");
    ssh.args(["-F", "none", "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes"])
        .arg("-o")
        .arg(format!("UserKnownHostsFile={}", world.profile("engineer", "known_hosts").display()))
        .arg("-i")
        .arg(key)
        .arg("-o")
        .arg(format!("CertificateFile={}", certificate.display()))
        .args(["-p", world.port("ssh"), "-l", "diag%gw-0043", "127.0.0.1", "echo reached"])
        .env_remove("SSH_AUTH_SOCK");
    Program::run(ssh, b"")
}

#[test]
fn certificates_that_the_identity_ca_did_not_make_for_this_key_open_nothing() {
    let world = World::shared();
    world.ask("gw-0043", "10m");
    let dir = tempfile_in(&world);
    let (foreign, key) = (dir.join("foreign_ca"), dir.join("key"));
    for path in [&foreign, &key] {
        run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", path.to_str().unwrap()]);
    }
    let own = world.profile("engineer", "id_ed25519-cert.pub");
    // Control: the real one opens.
    let good = with_certificate(&world, &world.profile("engineer", "id_ed25519"), &own).ok();
    assert_eq!(good.out(), "reached\n");
    let person = world.json("engineer", &["whoami"])["person"]["id"].as_str().map(str::to_owned);
    let person =
        person.unwrap_or_else(|| world.json("engineer", &["whoami"])["id"].as_str().unwrap().to_owned());
    let before = world.journal("gw-0043");
    let public = key.with_extension("pub");
    let certificate = dir.join("key-cert.pub");
    let ca = foreign.to_str().unwrap();
    for (what, options) in [
        ("a foreign CA", vec!["-n", &person]),
        ("a foreign CA, no principal", vec![]),
        ("a host certificate", vec!["-h", "-n", &person]),
        ("an expired one", vec!["-n", &person, "-V", "20200101:20200102"]),
        ("an unknown critical option", vec!["-n", &person, "-O", "critical:door@example.com=open"]),
    ] {
        let mut args = vec!["-q", "-s", ca, "-I", "person=ana@example.com"];
        args.extend(options);
        args.push(public.to_str().unwrap());
        run("ssh-keygen", &args);
        let done = with_certificate(&world, &key, &certificate);
        assert_eq!(done.code(), 255, "{what}: {done}");
        assert_eq!(done.out(), "", "{what}");
        done.says("Permission denied");
    }
    // The engineer's real certificate with somebody else's key, and a key without a certificate.
    for certificate in [own.as_path(), &dir.join("none")] {
        let done = with_certificate(&world, &key, certificate);
        assert_eq!(done.code(), 255, "{done}");
        assert_eq!(done.out(), "");
    }
    let after = world.journal("gw-0043");
    assert_eq!(after.matches("echo reached").count(), before.matches("echo reached").count());
    world.audited("gateway.refused", &["127.0.0.1"]);
}

fn tempfile_in(world: &World) -> std::path::PathBuf {
    let dir = world.dir().join("forged");
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

#[test]
fn a_join_token_works_once() {
    let world = World::shared();
    let token = join_token(&world, "lab");
    let place = |name: &str| world.dir().join("own").join(name);
    for name in ["gw-first", "gw-second"] {
        configure(&place(name));
    }
    let _ = shim_enrol(&place("gw-first"), &token, "gw-first").ok();
    let second = shim_enrol(&place("gw-second"), &token, "gw-second");
    assert_ne!(second.code(), 0, "{second}");
    assert!(second.stderr.contains("token"), "{second}");
    assert!(!place("gw-second/state/identity.json").exists());
    world.audited("enrolment.refused", &["127.0.0.1"]);
    // Nonsense and a damaged token are refused before anything is sent.
    for bad in ["dpj1.nonsense", &token[..token.len() - 4], "\u{1b}[2J", ""] {
        let done = shim_enrol(&place("gw-second"), bad, "gw-second");
        assert_ne!(done.code(), 0, "{done}");
        assert!(!done.stderr.contains('\u{1b}'), "{done}");
    }
    let all = world.json("operator", &["devices"]);
    assert!(all.as_array().unwrap().iter().all(|device| device["id"] != "gw-second"));
}

#[test]
fn a_damaged_state_file_is_an_error_and_never_a_new_identity() {
    let world = World::shared();
    let mut device = Device::enrol(&world, "gw-damaged", "lab");
    device.kill();
    let state = device.dir.join("state");
    for name in ["device_key", "identity.json", "trust.json"] {
        let file = state.join(name);
        let whole = std::fs::read(&file).unwrap();
        std::fs::write(&file, &whole[..whole.len() / 2]).unwrap();
        let damaged = std::fs::read(&file).unwrap();
        device.start();
        device.shim().complains(name);
        let mut shim = Command::new(journeys::programs().join("daypass-shim"));
        shim.arg("run").arg("--config").arg(device.dir.join("device.toml"));
        device.kill();
        let done = Program::run(shim, b"");
        assert_ne!(done.code(), 0, "{done}");
        done.says(name).says("damaged");
        assert_eq!(std::fs::read(&file).unwrap(), damaged, "{name} is left as it is");
        std::fs::write(&file, &whole).unwrap();
    }
    device.start();
    device.is_online(&world);
}

#[test]
fn a_copy_of_a_device_is_refused_and_the_first_goes_on() {
    let world = World::shared();
    let mut device = Device::enrol(&world, "gw-cloned", "lab");
    world.ask("gw-cloned", "10m");
    let mut session = world.ssh_start("gw-cloned", &[], "echo here; cat");
    session.shows("here");
    let copy = world.dir().join("own/gw-copy");
    configure(&copy);
    run("cp", &["-r", device.dir.join("state").to_str().unwrap(), copy.to_str().unwrap()]);
    let clone = Device::over("gw-cloned", copy);
    world.audited("device.clone_suspected", &["gw-cloned"]);
    assert!(device.shim().is_running());
    session.send(b"still the first\n");
    session.shows("still the first");
    let _ = session.finish().ok();
    assert_eq!(clone.journal(), "", "nothing went to the copy");
    assert_eq!(world.ssh(&["diag@gw-cloned.daypass", "echo new"]).ok().out(), "new\n");
    assert_eq!(clone.journal(), "", "nothing went to the copy");
}
