//! Shells and commands over a real tunnel to a real shim.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a broken test may break")]

mod broker;

use broker::*;
use daypass_protocol::tunnel::frame::{CloseCode, Exit, Frame};
use daypass_protocol::tunnel::open::{OpenKind, WindowSize};

async fn joined() -> (Broker, Device, Joined) {
    let broker = Broker::start().await;
    let mut device = Device::enrolled(&broker);
    device.run();
    let joined = broker.join().await;
    (broker, device, joined)
}

#[tokio::test]
async fn a_command_runs_with_both_outputs_apart_and_its_status() {
    let (_broker, device, mut joined) = joined().await;
    let mut channel = joined.open(exec("printf 'o\\0ut'; printf err >&2; exit 7")).await;
    let said = channel.rest().await;
    assert_eq!(said.out, b"o\0ut");
    assert_eq!(said.err, b"err");
    assert_eq!(said.exit, Some(Exit::Status(7)));
    assert_eq!(said.close.unwrap().0, CloseCode::Done);
    let hello = joined.hello(device.state().device_key().unwrap().public_key());
    assert_eq!((hello.bundle_version, hello.tls_group.as_str()), (5, "X25519MLKEM768"));
}

#[tokio::test]
async fn a_command_has_a_clean_environment_and_no_descriptor_of_the_shim() {
    let (_broker, _device, mut joined) = joined().await;
    let mut body = joined.body(&Cert::default(), exec("env; echo fds; ls /proc/self/fd; pwd; umask"));
    for (name, value) in
        [("LC_ALL", "C"), ("LD_PRELOAD", "/x.so"), ("DAYPASS_SESSION", "S-FORGED00"), ("PATH", "/x")]
    {
        body.env.push((name.into(), value.into()));
    }
    let mut channel = joined.open_body(&body).await;
    assert_eq!(channel.next().await, Some(Frame::Opened));
    let said = channel.rest().await;
    let (env, rest) = said.text().split_once("fds\n").map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    let mut names: Vec<_> = env.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
    names.sort_unstable();
    names.retain(|name| !matches!(*name, "PWD" | "_" | "SHLVL" | "OLDPWD"));
    assert_eq!(names, ["DAYPASS_SESSION", "HOME", "LC_ALL", "LOGNAME", "PATH", "SHELL", "USER"]);
    assert!(env.contains("DAYPASS_SESSION=S-7K2M9QXD"));
    // 3 is the directory that ls reads.
    assert!(rest.starts_with("0\n1\n2\n3\n/"), "{rest}");
    assert!(rest.trim_end().ends_with("0022"));
}

#[tokio::test]
async fn a_command_ended_by_a_signal_says_which_and_a_signal_reaches_its_group() {
    let (_broker, _device, mut joined) = joined().await;
    let mut channel = joined.open(exec("echo ready; sleep 600; echo not reached")).await;
    let mut said = Said::default();
    channel.until(&mut said, "ready\n").await;
    channel.send(Frame::Signal("TERM".into())).await;
    channel.rest_into(&mut said).await;
    assert_eq!(said.exit, Some(Exit::Signal { name: "TERM".into(), core_dumped: false }));
    assert_eq!(said.out, b"ready\n");
}

#[tokio::test]
async fn an_ignored_interrupt_of_the_shims_parent_is_not_inherited() {
    let (_broker, _device, mut joined) = joined().await;
    let said = joined.open(exec("grep SigIgn /proc/self/status")).await.rest().await;
    let ignored = u64::from_str_radix(said.text().trim().rsplit('\t').next().unwrap(), 16).unwrap();
    // 32 and 33 are the C library's own, and it changes them for nobody.
    assert_eq!(ignored & !0x1_8000_0000, 0, "{ignored:x}");
}

#[tokio::test]
async fn end_of_input_reaches_the_process() {
    let (_broker, _device, mut joined) = joined().await;
    let mut channel = joined.open(exec("cat; echo done")).await;
    channel.data(b"some").await;
    channel.data(b" bytes\n").await;
    channel.eof().await;
    let said = channel.rest().await;
    assert_eq!(said.text(), "some bytes\ndone\n");
    assert_eq!(said.exit, Some(Exit::Status(0)));
}

