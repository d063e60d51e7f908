//! The control stream: what broker and device tell each other beside the channels.

use super::{Gone, Tunnel};
use crate::clock::Clock;
use bytes::BytesMut;
use daypass_protocol::ids::SessionId;
use daypass_protocol::tunnel::control::{self, FromDevice, ToDevice};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_util::compat::FuturesAsyncReadCompatExt as _;

impl Tunnel {
    /// The control stream, until it ends or either direction fails.
    pub(super) async fn run_control(&self, to_device: mpsc::Receiver<Box<ToDevice>>, clock: Clock) -> String {
        let Ok(stream) = self.stream().await else { return "yamux did not start".to_owned() };
        let (reader, writer) = tokio::io::split(stream.compat());
        // Independent of each other, or two full windows would stop both.
        tokio::select! {
            why = self.write_control(writer, to_device, clock) => why,
            why = self.read_control(reader) => why,
        }
    }

    async fn write_control(
        &self,
        mut writer: impl AsyncWrite + Unpin,
        mut to_device: mpsc::Receiver<Box<ToDevice>>,
        clock: Clock,
    ) -> String {
        let mut heartbeat = tokio::time::interval(self.limits.heartbeat);
        heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut out = BytesMut::new();
        loop {
            let message = tokio::select! {
                biased;
                // At once the first time, so that the stream exists for the device.
                _ = heartbeat.tick() => ToDevice::Tick { time: clock.now() },
                Some(message) = to_device.recv() => *message,
            };
            if let Err(error) = control::encode(&message, &mut out) {
                return format!("a control message could not be made: {error}");
            }
            let written = async {
                writer.write_all(&out).await?;
                writer.flush().await
            };
            match tokio::time::timeout(self.limits.control_write, written).await {
                Ok(Ok(())) => {
                    self.controlled.cancel();
                    out.clear();
                }
                Ok(Err(error)) => return format!("the control stream failed: {error}"),
                Err(_) => return "the device does not read its control stream".to_owned(),
            }
        }
    }

    async fn read_control(&self, mut reader: impl AsyncRead + Unpin) -> String {
        let mut input = BytesMut::new();
        loop {
            match control::decode::<FromDevice>(&mut input) {
                Ok(Some(message)) => {
                    tracing::debug!(device = %self.device, ?message, "control");
                    match message {
                        FromDevice::SessionGone { session } => {
                            tracing::debug!(device = %self.device, %session, "nothing of the session is left");
                            if let Some(sessions_gone) = self.sessions_gone.get() {
                                // Nobody waiting for it is no error.
                                let _ = sessions_gone.send(session);
                            }
                        }
                        FromDevice::Wiped => return "the device has wiped itself".to_owned(),
                        FromDevice::BundleHeld { version } => {
                            tracing::info!(device = %self.device, version, "the device holds a trust bundle");
                        }
                        FromDevice::Tock { sessions, .. } => {
                            if let Err(gone) = self.end_unknown(sessions).await {
                                return gone.to_string();
                            }
                        }
                        FromDevice::Unknown => {}
                    }
                    continue;
                }
                Ok(None) => {}
                Err(error) => return format!("the device broke the protocol: {error}"),
            }
            match reader.read_buf(&mut input).await {
                Ok(0) => return "the device closed its control stream".to_owned(),
                Ok(_) => {}
                Err(error) => return format!("the control stream failed: {error}"),
            }
        }
    }

    /// Ends what the device keeps for sessions that do not run here: this broker was started anew, or the
    /// device was away when they ended.
    async fn end_unknown(&self, kept: Vec<SessionId>) -> Result<(), Gone> {
        for session in kept {
            let live = self.sessions.get(&session);
            if live.is_some_and(|live| live.device == self.device && !live.is_ended()) {
                continue;
            }
            tracing::info!(device = %self.device, %session, "the device keeps a session that is over");
            let reason = "it is over for the broker".to_owned();
            self.send(ToDevice::EndSession { session, reason }).await?;
        }
        Ok(())
    }
}
