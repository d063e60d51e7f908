//! `daypass approve`, `deny`, `cancel` and `revoke`: what people do with a request.

use super::Context;
use crate::args::ApproveArgs;
use crate::clock;
use crate::failure::Failure;
use crate::ui::words;
use daypass_protocol::api::{Approval, Denial, Request, RequestState, WithReason};
use daypass_protocol::ids::RequestId;
use daypass_protocol::said;

pub async fn approve(context: &Context, args: ApproveArgs) -> Result<(), Failure> {
    let approval = Approval {
        duration_s: args.duration.map(|seconds| seconds.0),
        channels: args.channels,
        comment: args.comment,
    };
    let path = format!("/v1/requests/{}/approve", args.request);
    let request: Request = context.client()?.post(&path, &approval).await?;
    match request.state {
        RequestState::Granted => context.ui.note(&said::granted(&request)),
        RequestState::Pending => context.ui.note(&words::still_needs(&request)),
        _ => {}
    }
    context.ui.request(&request, clock::now())
}

pub async fn deny(context: &Context, id: &RequestId, comment: String) -> Result<(), Failure> {
    let path = format!("/v1/requests/{id}/deny");
    let request: Request = context.client()?.post(&path, &Denial { comment }).await?;
    context.ui.request(&request, clock::now())
}

pub async fn cancel(context: &Context, id: &RequestId) -> Result<(), Failure> {
    let request: Request = context.client()?.post_nothing(&format!("/v1/requests/{id}/cancel")).await?;
    context.ui.request(&request, clock::now())
}

pub async fn revoke(context: &Context, id: &RequestId, reason: String) -> Result<(), Failure> {
    let path = format!("/v1/requests/{id}/revoke");
    let request: Request = context.client()?.post(&path, &WithReason { reason }).await?;
    context.ui.request(&request, clock::now())
}
