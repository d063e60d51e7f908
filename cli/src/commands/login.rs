//! `daypass login`: sign in by a code that is confirmed in a browser, then get an identity certificate.

use super::Context;
use crate::args::LoginArgs;
use crate::client::tls::Trust;
use crate::client::{CA_FILE, Client, broker_url};
use crate::clock;
use crate::failure::Failure;
use crate::profile::tokens::Tokens;
use crate::profile::{Config, file, usual_login};
use crate::ssh::identity;
use crate::ui::words;
use daypass_protocol::api::{DeviceAuthorization, Me};

pub async fn run(context: &Context, args: LoginArgs) -> Result<(), Failure> {
    let profile = &context.profile;
    let stored = profile.config()?;
    let broker = match (&args.broker, &stored) {
        (Some(url), _) => broker_url(url)?,
        (None, Some(config)) => config.broker.clone(),
        (None, None) => return Err(Failure::NoBroker),
    };
    let over = stored.as_ref().map(|config| config.over).unwrap_or_default();
    // What was trusted for one broker says nothing about another.
    let same = stored.filter(|config| config.broker == broker);
    let login = same.as_ref().map_or_else(usual_login, |config| config.login.clone());
    // Which way leads out of this network does not depend on the broker.
    let mut config = Config { broker: broker.clone(), fingerprint: None, own_ca: false, over, login };
    let trust = match (&args.ca_file, args.fingerprint, same) {
        (Some(path), _, _) => {
            let pem = file::read(path)?.ok_or_else(|| Failure::File {
                path: path.clone(),
                error: std::io::ErrorKind::NotFound.into(),
            })?;
            config.own_ca = true;
            Trust::Authority(pem.into_bytes())
        }
        (None, Some(pin), _) => {
            config.fingerprint = Some(pin);
            Trust::Certificate(pin)
        }
        (None, None, Some(same)) => {
            config.fingerprint = same.fingerprint;
            config.own_ca = same.own_ca;
            crate::client::stored_trust(profile, &same)?
        }
        (None, None, None) => Trust::System,
    };
    let client = Client::new(profile, &broker, &trust)?;
    sign_in(context, &client, &config, &trust, !args.no_browser).await
}

/// Signs in again with what the profile knows.
pub async fn again(context: &Context) -> Result<(), Failure> {
    let (client, config) = Client::of(&context.profile)?;
    let trust = crate::client::stored_trust(&context.profile, &config)?;
    sign_in(context, &client, &config, &trust, true).await
}

async fn sign_in(
    context: &Context,
    client: &Client,
    config: &Config,
    trust: &Trust,
    browser: bool,
) -> Result<(), Failure> {
    let (ui, profile) = (&context.ui, &context.profile);
    let code = client.authorise(&description()).await?;
    ui.note(&words::confirm_code(&code.verification_uri, &code.user_code, &code.verification_uri_complete));
    if browser && ui.err_is_terminal {
        open_browser(&code);
    }
    let tokens = Tokens::from_answer(client.confirmed(&code).await?, clock::now());

    // Old tokens go first: at no moment may they lie beside the address of another broker.
    profile.remove_tokens()?;
    identity::forget(profile)?;
    if let Trust::Authority(pem) = trust {
        profile.write(CA_FILE, pem)?;
    }
    profile.write_config(config)?;
    profile.write_tokens(&tokens)?;

    let me: Me = client.get("/v1/me", &[]).await?;
    identity::renew_now(client, profile).await?;
    ui.note(&words::signed_in(&me.name, &me.email, client.base()));
    Ok(())
}

/// What the person who confirms is told about this machine. The broker takes it as unverified.
fn description() -> String {
    let host = rustix::system::uname();
    words::client(env!("CARGO_PKG_VERSION"), &host.nodename().to_string_lossy())
}

/// Where there is a display, and only for an address that a browser is for. That none opens is no
/// failure: the address is on the screen.
fn open_browser(code: &DeviceAuthorization) {
    let displayed = cfg!(target_os = "macos")
        || ["DISPLAY", "WAYLAND_DISPLAY"].iter().any(|name| std::env::var_os(name).is_some());
    if displayed && code.verification_uri_complete.starts_with("https://") {
        let _ = webbrowser::open(&code.verification_uri_complete);
    }
}