#[tokio::test]
async fn ten_megabytes_echo_byte_for_byte_and_are_acknowledged() {
    let (_broker, _device, mut joined) = joined().await;
    let channel = joined.open(exec("cat")).await;
    let mut bytes = vec![0; 10 * 1024 * 1024];
    getrandom::fill(&mut bytes).unwrap();
    let (read, write) = tokio::io::split(channel.stream);
    let sending = bytes.clone();
    let mut write = Some(write);
    let (told, mut acks) = tokio::sync::mpsc::unbounded_channel::<u64>();
    let (heard, mut acked) = tokio::sync::watch::channel(0u64);
    let sender = tokio::spawn(async move {
        use tokio::io::AsyncWriteExt as _;
        let mut half = write.take().unwrap();
        let mut offset = 0u64;
        let stream = daypass_protocol::tunnel::Stream::Data;
        let ack = |offset| {
            let mut wire = bytes::BytesMut::new();
            Frame::Ack { stream, offset }.encode(&mut wire).unwrap();
            wire
        };
        for chunk in sending.chunks(30_000) {
            // TUNNEL.md section 7.2: behind more than that, our acks of what comes back would not be heard.
            while offset - *acked.borrow() >= 640 * 1024 {
                tokio::select! {
                    changed = acked.changed() => changed.unwrap(),
                    Some(got) = acks.recv() => half.write_all(&ack(got)).await.unwrap(),
                }
            }
            let mut wire = bytes::BytesMut::new();
            let bytes = bytes::Bytes::copy_from_slice(chunk);
            Frame::Data { stream, offset, bytes }.encode(&mut wire).unwrap();
            offset += chunk.len() as u64;
            half.write_all(&wire).await.unwrap();
            while let Ok(got) = acks.try_recv() {
                half.write_all(&ack(got)).await.unwrap();
            }
        }
        while let Some(got) = acks.recv().await {
            half.write_all(&ack(got)).await.unwrap();
        }
        half
    });
    let (mut read, mut buffer) = (read, bytes::BytesMut::new());
    let mut got = Vec::new();
    while got.len() < bytes.len() || *heard.borrow() < bytes.len() as u64 {
        use tokio::io::AsyncReadExt as _;
        match Frame::decode(&mut buffer).unwrap() {
            Some(Frame::Data { offset, bytes, .. }) => {
                assert_eq!(offset, got.len() as u64);
                got.extend_from_slice(&bytes);
                told.send(got.len() as u64).unwrap();
            }
            Some(Frame::Ack { offset, .. }) => drop(heard.send_replace(offset)),
            Some(other) => panic!("{other:?}"),
            None => assert!(soon("echo", read.read_buf(&mut buffer)).await.unwrap() > 0),
        }
    }
    drop(told);
    drop(sender.await.unwrap());
    assert!(got == bytes, "the echo differs");
    assert_eq!(*heard.borrow(), bytes.len() as u64);
}

#[tokio::test]
async fn a_shell_runs_on_a_terminal_of_the_right_size_and_is_resized() {
    let (_broker, _device, mut joined) = joined().await;
    let mut channel = joined.open(OpenKind::Shell { pty: pty() }).await;
    let mut said = Said::default();
    channel.data(b"stty size; echo $TERM $0; tty\n").await;
    channel.until(&mut said, "33 91\r\nxterm-256color -sh\r\n/dev/pts/").await;
    channel.send(Frame::Resize(WindowSize { cols: 132, rows: 50, width_px: 0, height_px: 0 })).await;
    channel.data(b"stty size\n").await;
    channel.until(&mut said, "50 132\r\n").await;
    // Ctrl-C is the terminal's to turn into a signal.
    // It speaks when it is the terminal's foreground already; before, the signal would go to the shell.
    channel.data(b"sh -c 'echo u\"\"p; exec sleep 600'\n").await;
    channel.until(&mut said, "up\r\n").await;
    channel.data(b"\x03").await;
    channel.data(b"exit 5\n").await;
    channel.rest_into(&mut said).await;
    assert!(matches!(said.exit, Some(Exit::Status(5))), "{:?}", said.exit);
}

#[tokio::test]
async fn a_command_that_cannot_start_is_refused_and_not_half_opened() {
    let broker = Broker::start().await;
    let mut device = Device::enrolled(&broker);
    let config = device.configure("");
    let text = std::fs::read_to_string(&config).unwrap().replace("/bin/sh", "/no/such/shell");
    std::fs::write(&config, text).unwrap();
    device.run_as_configured(&config);
    let mut joined = broker.join().await;
    let refused = joined.refusal(&Cert::default(), exec("true")).await;
    assert_eq!(refused.code, daypass_protocol::tunnel::open::RefusedCode::Failed);
    assert!(!refused.message.contains("/no/such"), "the cause is for the log: {}", refused.message);
}
