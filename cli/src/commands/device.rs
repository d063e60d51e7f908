//! `daypass device …`.

use super::Context;
use crate::args::Label;
use crate::failure::Failure;
use crate::ui::words;
use daypass_protocol::api::{Device, DeviceDetail, EnrolToken, EnrolTokenAsk, WithReason};
use daypass_protocol::duration::Seconds;
use daypass_protocol::ids::{DeviceId, LineName};

pub async fn enrol_token(
    context: &Context,
    line: LineName,
    uses: u32,
    lifetime: Seconds,
    labels: Vec<Label>,
) -> Result<(), Failure> {
    let ask = EnrolTokenAsk {
        product_line: line,
        uses,
        lifetime_s: lifetime.0,
        labels: labels.into_iter().map(|label| (label.key, label.value)).collect(),
    };
    let token: EnrolToken = context.client()?.post("/v1/enrol-tokens", &ask).await?;
    if context.ui.json {
        return context.ui.json(&token);
    }
    context.ui.note(words::TOKEN_SHOWN_ONCE);
    context.ui.data_line(&crate::ui::clean(&token.token))
}

pub async fn show(context: &Context, device: &DeviceId) -> Result<(), Failure> {
    let detail: DeviceDetail = context.client()?.get(&format!("/v1/devices/{device}"), &[]).await?;
    context.ui.device(&detail)
}

/// `suspend` or `resume`.
pub async fn change(
    context: &Context,
    device: &DeviceId,
    verb: &'static str,
    reason: String,
) -> Result<(), Failure> {
    let path = format!("/v1/devices/{device}/{verb}");
    let device: Device = context.client()?.post(&path, &WithReason { reason }).await?;
    if context.ui.json { context.ui.json(&device) } else { context.ui.devices(&[device]) }
}
