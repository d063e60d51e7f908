//! Joining: the engineer's end of a channel and the device's, with the recorder between them.

use super::activity::Terminal;
use super::wire::{DeviceChannel, EngineerChannel, FromDevice, FromEngineer, ToDevice, ToEngineer};
use super::{End, Live};
use crate::recording::{ChannelRecorder, NotPassed, Pending, RecordError};
use daypass_protocol::api::EndReason;
use daypass_protocol::channel::ChannelKind;
use daypass_protocol::text::made_visible;
use daypass_protocol::tunnel::frame::{CloseCode, Exit};
use daypass_protocol::tunnel::waker::alone;
use std::collections::VecDeque;
use std::time::Duration;

/// What a channel may take to hand over its last messages once the session is over.
pub(super) const GOODBYE: Duration = Duration::from_secs(2);
/// Pieces of output that may be with the recorder at once; each is at most one frame of the tunnel.
const AHEAD: usize = 4;
/// Exit status of a file transfer that was ended because it could not be read.
const UNREADABLE: u32 = 1;

/// How one direction of a channel came to its end.
enum Over {
    /// The engineer's end is gone.
    Engineer,
    /// The device closed the channel.
    Device(CloseCode, String),
    /// The device's end broke off: its tunnel is lost, and the channel with it.
    Lost,
    Recorder(RecordError),
    /// What one side sent cannot be accounted for.
    Unreadable(String),
}

impl From<NotPassed> for Over {
    fn from(why: NotPassed) -> Self {
        match why {
            NotPassed::Recorder(error) => Self::Recorder(error),
            NotPassed::Unreadable(broken) => Self::Unreadable(broken.to_string()),
        }
    }
}

/// Waits until the recorder has what is first in line; `None` where nothing is.
async fn first_recorded(
    recording: &mut VecDeque<(Vec<ToEngineer>, Pending)>,
) -> Option<Result<(), RecordError>> {
    match recording.front_mut() {
        Some((_, pending)) => Some(pending.recorded().await),
        None => None,
    }
}

