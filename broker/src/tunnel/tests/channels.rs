use super::world::*;
use crate::session::wire::{DeviceChannel, FromDevice, QUEUE, ToDevice};
use crate::tunnel::{OpenError, Tunnel};
use bytes::{Bytes, BytesMut};
use daypass_protocol::tunnel::frame::{CloseCode, Exit, Frame};
use daypass_protocol::tunnel::open::{Refused, RefusedCode};
use daypass_protocol::tunnel::{MAX_DATA, Stream as Which};
use std::sync::Arc;
use std::time::Duration;

/// Opens a channel; both ends of it.
async fn open(device: &mut Device, tunnel: &Arc<Tunnel>, number: u32) -> (Channel, DeviceChannel) {
    let asking = tunnel.clone();
    let asked = tokio::spawn(async move { asking.open(exec(number), &session_key(), None).await });
    let (mut channel, open) = device.accept().await;
    assert_eq!((open.binding, open.channel), (device.binding.clone(), number));
    channel.say(&Frame::Opened).await;
    (channel, asked.await.unwrap().unwrap())
}

fn data(offset: u64, bytes: &[u8]) -> Frame {
    Frame::Data { stream: Which::Data, offset, bytes: Bytes::copy_from_slice(bytes) }
}

async fn closed_with(session: &mut DeviceChannel) -> CloseCode {
    loop {
        match session.output.recv().await {
            Some(FromDevice::Closed { code, .. }) => return code,
            Some(_) => {}
            None => panic!("the queue ended without a close"),
        }
    }
}

#[tokio::test]
async fn a_command_runs_to_its_end_with_every_kind_of_frame() {
    let world = World::new().await;
    let (mut device, tunnel) = world.connect().await;
    let (mut channel, mut session) = open(&mut device, &tunnel, 0).await;
    session.input.send(ToDevice::Data(Bytes::from_static(b"in"))).await.unwrap();
    session.input.send(ToDevice::Signal("INT".to_owned())).await.unwrap();
    session.input.send(ToDevice::Eof).await.unwrap();
    assert_eq!(channel.hear().await, Some(data(0, b"in")));
    assert_eq!(channel.hear().await, Some(Frame::Signal("INT".to_owned())));
    assert_eq!(channel.hear().await, Some(Frame::Eof { stream: Which::Data, offset: 2 }));
    channel.say(&Frame::Ack { stream: Which::Data, offset: 2 }).await;
    channel.say(&data(0, b"out")).await;
    let stderr = Frame::Data { stream: Which::Stderr, offset: 0, bytes: Bytes::from_static(b"err") };
    channel.say(&stderr).await;
    // Acknowledged once the session has taken them, and not before.
    let mut heard = vec![session.output.recv().await.unwrap(), session.output.recv().await.unwrap()];
    let mut acked = [0; 2];
    while acked != [3, 3] {
        match channel.hear().await {
            Some(Frame::Ack { stream: Which::Data, offset }) => acked[0] = offset,
            Some(Frame::Ack { stream: Which::Stderr, offset }) => acked[1] = offset,
            other => panic!("{other:?}"),
        }
    }
    channel.say(&Frame::Eof { stream: Which::Data, offset: 3 }).await;
    channel.say(&Frame::Exit(Exit::Status(7))).await;
    channel.say(&Frame::Close { code: CloseCode::Done, message: String::new() }).await;
    while let Some(message) = session.output.recv().await {
        heard.push(message);
    }
    assert_eq!(
        heard,
        [
            FromDevice::Data(Bytes::from_static(b"out")),
            FromDevice::Stderr(Bytes::from_static(b"err")),
            FromDevice::Eof(Which::Data),
            FromDevice::Exit(Exit::Status(7)),
            FromDevice::Closed { code: CloseCode::Done, message: String::new() },
        ]
    );
    // The device knows now that nothing has to be said again.
    assert_eq!(channel.hear().await, Some(Frame::Close { code: CloseCode::Done, message: String::new() }));
    assert_eq!(channel.hear().await, None, "the broker ends its direction too");
}

