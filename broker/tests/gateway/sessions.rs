//! What engineers come for.

use crate::world::{ANA, World, pattern, until};
use daypass_broker::gateway::EndNotice;
use daypass_protocol::tunnel::open::OpenKind;
use sha2::{Digest, Sha256};
use std::process::Stdio;
use std::sync::atomic::Ordering;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test(flavor = "multi_thread")]
async fn a_command_runs_through_a_jump_and_through_a_single_hop_with_host_certificates_verified() {
    let world = World::new().await;
    for args in [&["gw-0042.daypass", "exit 7"][..], &["diag%gw-0042@gateway", "exit 7"]] {
        let done = world.ssh(args).await;
        assert_eq!(done.status, Some(7), "{args:?} {}", done.err);
        assert_eq!(done.err, "", "{args:?}");
    }
    let begun = world.seen.begun.lock().unwrap().clone();
    for begun in &begun {
        assert_eq!(begun.person.to_string(), ANA);
        assert_eq!((begun.device.as_str(), begun.login.as_str()), ("gw-0042", "diag"));
        assert!(begun.client.version.starts_with("SSH-2.0-OpenSSH"), "{begun:?}");
        assert!(begun.client.kex.as_deref().is_some_and(|kex| kex.contains("25519")), "{begun:?}");
    }
    assert_eq!(begun.iter().map(|begun| begun.client.outer_kex.is_some()).collect::<Vec<_>>(), [true, false]);
    until("both sessions closed", || world.seen.closed.load(Ordering::SeqCst) == 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sftp_subsystem_is_a_channel_of_its_own_kind() {
    let world = World::new().await;
    for target in ["gw-0042.daypass", "diag%gw-0042@gateway"] {
        let done = world.ssh_with(&["-s", target, "sftp"], b"exit".to_vec()).await;
        assert_eq!((done.status, done.text().as_str()), (Some(0), "exit"), "{}", done.err);
    }
    let opened = world.seen.opened.lock().unwrap().clone();
    assert_eq!(
        opened.iter().map(|(kind, _)| kind.clone()).collect::<Vec<_>>(),
        [OpenKind::Sftp, OpenKind::Sftp]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn output_stderr_exit_status_and_signal_arrive_apart() {
    let world = World::new().await;
    let done = world.ssh(&["gw-0042.daypass", "err"]).await;
    assert_eq!(
        (done.status, done.text().as_str(), done.err.as_str()),
        (Some(3), "to stdout\n", "to stderr\n")
    );
    let done = world.ssh(&["gw-0042.daypass", "killed"]).await;
    assert_eq!(done.status, Some(255), "a signal is not an exit status: {}", done.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_listed_environment_travels() {
    let world = World::new().await;
    let done = world
        .ssh(&["-o", "SetEnv=DAYPASS_REASON=x LD_PRELOAD=/evil LC_TIME=C", "gw-0042.daypass", "env"])
        .await;
    assert_eq!(done.text(), "DAYPASS_REASON=x\nLC_TIME=C\n", "{}", done.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_megabytes_arrive_exactly_both_ways_and_across_new_keys() {
    const SIZE: usize = 50_000_000;
    let world = World::new().await;
    let want = hex::encode(Sha256::digest(pattern(0, SIZE)));
    let done = world.ssh(&["-o", "RekeyLimit=4M", "gw-0042.daypass", &format!("bytes {SIZE}")]).await;
    assert_eq!(done.status, Some(0), "{}", done.err);
    assert_eq!((done.out.len(), hex::encode(Sha256::digest(&done.out))), (SIZE, want.clone()));
    let done =
        world.ssh_with(&["-o", "RekeyLimit=4M", "gw-0042.daypass", "sum"], pattern(0, SIZE).to_vec()).await;
    assert_eq!(done.text(), format!("{SIZE} {want}\n"), "{}", done.err);
    let done = world.ssh_with(&["diag%gw-0043@gateway", "sum"], pattern(0, SIZE).to_vec()).await;
    assert_eq!(done.text(), format!("{SIZE} {want}\n"), "{}", done.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_input_reaches_the_program() {
    let world = World::new().await;
    let done = world.ssh_with(&["gw-0042.daypass", "cat"], b"one\0two".to_vec()).await;
    assert_eq!((done.status, done.out.as_slice()), (Some(0), &b"one\0two"[..]), "{}", done.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_has_a_terminal_of_the_clients_size_and_follows_it() {
    let world = World::new().await;
    // One change at a time, and none before the first size was shown: stty makes two of columns and rows.
    let line = "touch $FOLDER/shown; script -qec 'stty cols 77 rows 33; \
                (until grep -q 77x33 $FOLDER/shown; do sleep 0.1; done; \
                 for i in 1 2 3 4 5 6 7 8 9; do stty rows 4$i </dev/tty; sleep 0.5; done) & \
                $SSH -tt gw-0042.daypass size | tee $FOLDER/shown' /dev/null";
    let done = world.shell(line).await;
    let text = done.text();
    assert!(text.contains("77x33\r"), "{text} {}", done.err);
    assert!(text.contains("77x4"), "{text}");
    let mut command = world.command("ssh");
    let mut child = command.args(["-tt", "gw-0042.daypass"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"hello\nexit\n").await.unwrap();
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let opened = world.seen.opened.lock().unwrap().clone();
    assert!(matches!(opened.last(), Some((OpenKind::Shell { .. }, _))), "{opened:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_carries_several_channels_each_with_its_own_status() {
    let world = World::new().await;
    let master = "$SSH -o ControlMaster=yes -o ControlPath=$FOLDER/mux -N -f gw-0042.daypass && \
                  for i in 1 2 3 4 5; do \
                    ($SSH -o ControlPath=$FOLDER/mux gw-0042.daypass exit $((40 + i)); echo $i=$?) & \
                  done; wait; $SSH -o ControlPath=$FOLDER/mux -O exit gw-0042.daypass 2>&1";
    let done = world.shell(master).await;
    let text = done.text();
    for i in 1..=5 {
        assert!(text.contains(&format!("{i}={}\n", 40 + i)), "{text} {}", done.err);
    }
    assert_eq!(world.seen.begun.lock().unwrap().len(), 1, "one session for the connection");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_ended_says_why_on_every_channel_and_disconnects() {
    let world = World::new().await;
    let mut command = world.command("ssh");
    let mut child = command.args(["-tt", "gw-0042.daypass"]).stdin(Stdio::piped()).spawn().unwrap();
    let _stdin = child.stdin.take();
    until("the shell", || !world.seen.opened.lock().unwrap().is_empty()).await;
    until("a listener", || world.door.notices.receiver_count() > 0).await;
    world.door.notices.send("access ends in one minute".to_owned()).unwrap();
    let mut err = child.stderr.take().unwrap();
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains("one minute") {
        assert_ne!(err.read_buf(&mut seen).await.unwrap(), 0, "{}", String::from_utf8_lossy(&seen));
    }
    world.door.end.send_replace(Some(EndNotice { message: "the grant was revoked".to_owned() }));
    err.read_to_end(&mut seen).await.unwrap();
    let text = String::from_utf8_lossy(&seen).into_owned();
    assert!(text.contains("daypass: the grant was revoked\r\n"), "{text}");
    assert_eq!(child.wait().await.unwrap().code(), Some(255));
    until("the session to be told", || world.seen.closed.load(Ordering::SeqCst) == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_client_leaves_nothing_behind() {
    let world = World::new().await;
    let mut command = world.command("ssh");
    let mut child = command.args(["gw-0042.daypass", "yes"]).spawn().unwrap();
    until("the program", || !world.seen.opened.lock().unwrap().is_empty()).await;
    child.kill().await.unwrap();
    until("the session closed", || world.seen.closed.load(Ordering::SeqCst) == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_stops_says_so() {
    let world = World::new().await;
    let mut command = world.command("ssh");
    let child = command.args(["diag%gw-0042@gateway", "stall"]).spawn().unwrap();
    until("the program", || !world.seen.opened.lock().unwrap().is_empty()).await;
    world.gateway.stop().await;
    let output = child.wait_with_output().await.unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("daypass: the gateway is stopping"), "{text}");
}