/// Lets bytes flow until either end closes or the session is over. A byte goes on only after the recorder
/// has it.
pub(super) async fn join(
    live: &Live,
    kind: ChannelKind,
    terminal: Option<Terminal>,
    engineer: EngineerChannel,
    device: DeviceChannel,
    recorder: ChannelRecorder,
) {
    let EngineerChannel { mut input, output } = engineer;
    let DeviceChannel { input: to_device, output: mut from_device } = device;

    let up = async {
        loop {
            let Some(message) = input.recv().await else { return Over::Engineer };
            // Many messages in a row are one turn; the end may come within it.
            if live.is_ended() {
                std::future::pending::<()>().await;
            }
            let message = match message {
                FromEngineer::Data(bytes) => {
                    let passed = match recorder.pass_in(bytes).await {
                        Ok(passed) => passed,
                        Err(why) => return why.into(),
                    };
                    live.activity.note();
                    for bytes in passed.pieces() {
                        if to_device.send(ToDevice::Data(bytes)).await.is_err() {
                            std::future::pending::<()>().await;
                        }
                    }
                    continue;
                }
                FromEngineer::Eof => ToDevice::Eof,
                FromEngineer::Resize(size) => {
                    if let Err(error) = recorder.resize(size).await {
                        return Over::Recorder(error);
                    }
                    ToDevice::Resize(size)
                }
                FromEngineer::Signal(name) => ToDevice::Signal(name),
            };
            if to_device.send(message).await.is_err() {
                // What the device still has to say comes down the other way, which then ends.
                std::future::pending::<()>().await;
            }
        }
    };
    let mut alarms = live.alarms.subscribe();
    let alarmed = terminal.is_none() && kind != ChannelKind::Forward;
    let down = async {
        let (mut left, mut over) = (false, None);
        // In order: recorded, then delivered. The writer has the next pieces while it answers for the first.
        let mut recording = VecDeque::<(Vec<ToEngineer>, Pending)>::with_capacity(AHEAD);
        loop {
            tokio::select! {
                biased;
                Some(recorded) = first_recorded(&mut recording) => {
                    let messages = match recorded {
                        Ok(()) => recording.pop_front().map(|(messages, _)| messages),
                        Err(error) => return Over::Recorder(error),
                    };
                    for message in messages.into_iter().flatten() {
                        // Nobody reads any more; what the process still says is recorded all the same.
                        left = left || output.send(message).await.is_err();
                    }
                }
                // One that was missed among many is no loss: the newest is here.
                Ok(line) = alarms.recv(), if alarmed && over.is_none() => {
                    let line = format!("daypass: {line}\n");
                    left = left || output.send(ToEngineer::Stderr(line.into())).await.is_err();
                }
                message = from_device.recv(), if over.is_none() && recording.len() < AHEAD => {
                    let (messages, pending) = match message {
                        None => {
                            over = Some(Over::Lost);
                            continue;
                        }
                        Some(FromDevice::Closed { code, message }) => {
                            over = Some(Over::Device(code, message));
                            continue;
                        }
                        Some(FromDevice::Data(bytes)) => {
                            // What a terminal shows says nothing about whether somebody is there.
                            if terminal.is_none() {
                                live.activity.note();
                            }
                            match recorder.pass_out(bytes).await {
                                Ok((passed, pending)) => {
                                    let messages: Vec<_> = passed.pieces().map(ToEngineer::Data).collect();
                                    (messages, Ok(pending))
                                }
                                Err(why) => return why.into(),
                            }
                        }
                        Some(FromDevice::Stderr(bytes)) => {
                            let pending = recorder.stderr(&bytes).await;
                            (vec![ToEngineer::Stderr(bytes)], pending)
                        }
                        // Each direction of a forward ends by itself, and nothing in it exits.
                        Some(FromDevice::Eof(_)) if kind == ChannelKind::Forward => {
                            (vec![ToEngineer::Eof], recorder.eof())
                        }
                        Some(FromDevice::Exit(_)) if kind == ChannelKind::Forward => continue,
                        // SSH has one EOF for both streams: it is sent with the close.
                        Some(FromDevice::Eof(_)) => continue,
                        Some(FromDevice::Exit(exit)) => {
                            let pending = recorder.exit(&exit).await;
                            (vec![ToEngineer::Exit(exit)], pending)
                        }
                    };
                    match pending {
                        Ok(pending) => recording.push_back((messages, pending)),
                        Err(error) => return Over::Recorder(error),
                    }
                }
                else => return over.unwrap_or(Over::Lost),
            }
        }
    };
    let over = tokio::select! {
        // An end that is due goes before bytes.
        biased;
        end = live.ended() => Err(end),
        over = alone(up) => Ok(over),
        over = alone(down) => Ok(over),
    };

    let lost = matches!(over, Ok(Over::Lost));
    let unreadable = match &over {
        Ok(Over::Unreadable(why)) => Some(format!("daypass: {why}\n")),
        _ => None,
    };
    let (close, failure) = match over {
        Err(end) => (Some((end.close_code(), end.message())), None),
        Ok(Over::Engineer) => (Some((CloseCode::Done, String::new())), None),
        Ok(Over::Device(code, message)) => {
            // The device's own clock, or its owner, may be a moment ahead of the broker's word.
            match code {
                CloseCode::Expired => live.end(End::because(EndReason::Expired)),
                CloseCode::Suspended => live.end(End::with(EndReason::DeviceSuspended, message)),
                CloseCode::Done | CloseCode::Ended => {}
                CloseCode::Protocol | CloseCode::Failed => {
                    tracing::warn!(session = %live.id, ?code, message, "the device closed a channel");
                    let line = format!(
                        "daypass: the device closed the channel: {}\r\n",
                        made_visible(&message, 200)
                    );
                    // Nobody there to read it is no error.
                    let _ = output.try_send(ToEngineer::Stderr(line.into()));
                }
            }
            (None, None)
        }
        Ok(Over::Lost) => {
            live.end(End::with(EndReason::DeviceLost, "the processes of this session are gone"));
            (Some((CloseCode::Failed, String::new())), None)
        }
        Ok(Over::Unreadable(why)) => (Some((CloseCode::Failed, why)), None),
        Ok(Over::Recorder(error)) => (Some((CloseCode::Failed, "recording failed".to_owned())), Some(error)),
    };
    if let Some(error) = failure {
        tracing::error!(%error, session = %live.id, "the recorder failed");
        live.end(End::unrecorded(&error));
    }
    let goodbye = async {
        if let Some((code, message)) = close {
            // A device that is gone needs no goodbye.
            let _ = to_device.send(ToDevice::Close { code, message }).await;
        }
        if lost || live.is_ended() {
            // The gateway says why and closes the channel; a close from here could overtake that line.
            output.closed().await;
        }
        let unreadable = unreadable
            .into_iter()
            .flat_map(|line| [ToEngineer::Stderr(line.into()), ToEngineer::Exit(Exit::Status(UNREADABLE))]);
        for message in unreadable.chain([ToEngineer::Eof, ToEngineer::Close]) {
            // Nor does an engineer who has left.
            let _ = output.send(message).await;
        }
    };
    let _in_time = tokio::time::timeout(GOODBYE, goodbye).await;
    if let Err(error) = recorder.close().await {
        tracing::error!(%error, session = %live.id, "a channel's recording did not close");
        live.end(End::with(EndReason::RecorderFailed, error.to_string()));
    }
}
