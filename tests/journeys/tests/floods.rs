//! Ten thousand who connect and then say nothing, or never finish, keep nobody honest out and cost bounded
//! memory and files; and they are gone when their time is over.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use journeys::{Program, World, until};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long somebody honest may take to get in, on a machine that is busy.
const PROMPT: Duration = Duration::from_secs(20);
/// What a flood may cost: its places are bounded, and so is what each takes.
const MEMORY_KIB: u64 = 160 * 1024;

/// Each flood has the machine's ports and files to itself.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// So many, if this process may have so many sockets.
fn flood_size() -> usize {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    usize::try_from(most).unwrap_or(usize::MAX).saturating_sub(2000).min(10_000)
}

/// Connections that stay as they are; from this many addresses.
fn flood(port: &str, addresses: usize, says: &[u8]) -> Vec<TcpStream> {
    let to = SocketAddr::from(([127, 0, 0, 1], port.parse().unwrap()));
    (0..flood_size())
        .map(|n| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            let n = u32::try_from(n % addresses).unwrap();
            // 127.0.0.2 is the first of the flood's own.
            let from = Ipv4Addr::from_bits(Ipv4Addr::new(127, 0, 0, 2).to_bits() + n);
            socket.bind(&SocketAddr::from((from, 0)).into()).unwrap();
            socket.connect(&to.into()).unwrap();
            let mut stream = TcpStream::from(socket);
            // Turned away already is as good.
            let _ = stream.write_all(says);
            stream
        })
        .collect()
}

/// Somebody honest gets in while the flood stands; some were asked to wait a moment, as anybody is who comes
/// in the very second of thousands.
#[track_caller]
fn gets_in(what: &str, mut attempt: impl FnMut() -> bool) {
    let began = Instant::now();
    until(what, &mut attempt);
    assert!(began.elapsed() < PROMPT, "{what} took {:?}", began.elapsed());
    assert!(attempt(), "{what}, once more");
}

fn stands(world: &World, places: usize, addresses: usize, says: &[u8], port: &str) {
    let (files, memory) = (world.open_files(), world.watch_memory());
    let flood = flood(world.port(port), addresses, says);
    gets_in("an engineer to get in", || world.ssh(&["diag@gw-0043.daypass", "echo in"]).out() == "in\n");
    gets_in("the command line to get in", || world.cli("engineer", &["sessions", "--live"]).code() == 0);
    let (most, cost) = (world.open_files(), world.most_memory().saturating_sub(memory));
    println!("{} on {port} from {addresses}: {most} files, {cost} KiB", flood.len());
    assert!(most < files + places + 100, "{most} files are open; {files} were before");
    assert!(cost < MEMORY_KIB, "{cost} KiB");
    // The flood is still there, and the broker has let go of it.
    until("the places to be free again", || world.open_files() < files + 50);
    drop(flood);
}

#[test]
fn floods_of_silence_at_the_gateway_keep_nobody_out() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let world = World::start();
    world.ask("gw-0043", "30m");
    // `unproven_per_source` of them, and `unproven`.
    stands(&world, 16, 1, b"", "ssh");
    stands(&world, 512, 5000, b"SSH-2.0-flood\r\n", "ssh");
    world.evidence_is_whole();
}

#[test]
fn floods_of_silence_at_the_https_port_keep_nobody_out() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let world = World::start();
    world.ask("gw-0043", "30m");
    // `unanswered_per_source` of them, and `unanswered`. A TLS record that never ends.
    stands(&world, 1024, 1, b"", "https");
    stands(&world, 2048, 5000, b"\x16\x03\x01\x02\x00\x01", "https");
}

#[test]
fn somebody_who_begins_tls_and_no_request_or_never_ends_one_is_given_up() {
    let world = World::start();
    let mut clients: Vec<_> = ["", "GET / HTTP/1.1\r\nHost: x\r\nX-Slow: "]
        .iter()
        .map(|says| {
            let mut openssl = Command::new("openssl");
            let to = format!("127.0.0.1:{}", world.port("https"));
            openssl.args(["s_client", "-quiet", "-no_ign_eof", "-connect", &to]);
            let mut client = Program::start(openssl);
            client.complains("verify return");
            client.send(says.as_bytes());
            client
        })
        .collect();
    // Somebody who drips goes on for ever, if he may.
    for _ in 0..8 {
        clients[1].send(b"x");
        std::thread::sleep(Duration::from_millis(500));
    }
    for client in clients {
        let _ = client.ends();
    }
}
