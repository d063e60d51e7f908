//! Nobody waits for a stalled neighbour, what stalls costs bounded memory, and when it goes on every byte arrives.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use journeys::{Device, Place, Program, Proxy, World, eventually, marker, sleepers, until};
use nix::sys::signal::Signal;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a stalled session may cost the broker above what it costs when it is idle: ARCHITECTURE.md, "Flow control".
const STALLED_KIB: u64 = 24 * 1024;
/// How long others may take for what takes a moment, on a machine that is busy.
const PROMPT: Duration = Duration::from_secs(10);

/// A world of a test's own: its memory is measured.
fn place(id: &str, wants: &[&str]) -> Place {
    let world = Arc::new(World::start());
    world.add_policy(
        "everything",
        "@id(\"test-everything\")\n@description(\"Support uses every channel on lab devices.\")\n\
         permit (principal in Team::\"support\", action == Action::\"connect\", resource)\n\
         when { resource.hasTag(\"env\") && resource.getTag(\"env\") == \"lab\" && context.login == \"diag\" };\n",
    );
    Place::on(world, id, wants)
}

/// Waits until something has moved and then has been still for a second; a stalled upload trickles on.
fn is_still(what: &str, mut value: impl FnMut() -> u64) {
    const TRICKLE: u64 = 100_000;
    let (mut last, mut since) = (0, Instant::now());
    until(what, || {
        let now = value();
        if now > last + TRICKLE {
            (last, since) = (now, Instant::now());
        }
        now > 0 && since.elapsed() > Duration::from_secs(1)
    });
}

/// Bytes that a process has read or written.
fn moved(pid: i32, which: &str) -> u64 {
    let io = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    io.lines().find_map(|line| line.strip_prefix(which)).map_or(0, |n| n.trim().parse().unwrap())
}

/// Another session on the same device, one on another device, and the API.
#[track_caller]
fn neighbours_answer(place: &Place) {
    let others = [place.host(), "diag@gw-0043.daypass".to_owned()];
    for host in &others {
        let began = Instant::now();
        assert_eq!(place.world.ssh(&[host, "echo prompt"]).ok().out(), "prompt\n");
        assert!(began.elapsed() < PROMPT, "{host} took {:?}", began.elapsed());
    }
    let began = Instant::now();
    let _ = place.world.json("engineer", &["sessions", "--live"]);
    assert!(began.elapsed() < PROMPT, "the API took {:?}", began.elapsed());
}

/// What the broker takes with the session idle, and its neighbours having been there.
#[track_caller]
fn idle(place: &Place) -> u64 {
    let _ = place.world.live_session(&place.device.id);
    neighbours_answer(place);
    place.world.watch_memory()
}

#[track_caller]
fn cost_no_more_than_it_may(place: &Place, idle: u64) {
    // The neighbours' sessions were three at most, one after the other.
    let cost = place.world.most_memory().saturating_sub(idle);
    println!("idle: {idle} KiB; the stalled session and its neighbours: {cost} KiB more");
    assert!(cost < STALLED_KIB, "{cost} KiB");
}

/// One of the test's own shell lines, with `ssh` as the engineer has it.
fn shell(place: &Place, line: &str) -> Program {
    let mut command = Command::new("sh");
    command
        .args(["-c", line])
        .env("HOME", place.home())
        .env("SSH", format!("ssh -F {} {}", place.ssh_config().display(), place.host()))
        .env_remove("SSH_AUTH_SOCK");
    Program::start(command)
}

/// A file of random bytes, and the line that `sha256sum` says about it.
fn random(place: &Place, mib: u32) -> (PathBuf, String) {
    let file = place.here.join("random");
    let mut head = Command::new("sh");
    head.args(["-c", &format!("head -c {mib}M /dev/urandom > '{0}' && sha256sum < '{0}'", file.display())]);
    let hash = Program::run(head, b"").ok().out();
    (file, hash)
}

/// The `ssh` of a shell line.
fn ssh_of(line: &Program) -> i32 {
    eventually("ssh", || {
        journeys::children_of(line.pid()).into_iter().find(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.starts_with(b"ssh\0")
        })
    })
}

/// What `ssh` has read to send it; what it reads before it is connected is not that.
fn uploaded(ssh: i32) -> u64 {
    let read = moved(ssh, "rchar:");
    if read > 1 << 20 { read } else { 0 }
}

