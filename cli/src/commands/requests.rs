//! `daypass requests`.

use super::Context;
use crate::args::RequestsArgs;
use crate::clock;
use crate::failure::Failure;
use crate::ui::words;
use daypass_protocol::api::Request;

pub async fn run(context: &Context, args: RequestsArgs) -> Result<(), Failure> {
    let mut query = Vec::new();
    query.extend(args.mine.then(|| ("mine", "true".to_owned())));
    query.extend(args.answerable.then(|| ("answerable", "true".to_owned())));
    query.extend(args.state.map(|state| ("state", state.as_str().to_owned())));
    let listed = context.client()?.list::<Request>("/v1/requests", &query, args.limit).await?;
    context.ui.requests(&listed.items, clock::now())?;
    if listed.more {
        context.ui.note(words::MORE);
    }
    Ok(())
}
