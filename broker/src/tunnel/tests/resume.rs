//! Channels that outlive their tunnel, seen from the broker.

use super::world::*;
use crate::session::wire::{DeviceChannel, FromDevice, ToDevice};
use crate::tunnel::{Keeper, Tunnel};
use bytes::Bytes;
use daypass_protocol::tunnel::Stream as Which;
use daypass_protocol::tunnel::control::{self, FromDevice as Report};
use daypass_protocol::tunnel::frame::{CloseCode, Exit, Frame};
use daypass_protocol::tunnel::hello::Binding;
use daypass_protocol::tunnel::open::{Received, WindowSize};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

fn keeper(world: &World) -> Keeper {
    Keeper {
        tunnels: world.server.tunnels().clone(),
        key: Arc::new(session_key()),
        over: CancellationToken::new(),
    }
}

async fn open(device: &mut Device, tunnel: &Arc<Tunnel>, keeper: &Keeper) -> (Channel, DeviceChannel) {
    let (asking, keeper) = (tunnel.clone(), keeper.clone());
    let asked = tokio::spawn(async move { asking.open(exec(0), &session_key(), Some(keeper)).await });
    let (mut channel, open) = device.accept().await;
    assert_eq!(open.resume, None);
    channel.say(&Frame::Opened).await;
    (channel, asked.await.unwrap().unwrap())
}

fn data(offset: u64, bytes: &[u8]) -> Frame {
    Frame::Data { stream: Which::Data, offset, bytes: Bytes::copy_from_slice(bytes) }
}

fn resumed(received: u64, opened_on: &Binding) -> Frame {
    Frame::Resumed { received, opened_on: opened_on.clone() }
}

/// A channel that has had 2 bytes of output, and 6 of input of which 2 are acknowledged, on a tunnel that is
/// lost; the device is back, and was asked.
async fn lost(world: &World, keeper: &Keeper) -> (Binding, Device, Channel, DeviceChannel) {
    let (mut device, tunnel) = world.connect().await;
    let first = device.binding.clone();
    let (mut channel, mut session) = open(&mut device, &tunnel, keeper).await;
    session.input.send(ToDevice::Data(Bytes::from_static(b"abcdef"))).await.unwrap();
    let size = WindowSize { cols: 1, rows: 2, width_px: 3, height_px: 4 };
    session.input.send(ToDevice::Resize(size)).await.unwrap();
    session.input.send(ToDevice::Eof).await.unwrap();
    for _ in 0..3 {
        channel.hear().await.unwrap();
    }
    channel.say(&Frame::Ack { stream: Which::Data, offset: 2 }).await;
    channel.say(&data(0, b"hi")).await;
    assert_eq!(session.output.recv().await, Some(FromDevice::Data(Bytes::from_static(b"hi"))));
    drop((channel, device));
    tunnel.closed().await;
    let (mut device, tunnel) = world.connect().await;
    let (channel, asked) = device.accept().await;
    assert_eq!(asked.resume, Some(Received { data: 2, stderr: 0 }));
    assert_eq!((&asked.binding, asked.channel), (&device.binding, 0));
    assert_ne!(asked.binding, first);
    drop(tunnel);
    (first, device, channel, session)
}

#[tokio::test]
async fn a_channel_goes_on_and_says_again_what_the_device_does_not_have() {
    let world = World::new().await;
    let keeper = keeper(&world);
    let (first, _device, mut channel, mut session) = lost(&world, &keeper).await;
    channel.say(&resumed(4, &first)).await;
    assert_eq!(channel.hear().await, Some(data(4, b"ef")));
    assert!(matches!(channel.hear().await, Some(Frame::Resize(WindowSize { cols: 1, .. }))));
    assert_eq!(channel.hear().await, Some(Frame::Eof { stream: Which::Data, offset: 6 }));
    channel.say(&data(2, b"!")).await;
    channel.say(&Frame::Eof { stream: Which::Data, offset: 3 }).await;
    channel.say(&Frame::Exit(Exit::Status(0))).await;
    channel.say(&Frame::Close { code: CloseCode::Done, message: String::new() }).await;
    let mut heard = Vec::new();
    while let Some(message) = session.output.recv().await {
        heard.push(message);
    }
    assert_eq!(heard[0], FromDevice::Data(Bytes::from_static(b"!")));
    assert!(matches!(heard.last(), Some(FromDevice::Closed { code: CloseCode::Done, .. })), "{heard:?}");
}