#[tokio::test]
async fn counters_grow_and_a_refusal_is_passed_on() {
    let world = World::new().await;
    let (mut device, tunnel) = world.connect().await;
    let mut last = 0;
    for number in 0..3 {
        let asking = tunnel.clone();
        let asked = tokio::spawn(async move { asking.open(exec(number), &session_key(), None).await });
        let (mut channel, open) = device.accept().await;
        assert!(open.counter > last);
        last = open.counter;
        let refused = Refused { code: RefusedCode::UnknownLogin, message: "no such login".to_owned() };
        channel.say(&Frame::Refused(refused.clone())).await;
        let answer = asked.await.unwrap();
        assert!(matches!(&answer, Err(OpenError::Refused(found)) if *found == refused), "{answer:?}");
    }
}

#[tokio::test]
async fn twenty_megabytes_come_back_byte_for_byte_and_are_acknowledged() {
    const TOTAL: usize = 20_000_000;
    let world = World::new().await;
    let (mut device, tunnel) = world.connect().await;
    let (mut channel, mut session) = open(&mut device, &tunnel, 0).await;
    let bytes: Bytes = (0..TOTAL).map(|n| u8::try_from(n * 31 % 251).unwrap()).collect::<Vec<_>>().into();
    let sent = bytes.clone();
    let input = session.input.clone();
    tokio::spawn(async move {
        // Longer than a frame, and not a multiple of one.
        for part in sent.chunks(50_001) {
            input.send(ToDevice::Data(sent.slice_ref(part))).await.unwrap();
        }
        input.send(ToDevice::Eof).await.unwrap();
    });
    let echo = tokio::spawn(async move {
        let (mut offset, mut acked) = (0u64, 0u64);
        while let Some(frame) = channel.hear().await {
            match frame {
                Frame::Data { stream: Which::Data, offset: at, bytes } => {
                    assert_eq!(at, offset);
                    offset += bytes.len() as u64;
                    channel.say(&Frame::Data { stream: Which::Data, offset: at, bytes }).await;
                    channel.say(&Frame::Ack { stream: Which::Data, offset }).await;
                }
                Frame::Ack { stream: Which::Data, offset: at } => {
                    assert!(at > acked && at <= offset);
                    acked = at;
                }
                Frame::Eof { offset: at, .. } => {
                    assert_eq!(at, offset);
                    channel.say(&Frame::Eof { stream: Which::Data, offset }).await;
                }
                other => panic!("{other:?}"),
            }
            if acked == TOTAL as u64 {
                return;
            }
        }
        panic!("only {acked} acknowledged");
    });
    let mut back = BytesMut::new();
    while back.len() < TOTAL {
        match session.output.recv().await.unwrap() {
            FromDevice::Data(part) => back.extend_from_slice(&part),
            other => panic!("{other:?}"),
        }
    }
    assert!(back == bytes);
    assert_eq!(session.output.recv().await, Some(FromDevice::Eof(Which::Data)));
    echo.await.unwrap();
}

