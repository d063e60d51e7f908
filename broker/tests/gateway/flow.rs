//! A slow reader slows its own stream only.

use crate::world::{World, until};
use std::sync::atomic::Ordering;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn an_echo_into_a_late_reader_finishes_with_every_byte() {
    let world = World::new().await;
    for target in ["gw-0042.daypass", "diag%gw-0042@gateway"] {
        let line = format!("head -c 60M /dev/zero | $SSH {target} cat | (sleep 4; wc -c)");
        let done = world.shell(&line).await;
        assert_eq!(done.text().trim(), (60 * 1024 * 1024).to_string(), "{target} {}", done.err);
    }
}

/// One channel that nobody reads and one program that takes no input, on one connection with others.
#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_reader_and_a_stalled_upload_stop_no_other_channel_and_no_other_connection() {
    let world = World::new().await;
    let setup = "$SSH -o ControlMaster=yes -o ControlPath=$FOLDER/mux -N -f gw-0042.daypass \
                 >$FOLDER/master.log 2>&1";
    let done = world.shell(setup).await;
    assert_eq!(done.status, Some(0), "{}", done.err);
    let mux = format!("ControlPath={}", world.path("mux").display());
    let mut reader = world.command("ssh");
    // The pipe of this client's output is never read.
    let mut unread = reader.args(["-o", &mux, "gw-0042.daypass", "yes"]).spawn().unwrap();
    let mut upload = tokio::process::Command::new("sh");
    upload.arg("-c").arg(format!(
        "head -c 20M /dev/zero | ssh -F {} -o {mux} gw-0042.daypass stall",
        world.path("config").display()
    ));
    let mut stalled = upload.kill_on_drop(true).spawn().unwrap();
    until("both programs", || world.seen.opened.lock().unwrap().len() == 2).await;
    // Long enough for both windows to fill.
    tokio::time::sleep(Duration::from_secs(2)).await;
    for _ in 0..5 {
        let done = world.ssh(&["-o", &mux, "gw-0042.daypass", "exit 7"]).await;
        assert_eq!(done.status, Some(7), "{}", done.err);
    }
    let download = world.ssh(&["-o", &mux, "gw-0042.daypass", "bytes 5000000"]).await;
    assert_eq!(download.out.len(), 5_000_000, "{}", download.err);
    let echo = world.ssh_with(&["-o", &mux, "gw-0042.daypass", "cat"], b"typed".to_vec()).await;
    assert_eq!(echo.out, b"typed", "{}", echo.err);
    assert_eq!(world.seen.begun.lock().unwrap().len(), 1, "all of that was one connection");
    let other = world.ssh_with(&["gw-0043.daypass", "sum"], vec![0; 5_000_000]).await;
    assert!(other.text().starts_with("5000000 "), "{}", other.err);
    unread.kill().await.unwrap();
    stalled.kill().await.unwrap();
    let done = world.shell("$SSH -o ControlPath=$FOLDER/mux -O exit gw-0042.daypass").await;
    assert_eq!(done.status, Some(0), "{}", done.err);
    until("every session closed", || world.seen.closed.load(Ordering::SeqCst) == 2).await;
}