#[tokio::test]
async fn what_was_known_is_skipped_and_what_was_not_is_passed_on() {
    let world = World::new().await;
    let keeper = keeper(&world);
    let (first, device, mut channel, mut session) = lost(&world, &keeper).await;
    channel.say(&resumed(6, &first)).await;
    channel.say(&Frame::Eof { stream: Which::Data, offset: 2 }).await;
    channel.say(&Frame::Exit(Exit::Status(5))).await;
    assert_eq!(session.output.recv().await, Some(FromDevice::Eof(Which::Data)));
    assert_eq!(session.output.recv().await, Some(FromDevice::Exit(Exit::Status(5))));
    // Lost once more, before the close.
    let tunnel = world.tunnel();
    drop((channel, device));
    tunnel.closed().await;
    let (mut device, _tunnel) = world.connect().await;
    let (mut channel, _) = device.accept().await;
    channel.say(&resumed(6, &first)).await;
    channel.say(&Frame::Eof { stream: Which::Data, offset: 2 }).await;
    channel.say(&Frame::Exit(Exit::Status(5))).await;
    channel.say(&Frame::Close { code: CloseCode::Done, message: String::new() }).await;
    let last = session.output.recv().await;
    assert!(matches!(last, Some(FromDevice::Closed { code: CloseCode::Done, .. })), "{last:?}");
    assert_eq!(session.output.recv().await, None);
}

#[tokio::test]
async fn promise_1_no_grant_no_bytes_a_clone_that_was_not_at_the_first_tunnel_gets_no_byte_of_the_session() {
    let world = World::new().await;
    let keeper = keeper(&world);
    let (_first, device, mut channel, mut session) = lost(&world, &keeper).await;
    // It has the device's key, was welcomed, and claims to go on: with all it can know.
    channel.say(&resumed(2, &device.binding)).await;
    assert_eq!(channel.hear().await, None, "not one byte of the engineer's");
    assert_eq!(session.output.recv().await, None);
}

#[tokio::test]
async fn a_device_that_claims_input_that_was_never_sent_or_takes_some_back_loses_the_channel() {
    for claim in [1, 7] {
        let world = World::new().await;
        let keeper = keeper(&world);
        let (first, _device, mut channel, mut session) = lost(&world, &keeper).await;
        channel.say(&resumed(claim, &first)).await;
        assert_eq!(channel.hear().await, None);
        assert_eq!(session.output.recv().await, None);
    }
}

#[tokio::test]
async fn promise_4_access_ends_on_time_nothing_is_resumed_for_a_session_that_is_over() {
    let world = World::new().await;
    let keeper = keeper(&world);
    let (mut device, tunnel) = world.connect().await;
    let (channel, mut session) = open(&mut device, &tunnel, &keeper).await;
    drop((channel, device));
    tunnel.closed().await;
    keeper.over.cancel();
    assert_eq!(session.output.recv().await, None);
    let (mut device, _tunnel) = world.connect().await;
    // The device says what it keeps, and is told to end it.
    let kept = "S-00000001".parse().unwrap();
    device.say(&Report::Tock { sessions: vec![kept], uptime_s: 1 }).await;
    let told = device.hear().await;
    assert!(
        matches!(&told, Some(control::ToDevice::EndSession { session, .. }) if session.as_str() == "S-00000001"),
        "{told:?}"
    );
    assert!(device.channels.try_recv().is_err(), "no channel was asked for");
}
