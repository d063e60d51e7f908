//! `daypass request`: ask for access, and perhaps wait for the answer.

use super::{Context, wait};
use crate::args::{AskArgs, RequestArgs};
use crate::client::Client;
use crate::clock;
use crate::failure::Failure;
use daypass_protocol::api::{Ask, Request, RequestState};
use daypass_protocol::channel::{ChannelKind, ChannelSet};
use daypass_protocol::ids::{DeviceId, Login};
use daypass_protocol::said;
use daypass_protocol::target::ForwardTarget;
use daypass_protocol::text::{MAX_REASON, MAX_TICKET, visible_command, visible_line, visible_lines};

/// A command as `ssh` makes it of its arguments: joined by one space each. `None` if there are none.
pub fn joined(arguments: &[String]) -> Option<String> {
    (!arguments.is_empty()).then(|| arguments.join(" "))
}

/// What is asked for besides device, login and time.
#[derive(Clone, Debug)]
pub struct What {
    pub channels: ChannelSet,
    /// For this one command alone.
    pub command: Option<String>,
    /// Where forwards may lead; none for those of the product line.
    pub targets: Vec<ForwardTarget>,
}

impl What {
    /// The channels that were named, else what goes with a shell or with one command; and forwards, where
    /// some are wanted.
    pub fn of(ask: &AskArgs, command: Option<String>, forwards: bool) -> Self {
        let usual: &[ChannelKind] = match command {
            Some(_) => &[ChannelKind::Exec],
            None => &[ChannelKind::Shell, ChannelKind::Exec],
        };
        let mut channels = ask.channels.clone().unwrap_or_else(|| usual.iter().copied().collect());
        // Whoever names channels or forwards wants more than the one command.
        let alone = ask.channels.is_none() && !forwards;
        if forwards {
            channels.0.insert(ChannelKind::Forward);
        }
        Self { channels, command: command.filter(|_| alone), targets: ask.forward.clone() }
    }
}

/// Asks the broker; with a command for that one alone. The text is checked here as well, so that a mistake is told before it is sent.
pub async fn submit(
    client: &Client,
    device: DeviceId,
    login: Login,
    ask: &AskArgs,
    reason: &str,
    what: What,
) -> Result<Request, Failure> {
    let reason = visible_lines("the reason", reason, MAX_REASON)?;
    if reason.is_empty() {
        return Err(Failure::NoReason(device));
    }
    let ticket =
        ask.ticket.as_deref().map(|ticket| visible_line("the ticket", ticket, MAX_TICKET)).transpose()?;
    if let Some(command) = &what.command {
        visible_command(command)?;
    }
    let ask = Ask {
        device,
        login,
        channels: what.channels,
        duration_s: ask.duration.0,
        reason,
        ticket,
        emergency: ask.emergency,
        command: what.command,
        forward_targets: what.targets,
    };
    client.post("/v1/requests", &ask).await
}

pub async fn run(context: &Context, args: RequestArgs) -> Result<(), Failure> {
    let (client, config) = Client::of(&context.profile)?;
    let login = args.ask.login.clone().or(args.device.login).unwrap_or(config.login);
    let what = What::of(&args.ask, joined(&args.command), !args.ask.forward.is_empty());
    let mut request = submit(&client, args.device.device, login, &args.ask, &args.reason, what).await?;
    if args.wait {
        request = wait::until_answered(context, &client, request).await?;
    }
    if request.state == RequestState::Pending && !context.ui.json {
        context.ui.note(&said::waits_for(&request));
    }
    context.ui.request(&request, clock::now())?;
    if request.state == RequestState::Pending { Ok(()) } else { wait::granted(request).map(drop) }
}