fn gate(path: &Path) -> String {
    format!("while [ ! -e '{}' ]; do sleep 0.1; done", path.display())
}

#[test]
fn a_stopped_terminal_that_runs_yes_stops_nobody_and_goes_on_when_it_wakes() {
    let place = place("gw-yes", &["--channel", "shell,exec", "--for", "10m"]);
    place.world.ask("gw-0043", "10m");
    let host = place.host();
    let line = "stty -echo; echo ready; read go; exec yes";
    let mut terminal = Program::start(place.command("ssh", &["-tt", &host, line]));
    terminal.shows("ready\r\n");
    let before = idle(&place);
    terminal.send(b"go\n");
    terminal.shows("y\r\ny\r\n");
    terminal.signal(Signal::SIGSTOP);
    let yes = eventually("yes on the device", || {
        std::fs::read_dir("/proc").unwrap().find_map(|entry| {
            let pid: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            // Of this test, and not of another's session on this machine.
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let shim = place.device.dir.to_str().unwrap();
            (line == b"yes\0" && descends(pid, shim)).then_some(pid)
        })
    });
    is_still("yes to be stopped by what nobody reads", || moved(yes, "wchar:"));
    neighbours_answer(&place);
    cost_no_more_than_it_may(&place, before);
    let shown = terminal.out().len();
    terminal.signal(Signal::SIGCONT);
    until("it to go on", || terminal.out().len() > shown + 4_000_000);
    let out = terminal.out();
    let said = out.strip_prefix("ready\r\n").unwrap();
    assert!(said.bytes().all(|byte| b"y\r\n".contains(&byte)), "only what yes says");
    terminal.signal(Signal::SIGTERM);
    let _ = terminal.ends();
    until("yes to be gone", || !journeys::alive(yes));
}

/// Whether a process comes from a program whose arguments say this.
fn descends(mut pid: i32, words: &str) -> bool {
    while pid > 1 {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains(words) {
            return true;
        }
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let parent = stat.rsplit(')').next().unwrap_or_default().split_whitespace().nth(1);
        pid = parent.and_then(|parent| parent.parse().ok()).unwrap_or(0);
    }
    false
}

#[test]
fn a_device_that_stops_reading_stops_nobody_and_gets_every_byte_when_it_reads_on() {
    let place = place("gw-deaf", &["--channel", "exec", "--for", "10m"]);
    place.world.ask("gw-0043", "10m");
    let (file, hash) = random(&place, 60);
    let (go, open) = (place.here.join("go"), place.there.join("gate"));
    let sends = format!("{{ {}; cat '{}'; }}", gate(&go), file.display());
    let upload = shell(&place, &format!("{sends} | $SSH \"{}; sha256sum\"", gate(&open)));
    let before = idle(&place);
    let ssh = ssh_of(&upload);
    std::fs::write(&go, "").unwrap();
    is_still("the upload to be stopped", || uploaded(ssh));
    assert!(uploaded(ssh) < 30 << 20, "it was taken by nobody");
    neighbours_answer(&place);
    cost_no_more_than_it_may(&place, before);
    std::fs::write(&open, "").unwrap();
    assert_eq!(upload.ends().ok().out(), hash);
}

/// Size in MiB; `DAYPASS_TEST_ECHO_MIB=1024` for the whole gigabyte.
fn echo_size() -> u32 {
    std::env::var("DAYPASS_TEST_ECHO_MIB").map_or(200, |mib| mib.parse().unwrap())
}

#[test]
fn an_echo_into_a_reader_that_sleeps_first_arrives_whole() {
    let place = place("gw-echo", &["--channel", "exec", "--for", "10m"]);
    place.world.ask("gw-0043", "10m");
    let (file, hash) = random(&place, echo_size());
    let (go, open) = (place.here.join("go"), place.here.join("gate"));
    let sends = format!("{{ {}; cat '{}'; }}", gate(&go), file.display());
    let echo = shell(&place, &format!("{sends} | $SSH cat | {{ {}; sha256sum; }}", gate(&open)));
    let before = idle(&place);
    let ssh = ssh_of(&echo);
    std::fs::write(&go, "").unwrap();
    is_still("the echo to be stopped", || uploaded(ssh));
    neighbours_answer(&place);
    std::fs::write(&open, "").unwrap();
    assert_eq!(echo.ends().ok().out(), hash);
    cost_no_more_than_it_may(&place, before);
}

