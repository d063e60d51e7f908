//! What does not exist here, asked for with the real client.

use crate::world::{BENS_KEY, Mint, World, until};
use daypass_broker::gateway::{Limits, RefusedKind};
use daypass_broker::waiting::Bounds;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

#[tokio::test(flavor = "multi_thread")]
async fn nothing_reaches_a_device_without_a_session_of_the_door() {
    let world = World::new().await;
    let done = world.ssh_with(&["root@gw-0042.daypass", "cat"], b"rm -rf /".to_vec()).await;
    assert_eq!(done.status, Some(255));
    assert_eq!(done.err, "daypass: no live grant for root on this device\nhint: daypass request gw-0042\n");
    assert!(world.nothing_was_opened());
    assert_eq!(world.seen.delivered.load(std::sync::atomic::Ordering::SeqCst), 0);
    let done = world.ssh(&["gw-0042.daypass", "refused"]).await;
    assert_eq!((done.status, done.err.as_str()), (Some(255), "daypass: the device does not serve this\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_outer_hop_is_a_way_to_devices_and_nothing_else() {
    let world = World::new().await;
    let done = world.ssh(&["gateway", "id"]).await;
    assert!(done.err.contains("there is no shell on the gateway itself"), "{}", done.err);
    for target in ["gw-0042:2222", "127.0.0.1:22", "localhost.localdomain:22", "gw-0042:80"] {
        let done = world.ssh(&["-W", target, "gateway"]).await;
        assert_ne!(done.status, Some(0), "{target}");
        assert!(done.err.contains("daypass: "), "{target} {}", done.err);
    }
    let done = world.ssh(&["-W", "gw-9999:22", "gateway"]).await;
    assert!(done.err.contains("daypass: no device gw-9999"), "{}", done.err);
    world.refusal(RefusedKind::Session).await;
    world.refusal(RefusedKind::Target).await;
    assert!(world.nothing_was_opened());
}

#[tokio::test(flavor = "multi_thread")]
async fn channels_that_are_not_listed_are_refused_with_a_line_and_recorded() {
    let world = World::new().await;
    for target in ["gw-0042.daypass", "diag%gw-0042@gateway"] {
        // -W on a device is direct-tcpip there, as -L and -D are.
        let done = world.ssh(&["-W", "localhost:22", target]).await;
        assert!(done.err.contains("daypass: no forward leads to the device's own SSH"), "{}", done.err);
        let done =
            world.ssh(&["-o", "ExitOnForwardFailure=yes", "-R", "0:localhost:1", target, "exit 0"]).await;
        assert_eq!(done.status, Some(255), "{}", done.err);
        let socket = format!("{}:localhost:1", world.path("socket").display());
        let done = world.ssh(&["-o", "ExitOnForwardFailure=yes", "-R", &socket, target, "exit 0"]).await;
        assert_eq!(done.status, Some(255), "{}", done.err);
        let done = world.ssh(&["-s", target, "netconf"]).await;
        assert_eq!(done.status, Some(1), "{}", done.err);
        assert!(done.err.contains("daypass: the subsystem netconf is not open here"), "{}", done.err);
        let done = world.ssh(&["-T", target]).await;
        assert_eq!(done.status, Some(1));
        assert!(done.err.contains("daypass: a shell needs a terminal\nhint: use ssh -t"), "{}", done.err);
    }
    for kind in [
        RefusedKind::Forward,
        RefusedKind::RemoteForward,
        RefusedKind::StreamLocal,
        RefusedKind::Subsystem,
        RefusedKind::Shell,
    ] {
        world.refusal(kind).await;
    }
    assert!(world.seen.opened.lock().unwrap().is_empty());
    assert!(world.seen.refused.lock().unwrap().iter().all(|refused| {
        refused.kind == RefusedKind::Shell || refused.device.as_ref().is_some_and(|d| d.as_str() == "gw-0042")
    }));
}

/// Prints how many bytes come back from a socket.
const KNOCK: &str = "import socket,sys
s=socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
try:
  s.sendall(b\"x\")
  print(len(s.recv(10)))
except OSError:
  print(0)";

#[tokio::test(flavor = "multi_thread")]
async fn local_and_dynamic_and_socket_forwards_carry_no_byte() {
    let world = World::new().await;
    for forward in ["-L $FOLDER/in:localhost:22", "-L $FOLDER/in:/run/x.sock"] {
        let line = format!(
            "rm -f $FOLDER/in; $SSH -N {forward} gw-0042.daypass 2>$FOLDER/err & pid=$!; \
             for i in $(seq 100); do [ -S $FOLDER/in ] && break; sleep 0.1; done; \
             python3 -c '{KNOCK}' $FOLDER/in; kill $pid; wait $pid; cat $FOLDER/err"
        );
        let done = world.shell(&line).await;
        assert!(done.text().starts_with("0\n"), "{} {}", done.text(), done.err);
        assert!(done.text().contains("daypass: "), "{}", done.text());
    }
    world.refusal(RefusedKind::Forward).await;
    world.refusal(RefusedKind::StreamLocal).await;
    assert!(world.nothing_was_opened());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_and_a_display_stay_with_the_engineer() {
    let world = World::new().await;
    let line = "eval $(ssh-agent -s) >&2; $SSH -A -o IdentityAgent=$SSH_AUTH_SOCK gw-0042.daypass exit 7; echo $?; \
                DISPLAY=:9 $SSH -Y -o XAuthLocation=/bin/false gw-0042.daypass exit 8; echo $?; ssh-agent -k >&2";
    let done = world.shell(line).await;
    assert_eq!(done.text(), "7\n8\n", "{}", done.err);
    assert!(done.err.contains("daypass: agent forwarding is not open here"), "{}", done.err);
    assert!(done.err.contains("daypass: X11 forwarding is not open here"), "{}", done.err);
    world.refusal(RefusedKind::Agent).await;
    world.refusal(RefusedKind::X11).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_past_its_bound_is_refused() {
    let world = World::new().await;
    let long = "x".repeat(20_000);
    let done = world.ssh(&["gw-0042.daypass", &long]).await;
    assert_eq!(done.status, Some(1));
    assert!(done.err.contains("daypass: a command has 1 to 16384 bytes"), "{}", done.err);
    assert!(world.seen.opened.lock().unwrap().is_empty());
}

fn at_most(per_source: usize) -> Bounds {
    Bounds { altogether: 512, per_source }
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_silent_is_closed_after_the_grace_and_their_place_is_free_again() {
    let limits = Limits { login_grace: Duration::from_secs(3), unproven: at_most(2), ..Limits::default() };
    let world = World::with(limits).await;
    let connect = || TcpStream::connect(world.gateway.address());
    let (mut one, mut two) = (connect().await.unwrap(), connect().await.unwrap());
    let mut line = [0; 8];
    one.read_exact(&mut line).await.unwrap();
    two.read_exact(&mut line).await.unwrap();
    assert_eq!(&line, b"SSH-2.0-");
    for stream in [&mut one, &mut two] {
        let mut rest = Vec::new();
        let closed = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut rest)).await;
        closed.expect("closed after the grace").ok();
    }
    let done = world.ssh(&["gw-0042.daypass", "exit 7"]).await;
    assert_eq!(done.status, Some(7), "{}", done.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_grace_ends_nobody_who_is_proven() {
    let limits = Limits { login_grace: Duration::from_secs(3), ..Limits::default() };
    let world = World::with(limits).await;
    for target in ["gw-0042.daypass", "diag%gw-0042@gateway"] {
        let done = world.shell(&format!("(sleep 5; echo late) | $SSH {target} cat")).await;
        assert_eq!(done.text(), "late\n", "{target} {}", done.err);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proven_person_is_not_counted_among_the_unproven() {
    let limits = Limits { login_grace: Duration::from_secs(10), unproven: at_most(1), ..Limits::default() };
    let world = World::with(limits).await;
    let mut command = world.command("ssh");
    let _first = command.args(["diag%gw-0042@gateway", "stall"]).spawn().unwrap();
    until("the first", || world.seen.opened.lock().unwrap().len() == 1).await;
    let done = world.ssh(&["diag%gw-0042@gateway", "exit 7"]).await;
    assert_eq!(done.status, Some(7), "{}", done.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_person_on_the_device_must_be_the_person_of_the_jump() {
    let world = World::new().await;
    world.write_key("other", BENS_KEY);
    let ben = Mint { key: BENS_KEY, principals: vec![crate::world::BEN], ..Mint::default() };
    std::fs::write(world.path("other-cert.pub"), ben.mint().to_openssh().unwrap()).unwrap();
    let folder = world.folder.path().display();
    // Ana jumps; what is asked of the device carries Ben's certificate.
    let inner = std::fs::read_to_string(world.path("config")).unwrap();
    let inner = inner
        .replace(&format!("{folder}/id\n"), &format!("{folder}/other\n"))
        .replace(&format!("{folder}/id-cert.pub\n"), &format!("{folder}/other-cert.pub\n"))
        .replace(
            "  ProxyJump gateway\n",
            &format!("  ProxyCommand ssh -F {folder}/config -W %h:%p gateway\n"),
        );
    std::fs::write(world.path("inner"), inner).unwrap();
    let done = world.shell("ssh -F $FOLDER/inner gw-0042.daypass exit 7").await;
    assert_eq!(done.status, Some(255), "{}", done.err);
    world.refusal(RefusedKind::OtherPerson).await;
    assert!(world.nothing_was_opened());
}
