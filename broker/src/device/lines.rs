//! Product lines.

use super::store;
use crate::audit::{self, Actor, Event, Kind};
use crate::db::{Db, violates};
use crate::http::Problem;
use daypass_protocol::api::ProductLine;
use daypass_protocol::target::{ForwardTarget, MAX_TARGETS};
use daypass_protocol::text::{MAX_NAME, UnfitText, visible_line};
use daypass_protocol::time::Timestamp;

#[derive(Debug, thiserror::Error)]
pub enum LineError {
    #[error(transparent)]
    Title(#[from] UnfitText),
    #[error("the end of support is a date such as 2031-12-31")]
    SupportEnd,
    #[error(
        "{0} is not for a product line: its forwards lead to loopback ports of the device, and not to its SSH"
    )]
    Target(ForwardTarget),
    #[error("at most {MAX_TARGETS} forward targets are listed")]
    TooManyTargets,
    #[error("there is a product line {0} already")]
    Taken(String),
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

impl From<LineError> for Problem {
    fn from(error: LineError) -> Self {
        let text = error.to_string();
        match error {
            LineError::Title(_)
            | LineError::SupportEnd
            | LineError::Target(_)
            | LineError::TooManyTargets => Self::bad_request("unfit_line", text),
            LineError::Taken(_) => Self::conflict("taken", text),
            LineError::Database(error) => error.into(),
        }
    }
}

/// Registers a product line.
pub async fn register(
    db: &Db,
    mut line: ProductLine,
    actor: Actor,
    now: Timestamp,
) -> Result<ProductLine, LineError> {
    line.title = visible_line("the title", &line.title, MAX_NAME)?;
    if !is_date(&line.support_end) {
        return Err(LineError::SupportEnd);
    }
    line.forward_targets.sort();
    line.forward_targets.dedup();
    if line.forward_targets.len() > MAX_TARGETS {
        return Err(LineError::TooManyTargets);
    }
    if let Some(bad) = line.forward_targets.iter().find(|target| !target.is_loopback() || target.is_own_ssh())
    {
        return Err(LineError::Target(bad.clone()));
    }
    let mut tx = db.begin().await?;
    store::add_line(&mut tx, &line, now).await.map_err(|error| {
        if violates(&error, &["product_line_pkey", "product_line.name"]) {
            LineError::Taken(line.name.to_string())
        } else {
            error.into()
        }
    })?;
    let event = Event::new(Kind::LineRegistered, actor).detail(serde_json::json!({
        "name": line.name, "title": line.title, "cra_class": line.cra_class, "support_end": line.support_end,
        "forward_targets": line.forward_targets,
    }));
    let recorded = audit::append(&mut tx, now, event).await?;
    tx.commit(recorded).await?;
    Ok(line)
}

/// `YYYY-MM-DD`, of the calendar's form.
fn is_date(text: &str) -> bool {
    let bytes = text.as_bytes();
    let digits = |range: std::ops::Range<usize>| {
        bytes.get(range).is_some_and(|part| part.iter().all(u8::is_ascii_digit))
    };
    let number = |range| text.get(range).and_then(|part: &str| part.parse::<u32>().ok()).unwrap_or(0);
    bytes.len() == 10
        && digits(0..4)
        && bytes[4] == b'-'
        && digits(5..7)
        && bytes[7] == b'-'
        && digits(8..10)
        && (1..=12).contains(&number(5..7))
        && (1..=31).contains(&number(8..10))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use daypass_protocol::api::CraClass;

    fn line(end: &str) -> ProductLine {
        ProductLine {
            name: "edge".parse().unwrap(),
            title: "Edge gateway".to_owned(),
            cra_class: CraClass::Important1,
            support_end: end.to_owned(),
            forward_targets: vec![],
        }
    }

    #[tokio::test]
    async fn a_product_line_is_registered_once_and_its_support_ends_on_a_date() {
        for db in testing::databases().await {
            let register = |line| register(&db, line, Actor::Broker, Timestamp(1));
            for bad in ["2031", "2031-13-01", "31.12.2031", "2031-12-3x"] {
                assert!(matches!(register(line(bad)).await, Err(LineError::SupportEnd)), "{bad}");
            }
            for bad in ["127.0.0.1:22", "[::1]:22", "192.0.2.7:80", "plc.local:502"] {
                let line = ProductLine { forward_targets: vec![bad.parse().unwrap()], ..line("2031-12-31") };
                assert!(matches!(register(line).await, Err(LineError::Target(_))), "{bad}");
            }
            register(line("2031-12-31")).await.unwrap();
            assert!(matches!(register(line("2031-12-31")).await, Err(LineError::Taken(_))));
        }
    }
}
