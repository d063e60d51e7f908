//! One module for each verb, and what they share.

pub mod answer;
pub mod completions;
pub mod device;
pub mod devices;
pub mod fdpass;
pub mod login;
pub mod logout;
pub mod play;
pub mod proxy;
pub mod request;
pub mod requests;
pub mod sessions;
pub mod setup;
pub mod ssh;
pub mod ssh_ready;
pub mod wait;
pub mod watch;
pub mod whoami;

use crate::args::{Cli, DeviceVerb, SetupVerb, Verb};
use crate::client::Client;
use crate::failure::Failure;
use crate::profile::Profile;
use crate::ui::Ui;
use daypass_protocol::ids::RequestId;
use std::cell::RefCell;

/// What every verb is given.
#[derive(Debug)]
pub struct Context {
    pub ui: Ui,
    pub profile: Profile,
    /// The request that is being waited for, for what is said when somebody presses Ctrl-C.
    pub waiting: RefCell<Option<RequestId>>,
}

impl Context {
    pub fn client(&self) -> Result<Client, Failure> {
        Ok(Client::of(&self.profile)?.0)
    }

    /// What Ctrl-C means now.
    pub fn interrupted(&self) -> Failure {
        match self.waiting.borrow().clone() {
            Some(id) => Failure::StoppedWaiting(id),
            None => Failure::Interrupted,
        }
    }

    /// One line from the person. Read on a thread of its own, so that Ctrl-C is still heard here.
    pub async fn ask(&self, question: &'static str) -> Result<Option<String>, Failure> {
        let ui = self.ui.clone();
        tokio::task::spawn_blocking(move || ui.ask(question))
            .await
            .map_err(|stopped| Failure::Output(std::io::Error::other(stopped)))?
    }
}

pub async fn run(context: &Context, verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::Login(args) => login::run(context, args).await,
        Verb::Logout => logout::run(context).await,
        Verb::Whoami => whoami::run(context).await,
        Verb::Devices(args) => devices::run(context, args).await,
        Verb::Request(args) => request::run(context, args).await,
        Verb::Requests(args) => requests::run(context, args).await,
        Verb::Cancel { request } => answer::cancel(context, &request).await,
        Verb::Approve(args) => answer::approve(context, args).await,
        Verb::Deny { request, comment } => answer::deny(context, &request, comment).await,
        Verb::Revoke { request, reason } => answer::revoke(context, &request, reason).await,
        Verb::Ssh(args) => ssh::run(context, args).await,
        Verb::Sessions(args) => sessions::run(context, args).await,
        Verb::Play(args) => play::run(context, args).await,
        Verb::Watch(args) => watch::run(context, args).await,
        Verb::End { session, reason } => sessions::end(context, &session, reason).await,
        Verb::Setup(SetupVerb::Ssh { yes, over }) => setup::run(context, yes, over).await,
        Verb::Device(verb) => match verb {
            DeviceVerb::EnrolToken { line, uses, lifetime, label } => {
                device::enrol_token(context, line, uses, lifetime, label).await
            }
            DeviceVerb::Show { device } => device::show(context, &device).await,
            DeviceVerb::Suspend { device, reason } => {
                device::change(context, &device, "suspend", reason).await
            }
            DeviceVerb::Resume { device, reason } => device::change(context, &device, "resume", reason).await,
        },
        Verb::Completions { shell } => completions::run(context, shell),
        Verb::Proxy { host, fdpass: false } => proxy::run(context, &host).await,
        Verb::Proxy { host, fdpass: true } => fdpass::run(context, &host).await,
        Verb::SshReady => ssh_ready::run(context).await,
    }
}

/// Starts the program's one thread and says how it went.
pub fn main(cli: Cli) -> Result<(), (Ui, Failure)> {
    let ui = Ui::new(cli.json, &cli.profile);
    let fail = |failure| (ui.clone(), failure);
    let profile = Profile::locate(cli.profile, cli.home.as_deref()).map_err(fail)?;
    let context = Context { ui: ui.clone(), profile, waiting: RefCell::new(None) };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| fail(Failure::Output(error)))?;
    let outcome = runtime.block_on(async {
        tokio::select! {
            outcome = run(&context, cli.verb) => outcome,
            _ = tokio::signal::ctrl_c() => Err(context.interrupted()),
        }
    });
    // A thread that still reads the terminal must not hold up the end.
    runtime.shutdown_background();
    outcome.map_err(fail)
}
