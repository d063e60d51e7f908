//! The control stream, `TUNNEL.md` section 6.

use super::{FrameWriter, Over, Tunnel};
use crate::clock;
use crate::device::DeviceError;
use crate::note;
use crate::state::StateError;
use bytes::BytesMut;
use daypass_protocol::tunnel::control::{ControlError, FromDevice, ToDevice, decode, encode};
use daypass_protocol::tunnel::stream::split;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

/// How often trusted time is stored while a tunnel is up: a power cut may cost this much, and flash does not
/// wear out.
const STORE_TIME: Duration = Duration::from_hours(1);
/// How long a retiring device waits for its processes to go before it wipes itself regardless.
const RETIRE_WAIT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum ControlLost {
    #[error("the control stream: {0}")]
    Io(#[from] io::Error),
    #[error("the control stream ended")]
    Ended,
    #[error(transparent)]
    Message(#[from] ControlError),
    #[error("the broker's trust bundle is not acceptable: {0}")]
    Bundle(#[from] DeviceError),
    #[error(transparent)]
    State(#[from] StateError),
}

struct Control {
    writer: FrameWriter,
    tunnel: Arc<Tunnel>,
    stored: Instant,
}

/// Serves the control stream. Comes back with an error, or when the device was retired.
pub async fn serve(
    stream: yamux::Stream,
    tunnel: Arc<Tunnel>,
    mut reports: mpsc::Receiver<FromDevice>,
) -> Result<Over, ControlLost> {
    let (mut reader, writer) = split(stream);
    let mut control = Control { writer, tunnel, stored: Instant::now() };
    let mut buffer = BytesMut::new();
    loop {
        while let Some(message) = decode::<ToDevice>(&mut buffer)? {
            if let Some(over) = control.obey(message).await? {
                return Ok(over);
            }
        }
        tokio::select! {
            packet = reader.packet() => match packet? {
                Some(packet) => buffer.extend_from_slice(&packet),
                None => return Err(ControlLost::Ended),
            },
            Some(report) = reports.recv() => control.say(&report).await?,
        }
    }
}

impl Control {
    async fn say(&mut self, message: &FromDevice) -> Result<(), ControlLost> {
        let mut wire = BytesMut::new();
        encode(message, &mut wire)?;
        self.writer.begin(wire.freeze());
        Ok(self.writer.ready().await?)
    }

    async fn obey(&mut self, message: ToDevice) -> Result<Option<Over>, ControlLost> {
        let tunnel = Arc::clone(&self.tunnel);
        match message {
            // Its time is not signed, so it is not believed.
            ToDevice::Tick { .. } => {
                if self.stored.elapsed() >= STORE_TIME {
                    self.stored = Instant::now();
                    tunnel.device.learn_time(tunnel.device.clock.now())?;
                }
                let uptime_s = clock::boottime().as_secs();
                self.say(&FromDevice::Tock { sessions: tunnel.sessions(), uptime_s }).await?;
            }
            ToDevice::Bundle { bundle } => {
                let version = tunnel.device.take_bundle(&bundle)?;
                note!("trust bundle {version} is in force");
                tunnel.end_revoked();
                self.say(&FromDevice::BundleHeld { version }).await?;
            }
            ToDevice::Suspend { reason } => {
                note!("suspended: {reason}");
                tunnel.suspend(&reason);
            }
            ToDevice::Resume => {
                note!("resumed");
                tunnel.resume();
            }
            ToDevice::EndSession { session, reason } => {
                note!("{session} is ended by the broker: {reason}");
                if tunnel.end_session(&session, &reason) {
                    self.say(&FromDevice::SessionGone { session }).await?;
                }
            }
            ToDevice::Retire { reason } => {
                note!("retired: {reason}");
                tunnel.suspend(&reason);
                if timeout(RETIRE_WAIT, tunnel.until_empty()).await.is_err() {
                    note!("processes of a session do not go; wiping all the same");
                }
                tunnel.device.wipe(&reason)?;
                self.say(&FromDevice::Wiped).await?;
                self.writer.close().await?;
                return Ok(Some(Over::Retired));
            }
            ToDevice::Unknown => {}
        }
        Ok(None)
    }
}
