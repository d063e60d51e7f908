//! Promise 3: one certificate, one device, one login, one session.
#![allow(
    non_snake_case,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests, named for their promise"
)]

use journeys::{Device, Program, World};
use std::process::Command;

#[test]
fn promise_3_one_certificate__a_grant_for_one_device_opens_nothing_on_another() {
    let world = World::shared();
    let lab = Device::enrol(&world, "gw-lab", "lab");
    let field = Device::enrol(&world, "gw-field", "field");
    world.ask("gw-lab", "10m");
    let _ = world.ssh(&["diag@gw-lab.daypass", "true"]).ok();
    assert!(lab.journal().contains("\"opened\""));
    for args in [
        &["diag@gw-field.daypass", "echo reached"][..],
        &["-l", "diag%gw-field", "daypass-gateway-engineer", "echo reached"],
    ] {
        let done = world.ssh(args).with(255);
        assert_eq!(done.out(), "");
        done.says("hint: ");
    }
    assert_eq!(field.journal(), "", "nothing reached the other device");
}

#[test]
fn promise_3_one_certificate__a_grant_for_one_login_opens_no_other() {
    let world = World::shared();
    let device = Device::enrol(&world, "gw-login", "lab");
    world.ask("gw-login", "10m");
    let done = world.ssh(&["root@gw-login.daypass", "echo reached"]).with(255);
    assert_eq!(done.out(), "");
    done.says("root");
    assert_eq!(device.journal(), "", "nothing reached the device");
}

#[test]
fn promise_3_one_certificate__each_session_has_its_own() {
    let world = World::shared();
    let device = Device::enrol(&world, "gw-serials", "lab");
    world.ask("gw-serials", "10m");
    for _ in 0..2 {
        let _ = world.ssh(&["diag@gw-serials.daypass", "true"]).ok();
    }
    let sessions = world.sessions(&device.id);
    assert_eq!(sessions.len(), 2);
    let ids: Vec<&str> = sessions.iter().map(|session| session["id"].as_str().unwrap()).collect();
    assert_ne!(ids[0], ids[1]);
    for id in ids {
        // The key id names the one session; the certificate names the one device.
        world.audited(
            "certificate.issued",
            &["\"kind\":\"session\"", "[\"diag@gw-serials\"]", &format!("session={id}")],
        );
    }
}

#[test]
fn promise_3_one_certificate__the_identity_certificate_opens_no_device_by_itself() {
    let world = World::shared();
    let device = Device::enrol(&world, "gw-direct", "lab");
    world.ask("gw-direct", "10m");
    // sshd's own check, as a device would make it: the identity CA is not the user CA, and the principal
    // is a person, not diag@gw-direct.
    let certificate = world.profile("engineer", "id_ed25519-cert.pub");
    let mut show = Command::new("ssh-keygen");
    show.arg("-L").arg("-f").arg(&certificate);
    let shown = Program::run(show, b"").ok().out();
    assert!(shown.contains("P-"), "{shown}");
    assert!(!shown.contains("gw-direct") && !shown.contains("diag"), "{shown}");
    assert!(!shown.contains("permit-pty"), "{shown}");
    // Presented under another person's name or a plain one, it opens nothing.
    for user in ["diag", "gw-direct", "diag%", "%gw-direct", "diag%gw-direct%", "root%gw-direct"] {
        let done = world.ssh(&["-l", user, "daypass-gateway-engineer", "echo reached"]);
        assert_ne!(done.code(), 0, "{user}: {done}");
        assert_eq!(done.out(), "", "{user}: {done}");
    }
    assert_eq!(device.journal(), "", "nothing reached the device");
}
