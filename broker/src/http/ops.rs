//! What the people who run the broker look at: health, readiness, metrics.

use crate::broker::Ctx;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use metrics_exporter_prometheus::{BuildError, PrometheusBuilder, PrometheusHandle};
use std::sync::OnceLock;

pub fn routes() -> Router<Ctx> {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(scrape))
}

/// Ready when the database takes decisions and recordings can be written; otherwise says what is missing.
async fn ready(State(ctx): State<Ctx>) -> (StatusCode, String) {
    if let Err(why) = ctx.db.ready().await {
        return (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n"));
    }
    if let Err(error) = ctx.recordings.free_space() {
        tracing::error!(%error, "not ready: nothing can be recorded");
        return (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n"));
    }
    (StatusCode::OK, "ready\n".to_owned())
}

static METRICS: OnceLock<Result<PrometheusHandle, BuildError>> = OnceLock::new();

/// Starts to count. Once per process; a second broker in the same process shares the numbers, also one that
/// starts at the same moment.
pub fn start_metrics() -> anyhow::Result<()> {
    match METRICS.get_or_init(|| PrometheusBuilder::new().install_recorder()) {
        Ok(_) => Ok(()),
        Err(error) => anyhow::bail!("metrics cannot be counted: {error}"),
    }
}

async fn scrape(State(ctx): State<Ctx>) -> (StatusCode, String) {
    metrics::gauge!("daypass_tunnels_live")
        .set(f64::from(u32::try_from(ctx.tunnels.len()).unwrap_or(u32::MAX)));
    match METRICS.get() {
        Some(Ok(handle)) => {
            handle.run_upkeep();
            (StatusCode::OK, handle.render())
        }
        Some(Err(_)) | None => (StatusCode::SERVICE_UNAVAILABLE, "metrics are not counted here\n".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brokers_that_start_at_the_same_moment_all_count() {
        let begun = std::sync::Barrier::new(8);
        let counted = std::thread::scope(|scope| {
            let starts: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        begun.wait();
                        start_metrics()
                    })
                })
                .collect();
            starts.into_iter().map(|start| start.join().unwrap()).collect::<Vec<_>>()
        });
        for start in counted {
            start.unwrap();
        }
    }
}
