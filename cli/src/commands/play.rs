//! `daypass play`: a recording, in this terminal.

use super::Context;
use crate::args::PlayArgs;
use crate::cast::lines::Lines;
use crate::cast::{output, terminal};
use crate::client::Client;
use crate::failure::Failure;
use daypass_protocol::api::{Recording, RecordingKind, Session};
use std::io::Write as _;

pub async fn run(context: &Context, args: PlayArgs) -> Result<(), Failure> {
    let client = context.client()?;
    let session: Session = client.get(&format!("/v1/sessions/{}", args.session), &[]).await?;
    let recording = chosen(&session, args.channel)?;
    let path = format!("/v1/sessions/{}/recordings/{}", session.id, recording.number);
    if args.raw || context.ui.json {
        return raw(context, &client, &path).await;
    }
    let mut lines = Lines::of(client.stream(&path).await?);
    match recording.kind {
        RecordingKind::Asciicast => {
            let pace = terminal::Pace { speed: args.speed, idle: args.idle };
            terminal::play(&mut lines, pace, context.ui).await
        }
        RecordingKind::Output => output::print(&mut lines, context.ui).await,
        // `chosen` leaves these out; they are data, not something that was on a screen.
        RecordingKind::Events => Err(Failure::NoRecording(session.id)),
    }
}

/// The recording of the channel that was named, or the only one.
fn chosen(session: &Session, channel: Option<u32>) -> Result<&Recording, Failure> {
    let playable: Vec<&Recording> =
        session.recordings.iter().filter(|recording| recording.kind != RecordingKind::Events).collect();
    match (channel, playable.as_slice()) {
        (None, []) => Err(Failure::NoRecording(session.id.clone())),
        (None, [only]) => Ok(only),
        (None, several) => Err(Failure::SeveralRecordings {
            session: session.id.clone(),
            channels: several.iter().filter_map(|recording| recording.channel).collect(),
        }),
        (Some(channel), playable) => playable
            .iter()
            .find(|recording| recording.channel == Some(channel))
            .copied()
            .ok_or(Failure::NoSuchChannel { session: session.id.clone(), channel }),
    }
}

async fn raw(context: &Context, client: &Client, path: &str) -> Result<(), Failure> {
    if context.ui.out_is_terminal {
        return Err(Failure::RawToTerminal);
    }
    let mut body = client.stream(path).await?;
    while let Some(chunk) = body.chunk().await? {
        std::io::stdout().write_all(&chunk).map_err(Failure::Output)?;
    }
    std::io::stdout().flush().map_err(Failure::Output)
}
