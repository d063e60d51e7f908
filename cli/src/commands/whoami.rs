//! `daypass whoami`.

use super::Context;
use crate::failure::Failure;
use daypass_protocol::api::Me;

pub async fn run(context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    let me: Me = client.get("/v1/me", &[]).await?;
    context.ui.person(&me, client.base(), &context.profile.name.to_string())
}
