//! `daypass ssh`: everything up to the moment where the system's `ssh` takes over.

use super::request::What;
use super::{Context, login, request, wait};
use crate::args::SshArgs;
use crate::client::Client;
use crate::clock;
use crate::failure::Failure;
use crate::profile::{Config, Over};
use crate::ssh::config::{Files, Gateway, OWN_CONFIG, way};
use crate::ssh::identity;
use crate::ui::words;
use daypass_protocol::api::{GrantState, Request, RequestState};
use daypass_protocol::channel::{ChannelKind, ChannelSet};
use daypass_protocol::ids::{DeviceId, Login};
use daypass_protocol::said;
use daypass_protocol::target::ForwardTarget;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// How many of a person's own requests for one device are looked at.
const RECENT: usize = 100;

pub async fn run(context: &Context, args: SshArgs) -> Result<(), Failure> {
    let needed = Needed::of(&args)?;
    let (client, config) = Client::of(&context.profile)?;
    let device = args.device.device.clone();
    let mine = own_requests(context, &client, &device).await?;
    let wanted = args.ask.login.clone().or_else(|| args.device.login.clone());

    let grant = match live_grant(&mine, wanted.as_ref(), &needed) {
        Some(grant) => grant.clone(),
        None => {
            let login = login_to_ask_for(&mine, wanted, &config);
            let request = raise(context, &client, &args, &mine, login, &needed).await?;
            let request = wait::granted(wait::until_answered(context, &client, request).await?)?;
            context.ui.note(&said::granted(&request));
            request
        }
    };

    let info = client.broker_info().await?;
    let gateway = Gateway::from_info(&info)?;
    let over = args.over.unwrap_or(config.over);
    let looking = async { if over == Over::Https { None } else { gateway.no_way_by_ssh().await } };
    let ready = identity::ensure(&client, &context.profile, &info.identity_cas, clock::now());
    let (ready, no_way) = tokio::join!(ready, looking);
    ready?;
    // ssh may know a way that is not seen here, so it is asked all the same.
    if let Some(hint) = no_way {
        context.ui.hint(&hint);
    }
    let program = std::env::current_exe().map_err(Failure::Ssh)?;
    Files::of(&gateway, &context.profile, config.over, &program)?.write(&context.profile)?;
    let other_way =
        if over == config.over { Vec::new() } else { way(&gateway, &context.profile, over, &program)? };

    // Only returns if ssh could not be started: from here on, exit code, terminal and agent are its own.
    Err(Failure::Ssh(command(context, &gateway, &device, &grant.login, other_way, &args).exec()))
}

/// My requests for this device, newest first; after signing in, where that is needed and possible.
async fn own_requests(
    context: &Context,
    client: &Client,
    device: &DeviceId,
) -> Result<Vec<Request>, Failure> {
    let query = [("mine", "true".to_owned()), ("device", device.to_string())];
    match client.list::<Request>("/v1/requests", &query, RECENT).await {
        Err(Failure::NotSignedIn) if context.ui.err_is_terminal => {
            login::again(context).await?;
            Ok(client.list::<Request>("/v1/requests", &query, RECENT).await?.items)
        }
        listed => Ok(listed?.items),
    }
}

/// What the engineer wants to do there.
struct Needed {
    /// As ssh will send it.
    command: Option<String>,
    /// Nothing but forwards.
    only_forwards: bool,
    forwards: bool,
    /// Where they lead, as far as that is known before somebody uses a SOCKS proxy.
    targets: Vec<ForwardTarget>,
    /// Channels that were named.
    channels: ChannelSet,
}

impl Needed {
    fn of(args: &SshArgs) -> Result<Self, Failure> {
        if !args.local.is_empty() && !args.dynamic.is_empty() && args.ask.forward.is_empty() {
            return Err(Failure::ProxyToWhere);
        }
        let local = args.local.iter().map(|forward| &forward.target);
        let mut targets: Vec<_> = args.ask.forward.iter().chain(local).cloned().collect();
        targets.sort();
        targets.dedup();
        Ok(Self {
            command: request::joined(&args.command),
            only_forwards: args.no_command,
            forwards: !(targets.is_empty() && args.dynamic.is_empty()),
            targets,
            channels: args.ask.channels.clone().unwrap_or_default(),
        })
    }

    /// What starts as soon as ssh is there.
    fn starts(&self) -> Option<ChannelKind> {
        match self.command {
            _ if self.only_forwards => None,
            Some(_) => Some(ChannelKind::Exec),
            None => Some(ChannelKind::Shell),
        }
    }

