//! `daypass play`: a recording, in this terminal.

use super::Context;
use crate::args::PlayArgs;
use crate::cast::lines::Lines;
use crate::cast::{files, output, terminal};
use crate::client::Client;
use crate::failure::Failure;
use daypass_protocol::api::{Recording, RecordingKind, Session};
use std::io::Write as _;

pub async fn run(context: &Context, args: PlayArgs) -> Result<(), Failure> {
    let client = context.client()?;
    let session: Session = client.get(&format!("/v1/sessions/{}", args.session), &[]).await?;
    let recording = chosen(&session, &args)?;
    let path = format!("/v1/sessions/{}/recordings/{}", session.id, recording.number);
    if args.raw || context.ui.json {
        return raw(context, &client, &path).await;
    }
    let mut lines = Lines::of(client.stream(&path).await?);
    match recording.kind {
        RecordingKind::Asciicast => {
            let pace = terminal::Pace { speed: args.speed, idle: args.idle };
            terminal::play(&mut lines, pace, &context.ui).await
        }
        RecordingKind::Output => output::print(&mut lines, &context.ui).await,
        RecordingKind::Events => {
            if files::print(&mut lines, args.channel, &context.ui).await? || args.files {
                return Ok(());
            }
            Err(match args.channel {
                Some(channel) => Failure::NoSuchChannel { session: session.id, channel },
                None => Failure::NoRecording(session.id),
            })
        }
    }
}

/// The recording of the channel that was named, or the only one. What was done to files stands among the
/// session's events: they are taken where there is nothing else.
fn chosen<'s>(session: &'s Session, args: &PlayArgs) -> Result<&'s Recording, Failure> {
    let (events, playable): (Vec<&Recording>, Vec<&Recording>) =
        session.recordings.iter().partition(|recording| recording.kind == RecordingKind::Events);
    let events = events.first().copied();
    if args.files {
        return events.ok_or_else(|| Failure::NoRecording(session.id.clone()));
    }
    match (args.channel, playable.as_slice()) {
        (None, []) => events.ok_or_else(|| Failure::NoRecording(session.id.clone())),
        (None, [only]) => Ok(only),
        (None, several) => Err(Failure::SeveralRecordings {
            session: session.id.clone(),
            channels: several.iter().filter_map(|recording| recording.channel).collect(),
        }),
        (Some(channel), playable) => playable
            .iter()
            .find(|recording| recording.channel == Some(channel))
            .copied()
            .or(events)
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
