//! `daypass ssh-ready`: called by ssh itself, through `Match exec`, before it connects to a device.
//! Quiet, and never asks anything: there may be nobody, or scp's own protocol on standard output.

use super::Context;
use crate::client::Client;
use crate::clock;
use crate::failure::Failure;
use crate::ssh::config::{Files, Gateway};
use crate::ssh::identity;

pub async fn run(context: &Context) -> Result<(), Failure> {
    let profile = &context.profile;
    if identity::is_ready(profile, clock::now())? {
        return Ok(());
    }
    let (client, config) = Client::of(profile)?;
    identity::ensure(&client, profile, &[], clock::now()).await?;
    // A rotated host CA reaches this machine with the next certificate.
    let gateway = Gateway::from_info(&client.broker_info().await?)?;
    let program = std::env::current_exe().map_err(Failure::Ssh)?;
    Files::of(&gateway, profile, config.over, &program)?.write(profile)
}
