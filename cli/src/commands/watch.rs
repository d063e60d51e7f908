//! `daypass watch`: the terminal of a session that runs, in this one.

use super::Context;
use crate::args::WatchArgs;
use crate::cast::lines::Lines;
use crate::cast::terminal::{Screen, output};
use crate::failure::Failure;
use crate::ui::{watching, words};
use daypass_protocol::api::{WatchEnd, WatchEnded};

pub async fn run(context: &Context, args: WatchArgs) -> Result<(), Failure> {
    let ui = &context.ui;
    if ui.json && ui.out_is_terminal {
        return Err(Failure::RawToTerminal);
    }
    let client = context.client()?;
    let WatchArgs { session, mut channel } = args;
    let mut from = 0;
    let mut screen = None;
    let (end, said) = loop {
        let channel_query = channel.map_or_else(String::new, |channel| format!("&channel={channel}"));
        let path = format!("/v1/sessions/{session}/live?from={from}{channel_query}");
        let mut lines = Lines::of(client.stream(&path).await?);
        if from == 0 && !ui.json {
            ui.note(&watching::watching(&session));
        }
        let (end, said) = loop {
            let Some(line) = lines.next().await? else {
                return Err(Failure::Cut {
                    url: client.base().to_owned(),
                    why: words::NO_GOODBYE.to_owned(),
                });
            };
            if let Some(end) = last(&line) {
                break (end, line);
            }
            if ui.json {
                ui.data_line(&line)?;
                continue;
            }
            match &mut screen {
                None => screen = Some(Screen::begin(&line, ui)?),
                Some(screen) => {
                    if let Some((_, text)) = output(&line)? {
                        screen.show(&text)?;
                    }
                }
            }
        };
        // The access token was good for ten minutes; with the next one it goes on where it was.
        if end.ended != WatchEnded::SignIn {
            break (end, said);
        }
        (channel, from) = (end.channel.or(channel), end.next);
    };
    // The terminal is put back before anything is said in it.
    drop(screen);
    if ui.json {
        ui.data_line(&said)?;
    }
    match end.ended {
        WatchEnded::Session => {
            ui.note(&watching::session_ended(&session, end.reason, end.detail.as_deref()));
            ui.hint(&watching::replay(&session));
        }
        WatchEnded::Terminal => ui.note(&watching::terminal_closed(&session)),
        WatchEnded::Right => return Err(Failure::NoLongerWatched(session)),
        WatchEnded::Failed | WatchEnded::SignIn => return Err(Failure::NotShown(session)),
    }
    Ok(())
}

/// The last line is the one object that says what ended; the header of a recording is another.
fn last(line: &str) -> Option<WatchEnd> {
    if line.starts_with('{') { serde_json::from_str(line).ok() } else { None }
}