#[tokio::test]
async fn a_device_that_breaks_the_protocol_loses_that_channel_and_no_other() {
    let world = World::new().await;
    let (mut device, tunnel) = world.connect().await;
    let mut encoded = Vec::new();
    for frames in [
        vec![data(1, b"gap")],
        vec![data(0, b"ab"), data(1, b"overlap")],
        vec![Frame::Eof { stream: Which::Data, offset: 1 }],
        vec![Frame::Eof { stream: Which::Data, offset: 0 }, data(0, b"after the end")],
        vec![Frame::Ack { stream: Which::Data, offset: 1 }],
        vec![Frame::Ack { stream: Which::Stderr, offset: 0 }],
        vec![Frame::Opened],
        vec![Frame::Signal("INT".to_owned())],
        vec![Frame::Exit(Exit::Status(0)), Frame::Exit(Exit::Status(0))],
    ] {
        let mut out = BytesMut::new();
        for frame in frames {
            frame.encode(&mut out).unwrap();
        }
        encoded.push(out);
    }
    // An unknown type, an empty frame, and one that is too long.
    encoded.push(BytesMut::from(&[0, 0, 0, 1, 99][..]));
    encoded.push(BytesMut::from(&[0, 0, 0, 0][..]));
    encoded.push(BytesMut::from(&[0xff, 0xff, 0xff, 0xff, 4][..]));
    let (mut good, mut good_session) = open(&mut device, &tunnel, 0).await;
    for (number, garbage) in (1..).zip(encoded) {
        let (mut channel, mut session) = open(&mut device, &tunnel, number).await;
        channel.say_bytes(&garbage).await;
        assert_eq!(closed_with(&mut session).await, CloseCode::Protocol, "{garbage:?}");
        loop {
            match channel.hear().await {
                Some(Frame::Close { code, .. }) => break assert_eq!(code, CloseCode::Protocol),
                Some(_) => {}
                None => panic!("no close for {garbage:?}"),
            }
        }
    }
    good.say(&data(0, b"still here")).await;
    let heard = good_session.output.recv().await;
    assert_eq!(heard, Some(FromDevice::Data(Bytes::from_static(b"still here"))));
}

#[tokio::test]
async fn a_device_that_never_reads_stops_only_its_own_channel_and_costs_bounded_memory() {
    let world = World::new().await;
    let (mut device, tunnel) = world.connect().await;
    let (_deaf, session) = open(&mut device, &tunnel, 0).await;
    let mut sent = 0;
    let part = Bytes::from(vec![0; MAX_DATA]);
    loop {
        let send = session.input.send(ToDevice::Data(part.clone()));
        match tokio::time::timeout(Duration::from_millis(500), send).await {
            Ok(sent_it) => sent_it.unwrap(),
            Err(_) => break,
        }
        sent += MAX_DATA;
        assert!(sent < 4 * 1024 * 1024, "nothing stops the sender");
    }
    let (mut channel, mut other) = open(&mut device, &tunnel, 1).await;
    channel.say(&data(0, b"quick")).await;
    assert_eq!(other.output.recv().await, Some(FromDevice::Data(Bytes::from_static(b"quick"))));
}

#[tokio::test]
async fn a_session_that_never_takes_stops_only_its_own_channel() {
    let world = World::new().await;
    let (mut device, tunnel) = world.connect().await;
    let (mut flood, mut session) = open(&mut device, &tunnel, 0).await;
    let flooding = tokio::spawn(async move {
        for number in 0u64..512 {
            flood.say(&data(number * MAX_DATA as u64, &vec![7; MAX_DATA])).await;
        }
        flood
    });
    while session.output.len() < QUEUE {
        tokio::task::yield_now().await;
    }
    let (mut channel, mut other) = open(&mut device, &tunnel, 1).await;
    channel.say(&data(0, b"quick")).await;
    assert_eq!(other.output.recv().await, Some(FromDevice::Data(Bytes::from_static(b"quick"))));
    assert!(!flooding.is_finished(), "16 MiB were taken for a session that takes nothing");
    let mut taken = 0;
    while taken < 512 * MAX_DATA {
        match session.output.recv().await.unwrap() {
            FromDevice::Data(bytes) => taken += bytes.len(),
            other => panic!("{other:?}"),
        }
    }
    drop(flooding.await.unwrap());
}

#[tokio::test]
async fn a_session_that_ends_says_so_and_a_lost_tunnel_ends_the_queue_without_a_close() {
    let world = World::new().await;
    let (mut device, tunnel) = world.connect().await;
    let (mut channel, session) = open(&mut device, &tunnel, 0).await;
    drop(session);
    let Some(Frame::Close { code, .. }) = channel.hear().await else { panic!("no close") };
    assert_eq!(code, CloseCode::Ended);
    let (_channel, mut session) = open(&mut device, &tunnel, 1).await;
    tunnel.close("test");
    assert_eq!(session.output.recv().await, None);
    let gone = tunnel.open(exec(2), &session_key(), None).await;
    assert!(matches!(gone, Err(OpenError::Gone(_))), "{gone:?}");
}
