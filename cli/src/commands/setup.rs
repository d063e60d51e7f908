//! `daypass setup ssh`: let plain ssh, scp and rsync reach devices by name.

use super::Context;
use crate::client::Client;
use crate::clock;
use crate::failure::Failure;
use crate::profile::{Config, Over, file};
use crate::ssh::config::{Files, Gateway, INCLUDE, KNOWN_HOSTS, own_ssh_dir, with_include};
use crate::ssh::identity;
use crate::ui::words;
use std::os::unix::fs::PermissionsExt as _;

pub async fn run(context: &Context, yes: bool, over: Option<Over>) -> Result<(), Failure> {
    let (ui, profile) = (&context.ui, &context.profile);
    let (client, before) = Client::of(profile)?;
    let config = Config { over: over.unwrap_or(before.over), ..before.clone() };
    let info = client.broker_info().await?;
    let gateway = Gateway::from_info(&info)?;
    let program = std::env::current_exe().map_err(Failure::Ssh)?;
    let files = Files::of(&gateway, profile, config.over, &program)?;
    let include = profile.path(INCLUDE);
    let known_hosts = profile.path(KNOWN_HOSTS);

    let dir = own_ssh_dir()?;
    let own = dir.join("config");
    let found = file::read(&own)?;
    let after = with_include(found.as_deref().unwrap_or(""), &include)?;

    let in_place = config.over == before.over
        && found.as_ref() == Some(&after)
        && file::read(&include)?.as_ref() == Some(&files.include)
        && file::read(&known_hosts)?.as_ref() == Some(&files.known_hosts);
    if in_place {
        ui.note(words::SET_UP_ALREADY);
    } else {
        ui.note(&words::will_write(&include.display().to_string(), &files.include));
        ui.note(&words::will_write(&known_hosts.display().to_string(), &files.known_hosts));
        let line: Vec<&str> = after.lines().take(2).collect();
        ui.note(&words::will_include(&own.display().to_string(), &line));
        if !yes {
            if !ui.can_ask() {
                return Err(Failure::NeedsYes);
            }
            let answer = context.ask(words::ASK_WRITE).await?.unwrap_or_default();
            if !matches!(answer.to_lowercase().as_str(), "y" | "yes") {
                return Err(Failure::Refused);
            }
        }
        // `daypass ssh` goes the same way from now on.
        profile.write_config(&config)?;
        files.write(profile)?;
        if !dir.exists() {
            file::make_private_dir(&dir)?;
        }
        // Kept as it was: the file is the person's. ssh itself insists only that no other can write it.
        let mode = std::fs::metadata(&own).map_or(file::PRIVATE, |found| found.permissions().mode() & 0o777);
        file::write_atomically(&own, after.as_bytes(), mode)?;
    }
    identity::ensure(&client, profile, &info.identity_cas, clock::now()).await?;
    ui.note(&words::set_up(config.login.as_str(), &info.host_suffix));
    Ok(())
}
