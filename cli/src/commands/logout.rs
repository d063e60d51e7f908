//! `daypass logout`: forget tokens, key and certificate here, and revoke them at the broker.

use super::Context;
use crate::failure::Failure;
use crate::ssh::identity;
use crate::ui::words;

pub async fn run(context: &Context) -> Result<(), Failure> {
    let profile = &context.profile;
    // A refresh that is under way would otherwise write new tokens after these are gone.
    let _lock = profile.lock().await?;
    let tokens = profile.tokens();
    profile.remove_tokens()?;
    identity::forget(profile)?;
    match tokens {
        Ok(Some(tokens)) => {
            let told = match context.client() {
                Ok(client) => client.revoke(&tokens.refresh_token).await,
                Err(failure) => Err(failure),
            };
            told.map_err(|failure| Failure::NotRevoked(Box::new(failure)))?;
            context.ui.note(words::SIGNED_OUT);
        }
        // Tokens that cannot be read cannot be revoked either; they are gone from here.
        Ok(None) | Err(_) => context.ui.note(words::NOT_SIGNED_IN_ANYWAY),
    }
    Ok(())
}
