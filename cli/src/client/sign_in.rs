//! Signing in by RFC 8628: the person confirms a code in a browser, this program polls.

use super::Client;
use crate::failure::Failure;
use daypass_protocol::api::{DeviceAuthorization, TokenAnswer};
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until};

const CLIENT_ID: &str = "daypass-cli";
const GRANT_TYPE: &str = "urn:ietf:params:oauth:grant-type:device_code";

/// RFC 8628 section 3.5: what `slow_down` adds to the interval.
const SLOW_DOWN: Duration = Duration::from_secs(5);
const LONGEST_INTERVAL: Duration = Duration::from_mins(1);

impl Client {
    pub async fn authorise(&self, client: &str) -> Result<DeviceAuthorization, Failure> {
        self.form("/v1/device-authorization", &[("client_id", CLIENT_ID), ("client", client)]).await
    }

    /// Polls until the person has answered or the code has lapsed.
    pub async fn confirmed(&self, code: &DeviceAuthorization) -> Result<TokenAnswer, Failure> {
        let form = [
            ("grant_type", GRANT_TYPE),
            ("device_code", code.device_code.as_str()),
            ("client_id", CLIENT_ID),
        ];
        poll(Duration::from_secs(code.interval), Duration::from_secs(code.expires_in), || {
            self.form("/v1/token", &form)
        })
        .await
    }
}

/// RFC 8628 section 3.5.
async fn poll<A>(interval: Duration, lifetime: Duration, ask: impl Fn() -> A) -> Result<TokenAnswer, Failure>
where
    A: Future<Output = Result<TokenAnswer, Failure>>,
{
    let mut interval = interval.clamp(Duration::from_secs(1), LONGEST_INTERVAL);
    // A lifetime of centuries is not one to add to an instant.
    let lapses = Instant::now() + lifetime.min(Duration::from_hours(24));
    loop {
        if Instant::now() + interval >= lapses {
            sleep_until(lapses).await;
            return Err(Failure::SignInLapsed);
        }
        sleep(interval).await;
        match ask().await {
            Err(Failure::Token { error, description }) => match error.as_str() {
                "authorization_pending" => {}
                "slow_down" => interval = (interval + SLOW_DOWN).min(LONGEST_INTERVAL),
                "expired_token" => return Err(Failure::SignInLapsed),
                "access_denied" => return Err(Failure::SignInRefused),
                _ => return Err(Failure::Token { error, description }),
            },
            // "On encountering a connection timeout, clients MUST unilaterally reduce their polling
            // frequency before retrying."
            Err(failure) if failure.is_passing() => interval = (interval * 2).min(LONGEST_INTERVAL),
            answered => return answered,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::collections::VecDeque;

    fn refused(error: &str) -> Result<TokenAnswer, Failure> {
        Err(Failure::Token { error: error.to_owned(), description: None })
    }

    #[allow(clippy::unnecessary_wraps, reason = "one of several answers")]
    fn tokens() -> Result<TokenAnswer, Failure> {
        Ok(TokenAnswer {
            access_token: "a".to_owned(),
            token_type: "Bearer".to_owned(),
            expires_in: 300,
            refresh_token: "r".to_owned(),
        })
    }

    /// Seconds after the start at which each question was asked, and the outcome.
    async fn polled(
        interval_s: u64,
        lifetime_s: u64,
        answers: Vec<Result<TokenAnswer, Failure>>,
    ) -> (Vec<u64>, Result<TokenAnswer, Failure>) {
        let start = Instant::now();
        let asked = RefCell::new(Vec::new());
        let answers = RefCell::new(VecDeque::from(answers));
        let outcome = poll(Duration::from_secs(interval_s), Duration::from_secs(lifetime_s), || {
            asked.borrow_mut().push(start.elapsed().as_secs());
            let answer = answers.borrow_mut().pop_front().unwrap_or_else(|| refused("authorization_pending"));
            async { answer }
        })
        .await;
        (asked.into_inner(), outcome)
    }

    #[tokio::test(start_paused = true)]
    async fn polling_keeps_the_interval_and_slows_down_when_told() {
        let (asked, outcome) = polled(
            5,
            600,
            vec![
                refused("authorization_pending"),
                refused("slow_down"),
                refused("authorization_pending"),
                tokens(),
            ],
        )
        .await;
        assert_eq!(asked, [5, 10, 20, 30]);
        assert!(outcome.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_broker_out_of_reach_is_asked_less_often() {
        let gone = || Err(Failure::Unreachable { url: String::new(), why: String::new() });
        let (asked, outcome) = polled(5, 600, vec![gone(), gone(), tokens()]).await;
        assert_eq!(asked, [5, 15, 35]);
        assert!(outcome.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_code_ends_the_wait() {
        let (asked, outcome) = polled(1, 600, vec![refused("access_denied")]).await;
        assert_eq!(asked, [1]);
        assert!(matches!(outcome, Err(Failure::SignInRefused)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_lapsed_code_ends_the_wait_even_if_the_broker_never_says_so() {
        let (_, outcome) = polled(1, 600, vec![refused("expired_token")]).await;
        assert!(matches!(outcome, Err(Failure::SignInLapsed)));
        let start = Instant::now();
        let (asked, outcome) = polled(5, 12, vec![]).await;
        assert_eq!(asked, [5, 10]);
        assert_eq!(start.elapsed().as_secs(), 12);
        assert!(matches!(outcome, Err(Failure::SignInLapsed)));
    }

    #[tokio::test(start_paused = true)]
    async fn an_unknown_refusal_is_not_taken_for_patience() {
        let (_, outcome) = polled(1, 600, vec![refused("invalid_client")]).await;
        assert!(matches!(outcome, Err(Failure::Token { .. })));
    }
}