    /// Whether a request with these channels is enough: for what is started and what was named, for no other
    /// command than this one, and to each target that was named.
    fn is_in(&self, request: &Request, channels: &ChannelSet) -> bool {
        let forward = self.forwards.then_some(ChannelKind::Forward);
        let mut needed = self.channels.0.iter().copied().chain(self.starts()).chain(forward);
        needed.all(|kind| channels.contains(kind))
            && request.command.as_ref().is_none_or(|only| Some(only) == self.command.as_ref())
            && self.targets.iter().all(|target| request.forward_targets.contains(target))
    }

    /// What to ask for: all of that.
    fn what(&self, args: &SshArgs) -> What {
        let mut what = What::of(&args.ask, self.command.clone(), self.forwards);
        if self.only_forwards && args.ask.channels.is_none() {
            what.channels = ChannelSet([ChannelKind::Forward].into());
        }
        // A grant that lets files through and no shell would end what is started here at once.
        what.channels.0.extend(self.starts());
        what.targets.clone_from(&self.targets);
        what
    }
}

/// The grant to use: live, enough for what is needed, for the login if one was named. The one that lasts
/// longest.
fn live_grant<'r>(mine: &'r [Request], login: Option<&Login>, needed: &Needed) -> Option<&'r Request> {
    mine.iter()
        .filter(|request| login.is_none_or(|login| *login == request.login))
        .filter_map(|request| {
            let grant = request.grant.as_ref()?;
            (grant.state == GrantState::Live && needed.is_in(request, &grant.channels))
                .then_some((grant.ends_at, request))
        })
        .max_by_key(|(ends_at, _)| *ends_at)
        .map(|(_, request)| request)
}

/// The login that was named; else the one last asked for on this device; else the profile's.
fn login_to_ask_for(mine: &[Request], wanted: Option<Login>, config: &Config) -> Login {
    wanted
        .or_else(|| mine.first().map(|request| request.login.clone()))
        .unwrap_or_else(|| config.login.clone())
}

/// A pending request that will do, or a new one.
async fn raise(
    context: &Context,
    client: &Client,
    args: &SshArgs,
    mine: &[Request],
    login: Login,
    needed: &Needed,
) -> Result<Request, Failure> {
    let waiting = mine.iter().find(|request| {
        request.state == RequestState::Pending
            && request.login == login
            && needed.is_in(request, &request.channels)
            && request.emergency == args.ask.emergency
    });
    if let Some(request) = waiting {
        context.ui.note(&said::joins_pending(&request.id, &request.reason));
        return Ok(request.clone());
    }
    let device = args.device.device.clone();
    let reason = match &args.reason {
        Some(reason) => reason.clone(),
        None if context.ui.can_ask() => context.ask(words::ASK_REASON).await?.unwrap_or_default(),
        None => return Err(Failure::NoReason(device)),
    };
    request::submit(client, device, login, &args.ask, &reason, needed.what(args)).await
}

fn command(
    context: &Context,
    gateway: &Gateway,
    device: &DeviceId,
    login: &Login,
    other_way: Vec<String>,
    args: &SshArgs,
) -> Command {
    let mut ssh = Command::new("ssh");
    ssh.arg("-F").arg(context.profile.path(OWN_CONFIG));
    // The names are explained in `ssh::config`.
    let host = gateway.host_name(device);
    ssh.arg("-o").arg(format!("HostName={host}")).arg("-o").arg(format!("HostKeyAlias={host}"));
    for option in other_way {
        ssh.arg("-o").arg(option);
    }
    if args.tty {
        ssh.arg("-t");
    }
    for forward in &args.local {
        ssh.arg("-L").arg(&forward.text);
    }
    for forward in &args.dynamic {
        ssh.arg("-D").arg(&forward.0);
    }
    if args.no_command {
        ssh.arg("-N");
    }
    ssh.arg("-l").arg(login.as_str());
    ssh.arg("--").arg(gateway.alias(device, &context.profile));
    ssh.args(&args.command);
    // bash, which ssh calls with a socket for our `proxy --fdpass`, takes that for a remote login and reads ~/.bashrc,
    // unless it knows of a shell above it.
    if std::env::var_os("SHLVL").is_none_or(|level| level == "0") {
        ssh.env("SHLVL", "1");
    }
    ssh
}
