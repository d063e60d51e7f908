//! Forwards with the real client, and a slow reader of one.

use crate::world::World;
use daypass_protocol::tunnel::open::OpenKind;

#[tokio::test(flavor = "multi_thread")]
async fn a_forward_carries_bytes_both_ways_in_both_ways_in() {
    let world = World::new().await;
    for target in ["gw-0042.daypass", "diag%gw-0042@gateway"] {
        let done = world.ssh_with(&["-W", "localhost:7", target], vec![7; 3_000_000]).await;
        assert_eq!(done.status, Some(0), "{target} {}", done.err);
        assert!(done.out == vec![7; 3_000_000], "{target}: {} bytes", done.out.len());
    }
    let opened = world.seen.opened.lock().unwrap().clone();
    let target = OpenKind::Forward { host: "127.0.0.1".to_owned(), port: 7 };
    assert!(opened.iter().all(|(kind, _)| *kind == target), "in one spelling: {opened:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_echo_through_a_forward_into_a_late_reader_finishes_with_every_byte() {
    let world = World::new().await;
    let line = "head -c 30M /dev/zero | $SSH -W 127.0.0.1:7 gw-0042.daypass | (sleep 3; wc -c)";
    let done = world.shell(line).await;
    assert_eq!(done.text().trim(), (30 * 1024 * 1024).to_string(), "{}", done.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_forward_stops_no_other_channel() {
    let world = World::new().await;
    let setup =
        "$SSH -o ControlMaster=yes -o ControlPath=$FOLDER/mux -N -f gw-0042.daypass >$FOLDER/log 2>&1";
    let done = world.shell(setup).await;
    assert_eq!(done.status, Some(0), "{}", done.err);
    let mux = format!("ControlPath={}", world.path("mux").display());
    // Neither of the two is read from, nor reads.
    let mut first = world.command("ssh");
    let mut unread = first.args(["-o", &mux, "-W", "127.0.0.1:19", "gw-0042.daypass"]).spawn().unwrap();
    let mut second = tokio::process::Command::new("sh");
    second.arg("-c").arg(format!(
        "head -c 20M /dev/zero | ssh -F {} -o {mux} -W 127.0.0.1:9 gw-0042.daypass",
        world.path("config").display()
    ));
    let mut stalled = second.kill_on_drop(true).spawn().unwrap();
    crate::world::until("both forwards", || world.seen.opened.lock().unwrap().len() == 2).await;
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    for _ in 0..3 {
        let done = world.ssh(&["-o", &mux, "gw-0042.daypass", "exit 7"]).await;
        assert_eq!(done.status, Some(7), "{}", done.err);
    }
    unread.kill().await.unwrap();
    stalled.kill().await.unwrap();
    let done = world.shell("$SSH -o ControlPath=$FOLDER/mux -O exit gw-0042.daypass").await;
    assert_eq!(done.status, Some(0), "{}", done.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_is_not_reached_is_told_as_a_failed_connection() {
    let world = World::new().await;
    let done = world.ssh(&["-W", "localhost:81", "gw-0042.daypass"]).await;
    assert_ne!(done.status, Some(0));
    assert!(done.err.contains("connect failed: daypass: connection refused"), "{}", done.err);
    let done = world.ssh(&["-W", "localhost:82", "gw-0042.daypass"]).await;
    assert!(done.err.contains("administratively prohibited: daypass: not granted"), "{}", done.err);
}
