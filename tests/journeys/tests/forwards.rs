//! Forwards with the real `ssh`: to the ports that a grant names, and nowhere else.
#![allow(
    non_snake_case,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests, named for their promise"
)]

use journeys::{Device, Program, World, eventually, recordings_of, service, until};
use nix::sys::signal::Signal;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The services of the tests listen where they can, and not where a product line says.
const ANY_LOCAL_PORT: &str = "@id(\"test-forward\")\n@description(\"Support reaches any port of lab devices.\")\n\
    permit (principal in Team::\"support\", action == Action::\"connect\", resource)\n\
    when { resource.hasTag(\"env\") && resource.getTag(\"env\") == \"lab\" && context.channels.contains(Channel::\"forward\") };\n";

fn world() -> Arc<World> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let world = World::shared();
    open_local_ports(&world);
    world
}

fn open_local_ports(world: &World) {
    let extra = world.policies().join("zz-test-forward.cedar");
    if !extra.exists() {
        std::fs::write(&extra, ANY_LOCAL_PORT).unwrap();
        world.signal(Signal::SIGHUP);
        world.audited("policy.loaded", &["before"]);
    }
}

/// Something on the device that answers once it has heard everything: with how much that was.
fn counting_service() -> u16 {
    service(|mut stream| {
        let mut heard = Vec::new();
        // A client that is cut off has no answer coming.
        if stream.read_to_end(&mut heard).is_ok() {
            let sum: u64 = heard.iter().map(|byte| u64::from(*byte)).sum();
            let _ = stream.write_all(format!("{} bytes, sum {sum}", heard.len()).as_bytes());
        }
    })
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn ask(world: &World, device: &str, targets: &[&str]) -> String {
    let mut args = vec!["request", device, "-l", "diag", "--for", "10m", "--reason", "its own page"];
    for target in targets {
        args.extend(["--forward", target]);
    }
    world.json("engineer", &args)["id"].as_str().unwrap().to_owned()
}

/// Says `bytes`, ends that direction, and hears the rest.
fn exchange(mut stream: TcpStream, bytes: &[u8]) -> String {
    stream.write_all(bytes).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// What the session has on record while it runs.
fn events(world: &World, session: &str) -> String {
    let files = recordings_of(&world.broker(), session);
    let events = files.iter().find(|file| file.to_string_lossy().contains("events")).unwrap();
    std::fs::read_to_string(events).unwrap_or_default()
}

fn connect(port: u16) -> TcpStream {
    eventually("ssh to listen", || TcpStream::connect(("127.0.0.1", port)).ok())
}

#[test]
fn a_local_forward_carries_bytes_both_ways_and_is_on_record_with_target_and_counts() {
    // Its own, so that nobody records while the evidence is checked.
    let world = World::start();
    open_local_ports(&world);
    let device = Device::enrol(&world, "gw-local", "lab");
    let port = counting_service();
    let target = format!("127.0.0.1:{port}");
    ask(&world, &device.id, &[&target]);
    let local = free_port();
    let option = format!("{local}:localhost:{port}");
    let ssh = Program::start(world.ssh_command(&["-N", "-L", &option, "diag@gw-local.daypass"]));
    let bytes: Vec<u8> = (0..=255).cycle().take(1_000_000).collect();
    let sum: u64 = bytes.iter().map(|byte| u64::from(*byte)).sum();
    assert_eq!(exchange(connect(local), &bytes), format!("1000000 bytes, sum {sum}"));

    let session = world.live_session(&device.id);
    let opened = format!("\"event\":\"forward_opened\",\"channel\":0,\"target\":\"{target}\"");
    until("the forward to be on record", || {
        let events = events(&world, &session);
        events.contains(&opened)
            && events.contains("\"event\":\"forward_closed\"")
            && events.contains("\"duration_ms\":")
            && events.contains("\"bytes_to_device\":1000000")
            && events
                .contains(&format!("\"bytes_from_device\":{}", format!("1000000 bytes, sum {sum}").len()))
    });
    world.audited("channel.opened", &["\"kind\":\"forward\"", &target]);
    assert!(device.journal().contains(&format!("\"target\":\"{target}\"")), "{}", device.journal());
    ssh.signal(Signal::SIGTERM);
    let _ = ssh.ends();
    world.ended(&session);
    world.evidence_is_whole();
}

#[test]
fn standard_input_is_forwarded_through_the_jump_and_in_a_single_hop() {
    let world = world();
    let device = Device::enrol(&world, "gw-stdio", "lab");
    let port = counting_service();
    let target = format!("127.0.0.1:{port}");
    ask(&world, &device.id, &[&target]);
    for args in [
        &["-W", &target, "diag@gw-stdio.daypass"][..],
        &["-W", &format!("localhost:{port}"), "diag@gw-stdio.daypass"],
        &["-W", &target, "-l", "diag%gw-stdio", "daypass-gateway-engineer"],
    ] {
        let done = Program::run(world.ssh_command(args), b"12345").ok();
        assert_eq!(done.out(), "5 bytes, sum 255", "{done}");
    }
}

#[test]
fn a_dynamic_forward_reaches_the_granted_target_and_refuses_others() {
    let world = world();
    let device = Device::enrol(&world, "gw-socks", "lab");
    let (port, other) = (counting_service(), counting_service());
    ask(&world, &device.id, &[&format!("127.0.0.1:{port}")]);
    let proxy = free_port();
    let ssh = Program::start(world.ssh_command(&["-N", "-D", &proxy.to_string(), "diag@gw-socks.daypass"]));
    let socks = |port: u16| {
        let mut stream = connect(proxy);
        stream.write_all(&[5, 1, 0]).unwrap();
        let mut chosen = [0; 2];
        stream.read_exact(&mut chosen).unwrap();
        assert_eq!(chosen, [5, 0]);
        let mut wish = vec![5, 1, 0, 3, 9];
        wish.extend(b"localhost");
        wish.extend(port.to_be_bytes());
        stream.write_all(&wish).unwrap();
        stream
    };
    let mut granted = socks(port);
    let mut answer = [0; 10];
    granted.read_exact(&mut answer).unwrap();
    assert_eq!(answer[1], 0, "RFC 1928: succeeded");
    assert_eq!(exchange(granted, b"12345"), "5 bytes, sum 255");
    for wrong in [other, 22] {
        let mut stream = socks(wrong);
        let mut said = Vec::new();
        // Closed or reset: both say no.
        let _ = stream.read_to_end(&mut said);
        assert!(said.len() <= 10, "no byte of a service: {said:?}");
    }
    ssh.complains("does not name 127.0.0.1:");
    ssh.complains("no forward leads to the device's own SSH");
    ssh.signal(Signal::SIGTERM);
    let _ = ssh.ends();
}

#[test]
fn promise_1_no_grant_no_bytes__forwards_lead_to_granted_targets_only() {
    let world = world();
    let device = Device::enrol(&world, "gw-targets", "lab");
    let (port, other) = (counting_service(), counting_service());
    ask(&world, &device.id, &[&format!("127.0.0.1:{port}")]);
    let reach = |target: &str| {
        let done = Program::run(world.ssh_command(&["-W", target, "diag@gw-targets.daypass"]), b"12345");
        assert_ne!(done.code(), 0, "{done}");
        assert_eq!(done.out(), "", "{done}");
        done
    };
    for target in [&format!("127.0.0.1:{other}"), &format!("127.0.0.2:{port}"), "example.com:80"] {
        reach(target).says("does not name");
    }
    let spelled =
        ["localhost", "LOCALHOST", "127.0.0.1", "127.8.8.8", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0"];
    for host in spelled {
        reach(&format!("{host}:22")).says("no forward leads to the device's own SSH");
    }
    world.audited("gateway.refused", &["ana@example.com", "gw-targets", "\"what\":\"forward\""]);
    assert_eq!(device.journal(), "", "nothing reached the device");

    // Nor can it be asked for, whatever policy says.
    for target in ["127.0.0.1:22", "localhost:22", "[::1]:22", "0.0.0.0:22", "127.1:22"] {
        let args = ["request", "gw-targets", "--forward", target, "--reason", "its own SSH"];
        let done = world.cli("engineer", &args);
        assert_ne!(done.code(), 0, "{done}");
    }
}

#[test]
fn promise_1_no_grant_no_bytes__a_grant_without_the_channel_forwards_nothing() {
    let world = world();
    let device = Device::enrol(&world, "gw-noforward", "lab");
    let port = counting_service();
    world.ask(&device.id, "10m");
    let target = format!("127.0.0.1:{port}");
    let done = Program::run(world.ssh_command(&["-W", &target, "diag@gw-noforward.daypass"]), b"12345");
    assert_ne!(done.code(), 0, "{done}");
    assert_eq!(done.out(), "", "{done}");
    done.says("does not include forward");
    assert_eq!(device.journal(), "", "nothing reached the device");
    // Without targets of its own a request has those of the product line; policy knows them.
    let args = ["request", "gw-noforward", "-l", "diag", "--channel", "forward", "--reason", "its own page"];
    let asked = world.json("engineer", &args);
    assert_eq!(asked["forward_targets"], serde_json::json!(["127.0.0.1:80", "127.0.0.1:8080"]));
}

#[test]
fn a_forward_of_the_command_line_asks_for_where_it_leads_and_for_no_shell() {
    let world = world();
    let device = Device::enrol(&world, "gw-asking", "lab");
    let port = counting_service();
    let (local, target) = (free_port(), format!("127.0.0.1:{port}"));
    let option = format!("{local}:localhost:{port}");
    let args = ["ssh", "gw-asking", "-l", "diag", "--reason", "its own page", "-N", "-L", &option];
    let _ssh = Program::start(world.command("engineer", &args));
    assert_eq!(exchange(connect(local), b"12"), "2 bytes, sum 99");
    let asked = world.json("engineer", &["requests", "--mine"]);
    let asked = asked.as_array().unwrap().iter().find(|request| request["device"] == *device.id).unwrap();
    assert_eq!(asked["forward_targets"], serde_json::json!([target]));
    assert_eq!(asked["channels"], serde_json::json!(["forward"]));
}

#[test]
fn promise_4_access_ends_on_time__a_revoked_grant_closes_its_forwards() {
    let world = world();
    let device = Device::enrol(&world, "gw-cut", "lab");
    let port = counting_service();
    let grant = ask(&world, &device.id, &[&format!("127.0.0.1:{port}")]);
    let local = free_port();
    let option = format!("{local}:localhost:{port}");
    let ssh = Program::start(world.ssh_command(&["-N", "-L", &option, "diag@gw-cut.daypass"]));
    let mut stream = connect(local);
    stream.write_all(b"a question that is not over").unwrap();
    world.live_session(&device.id);
    until("the forward to be open", || device.journal().contains("\"opened\""));
    let _ = world.cli("approver", &["revoke", &grant, "--reason", "enough"]).ok();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert_eq!(rest, b"");
    until("the device to close it", || device.journal().contains("\"ended\""));
    let done = ssh.ends();
    assert_ne!(done.code(), 0, "{done}");
}

#[test]
fn a_paused_forward_stops_nobody_else_on_the_same_connection() {
    let world = world();
    let device = Device::enrol(&world, "gw-paused", "lab");
    // Says zeros for as long as somebody listens.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let zeros = vec![0; 65_536];
        while stream.write_all(&zeros).is_ok() {}
    });
    ask(&world, &device.id, &[&format!("127.0.0.1:{port}")]);
    let local = free_port();
    let option = format!("{local}:localhost:{port}");
    let socket = world.dir().join("paused");
    let socket = socket.to_str().unwrap();
    let args = ["-N", "-M", "-S", socket, "-L", &option, "diag@gw-paused.daypass"];
    let ssh = Program::start(world.ssh_command(&args));
    let mut paused = connect(local);
    paused.read_exact(&mut [0; 1000]).unwrap();
    // Longer than it takes to fill every window on the way.
    std::thread::sleep(Duration::from_secs(2));
    for _ in 0..3 {
        let done = world.ssh(&["-S", socket, "diag@gw-paused.daypass", "echo on"]).ok();
        assert_eq!(done.out(), "on\n");
    }
    paused.read_exact(&mut vec![0; 20_000_000]).unwrap();
    ssh.signal(Signal::SIGTERM);
    let _ = ssh.ends();
}

#[test]
fn where_nobody_listens_the_cause_is_told() {
    let world = world();
    let device = Device::enrol(&world, "gw-nobody", "lab");
    let target = format!("127.0.0.1:{}", free_port());
    ask(&world, &device.id, &[&target]);
    let done = world.ssh(&["-W", &target, "diag@gw-nobody.daypass"]);
    assert_ne!(done.code(), 0);
    done.says("connect failed").says("connection refused");
}
