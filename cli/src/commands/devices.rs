//! `daypass devices`.

use super::Context;
use crate::args::DevicesArgs;
use crate::failure::Failure;
use daypass_protocol::api::Device;

pub async fn run(context: &Context, args: DevicesArgs) -> Result<(), Failure> {
    let mut query = Vec::new();
    query.extend(args.line.map(|line| ("line", line.to_string())));
    query.extend(args.label.iter().map(|label| ("label", format!("{}={}", label.key, label.value))));
    query.extend(args.text.map(|text| ("text", text)));
    let listed = context.client()?.list::<Device>("/v1/devices", &query, 0).await?;
    context.ui.devices(&listed.items)
}
