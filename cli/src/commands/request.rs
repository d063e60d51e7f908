//! `daypass request`: ask for access, and perhaps wait for the answer.

use super::{Context, wait};
use crate::args::{AskArgs, RequestArgs};
use crate::client::Client;
use crate::clock;
use crate::failure::Failure;
use crate::ui::words;
use daypass_protocol::api::{Ask, Request, RequestState};
use daypass_protocol::ids::{DeviceId, Login};
use daypass_protocol::text::{MAX_REASON, MAX_TICKET, visible_line, visible_lines};

/// Asks the broker. The text is checked here as well, so that a mistake is told before it is sent.
pub async fn submit(
    client: &Client,
    device: DeviceId,
    login: Login,
    ask: &AskArgs,
    reason: &str,
) -> Result<Request, Failure> {
    let reason = visible_lines("the reason", reason, MAX_REASON)?;
    if reason.is_empty() {
        return Err(Failure::NoReason(device));
    }
    let ticket =
        ask.ticket.as_deref().map(|ticket| visible_line("the ticket", ticket, MAX_TICKET)).transpose()?;
    let ask = Ask {
        device,
        login,
        channels: ask.channels.clone(),
        duration_s: ask.duration.0,
        reason,
        ticket,
        emergency: ask.emergency,
    };
    client.post("/v1/requests", &ask).await
}

pub async fn run(context: &Context, args: RequestArgs) -> Result<(), Failure> {
    let (client, config) = Client::of(&context.profile)?;
    let login = args.ask.login.clone().or(args.device.login).unwrap_or(config.login);
    let mut request = submit(&client, args.device.device, login, &args.ask, &args.reason).await?;
    if args.wait {
        request = wait::until_answered(context, &client, request).await?;
    }
    if request.state == RequestState::Pending && !context.ui.json {
        context.ui.note(&words::waits_for(&request));
    }
    context.ui.request(&request, clock::now())?;
    if request.state == RequestState::Pending { Ok(()) } else { wait::granted(request).map(drop) }
}