#[test]
fn a_forward_that_nobody_reads_stops_nobody_and_arrives_whole_when_it_is_read() {
    const SIZE: usize = 30_000_000;
    let bytes = Arc::new(journeys::content(u32::try_from(SIZE).unwrap()));
    let says = bytes.clone();
    let port = journeys::service(move |mut stream| {
        // Once it is asked; and a client that is cut off wants no more.
        let _ = stream.read_exact(&mut [0]).and_then(|()| stream.write_all(&says));
    });
    let target = format!("127.0.0.1:{port}");
    let place = place("gw-paused", &["--channel", "exec,forward", "--forward", &target, "--for", "10m"]);
    place.world.ask("gw-0043", "10m");
    let local = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (option, host) = (format!("{local}:{target}"), place.host());
    let ssh = Program::start(place.command("ssh", &["-N", "-L", &option, &host]));
    let mut paused = eventually("ssh to listen", || TcpStream::connect(("127.0.0.1", local)).ok());
    let before = idle(&place);
    let mut first = [0; 1];
    paused.write_all(b".").unwrap();
    paused.read_exact(&mut first).unwrap();
    is_still("the forward to be stopped", || moved(ssh.pid(), "wchar:"));
    neighbours_answer(&place);
    // Another forward on the same connection.
    let began = Instant::now();
    let mut other = TcpStream::connect(("127.0.0.1", local)).unwrap();
    other.write_all(b".").unwrap();
    let mut all = Vec::new();
    other.read_to_end(&mut all).unwrap();
    assert!(all == *bytes, "the other forward: {} bytes, or others", all.len());
    assert!(began.elapsed() < 2 * PROMPT, "the other forward took {:?}", began.elapsed());
    cost_no_more_than_it_may(&place, before);
    let mut rest = first.to_vec();
    paused.read_to_end(&mut rest).unwrap();
    assert!(rest == *bytes, "{} bytes, or others", rest.len());
    ssh.signal(Signal::SIGTERM);
    let _ = ssh.ends();
}

/// The engineer's connection is reset while bytes flow up, down and on a terminal.
#[test]
fn a_connection_that_is_reset_ends_its_session_with_everything_on_the_device_and_on_record() {
    let world = World::start();
    let device = Device::enrol(&world, "gw-reset", "lab");
    world.ask("gw-reset", "10m");
    let relay = Proxy::to(world.port("ssh"));
    // The host CA speaks for the gateway behind the relay's port too.
    let known = std::fs::read_to_string(world.profile("engineer", "known_hosts")).unwrap();
    let authority = known.lines().next().unwrap().split_whitespace().skip(2).collect::<Vec<_>>().join(" ");
    let file = world.dir().join("relayed_known_hosts");
    std::fs::write(&file, format!("@cert-authority * {authority}\n")).unwrap();
    let (known, port) = (format!("UserKnownHostsFile={}", file.display()), relay.port.to_string());
    let base = ["-o", &known, "-p", &port, "-l", "diag%gw-reset"];
    for (options, command, input) in [
        ("-T", "cat >/dev/null", true),
        ("-T", "cat /dev/zero", false),
        ("-tt", "while :; do echo tick; done", false),
    ] {
        let marker = marker();
        let command = format!("setsid sleep {marker} & {command}");
        let mut args = base.to_vec();
        args.extend([options, "daypass-gateway-engineer", &command]);
        let mut ssh = world.ssh_command(&args);
        ssh.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        ssh.stdin(if input {
            std::fs::File::open("/dev/zero").unwrap().into()
        } else {
            std::process::Stdio::null()
        });
        let mut ssh = ssh.spawn().unwrap();
        until("the session's processes", || sleepers(&marker).len() == 1);
        let id = world.live_session("gw-reset");
        // In the middle of it.
        let client = i32::try_from(ssh.id()).unwrap();
        until("bytes to flow", || moved(client, "wchar:") > 2 << 20 || moved(client, "rchar:") > 2 << 20);
        relay.reset();
        until("the session's processes to be gone", || sleepers(&marker).is_empty());
        let ended = world.ended(&id);
        assert_eq!(ended["end_reason"], "closed", "{ended:#?}");
        assert_ne!(ssh.wait().unwrap().code(), Some(0));
    }
    drop(device);
    assert!(!world.has_event("recording.interrupted", &[]), "every recording closed in order");
    world.evidence_is_whole();
}
