//! Requests, answers and grants, on both databases and with the shipped policies.

use super::*;
use crate::db::Db;
use crate::login::testing::person;
use crate::policy::shipped;
use crate::request::{self, Limits, SubmitError};
use crate::testing;
use daypass_protocol::api::Ask;

const NOW: Timestamp = Timestamp(1_800_000_000_000);

struct World {
    db: Db,
    policies: Policies,
    ana: VerifiedPerson,
    ben: VerifiedPerson,
}

impl World {
    async fn all() -> Vec<Self> {
        let mut worlds = Vec::new();
        for db in testing::databases().await {
            let mut tx = db.begin().await.unwrap();
            for sql in [
                "INSERT INTO product_line (name, title, cra_class, support_end, created_at)
                 VALUES ('edge-gateway', 'Edge', 'important-1', '2031-12-31', 0)",
                "INSERT INTO device (id, serial_number, product_line, state, prior_state, public_key, labels,
                                     bundle_version, created_at)
                 VALUES ('gw-0042', 's42', 'edge-gateway', 'active', 'none', 'k', '{\"env\":\"field\"}', 1, 0)",
                "INSERT INTO device (id, serial_number, product_line, state, prior_state, public_key, labels,
                                     bundle_version, created_at)
                 VALUES ('gw-0043', 's43', 'edge-gateway', 'active', 'none', 'k', '{\"env\":\"lab\"}', 1, 0)",
            ] {
                sqlx::query(sql).execute(tx.conn()).await.unwrap();
            }
            tx.commit_housekeeping("a test's devices").await.unwrap();
            let ana = person(&db, "ana@example.com", &["support"], NOW).await;
            let ben = person(&db, "ben@example.com", &["support-leads"], NOW).await;
            worlds.push(Self { db, policies: shipped::policies().unwrap(), ana, ben });
        }
        worlds
    }

    fn ask(device: &str) -> Ask {
        Ask {
            device: device.parse().unwrap(),
            login: "diag".parse().unwrap(),
            channels: "shell,exec".parse().unwrap(),
            duration_s: 1800,
            reason: "modem drops".to_owned(),
            ticket: None,
            emergency: false,
            command: None,
            forward_targets: vec![],
        }
    }

    async fn submit(&self, ask: Ask) -> Result<(RequestId, Outcome), SubmitError> {
        let mut tx = self.db.begin().await.unwrap();
        let (id, outcome, recorded) =
            request::submit(&mut tx, &self.ana, ask, &self.policies, Limits::default(), NOW).await?;
        tx.commit(recorded).await.unwrap();
        Ok((id, outcome))
    }

    async fn answer(
        &self,
        by: &VerifiedPerson,
        id: &RequestId,
        with: Answer,
        at: Timestamp,
    ) -> Result<Outcome, AnswerError> {
        let mut tx = self.db.begin().await.unwrap();
        let request = store::find_for_update(&mut tx, id).await.unwrap().unwrap();
        let (outcome, recorded) = answer(&mut tx, by, &request, with, &self.policies, at).await?;
        tx.commit(recorded).await.unwrap();
        Ok(outcome)
    }

    async fn grant(&self, id: &RequestId) -> Option<StoredGrant> {
        store::grant(&mut self.db.pool().acquire().await.unwrap(), id).await.unwrap()
    }

    async fn events(&self, id: &RequestId) -> Vec<String> {
        use sqlx::Row as _;
        sqlx::query("SELECT kind FROM audit_event WHERE request = $1 ORDER BY seq")
            .bind(id.to_string())
            .fetch_all(self.db.pool())
            .await
            .unwrap()
            .iter()
            .map(|row| row.get(0))
            .collect()
    }
}

fn approve() -> Answer {
    Answer::Approve(Approval::default())
}

#[tokio::test]
async fn a_window_starts_when_it_is_granted_and_not_when_it_was_asked_for() {
    for world in World::all().await {
        let (id, outcome) = world.submit(World::ask("gw-0042")).await.unwrap();
        let Outcome::Waiting { approver_teams, why, .. } = outcome else { panic!("{outcome:?}") };
        assert!(approver_teams.contains(&"support-leads".to_owned()), "{approver_teams:?}");
        assert!(!why.is_empty(), "the requester is told why policy asks");
        assert!(world.grant(&id).await.is_none(), "nothing is granted while it waits");

        let later = NOW + Duration::from_mins(10);
        let outcome = world.answer(&world.ben, &id, approve(), later).await.unwrap();
        assert_eq!(outcome, Outcome::Granted { ends_at: later + Duration::from_mins(30) });
        let grant = world.grant(&id).await.unwrap();
        assert_eq!((grant.starts_at, grant.ends_at), (later, later + Duration::from_mins(30)));
        assert_eq!(world.events(&id).await, ["request.asked", "request.answered", "grant.made"]);
    }
}

#[tokio::test]
async fn policy_may_grant_at_once_and_the_grant_still_goes_through_the_same_door() {
    for world in World::all().await {
        let (id, outcome) = world.submit(World::ask("gw-0043")).await.unwrap();
        assert!(matches!(outcome, Outcome::Granted { .. }), "{outcome:?}");
        assert_eq!(world.events(&id).await, ["request.asked", "grant.made"]);
    }
}

#[tokio::test]
async fn nobody_answers_their_own_request() {
    for world in World::all().await {
        let (id, _) = world.submit(World::ask("gw-0042")).await.unwrap();
        // Even as a support lead: the same person, in another team.
        let ana = person(&world.db, "ana@example.com", &["support", "support-leads"], NOW).await;
        assert!(matches!(world.answer(&ana, &id, approve(), NOW).await, Err(AnswerError::OwnRequest)));
        assert!(world.grant(&id).await.is_none());
    }
}

#[tokio::test]
async fn somebody_whom_policy_does_not_let_approve_grants_nothing() {
    for world in World::all().await {
        let (id, _) = world.submit(World::ask("gw-0042")).await.unwrap();
        let eve = person(&world.db, "eve@example.com", &["support"], NOW).await;
        assert!(matches!(world.answer(&eve, &id, approve(), NOW).await, Err(AnswerError::NotPermitted(_))));
        assert!(world.grant(&id).await.is_none());
    }
}

#[tokio::test]
async fn an_approver_may_shorten_and_narrow_and_never_widen() {
    for world in World::all().await {
        let (id, _) = world.submit(World::ask("gw-0042")).await.unwrap();
        let wider = [
            Approval { duration_s: Some(1801), ..Approval::default() },
            Approval { channels: Some("shell,forward".parse().unwrap()), ..Approval::default() },
            Approval { channels: Some("".parse().unwrap()), ..Approval::default() },
        ];
        for wider in wider {
            let refused = world.answer(&world.ben, &id, Answer::Approve(wider), NOW).await;
            assert!(matches!(refused, Err(AnswerError::Widens)));
        }
        let less = Approval {
            duration_s: Some(600),
            channels: Some("shell".parse().unwrap()),
            comment: Some("ten minutes are enough".to_owned()),
        };
        let outcome = world.answer(&world.ben, &id, Answer::Approve(less), NOW).await.unwrap();
        assert!(matches!(outcome, Outcome::Granted { .. }), "{outcome:?}");
        let grant = world.grant(&id).await.unwrap();
        assert_eq!(grant.ends_at, NOW + Duration::from_mins(10));
        assert_eq!(grant.scope.channels.to_string(), "shell");
    }
}

#[tokio::test]
async fn a_denied_request_stays_in_the_history_and_is_not_answered_again() {
    for world in World::all().await {
        let (id, _) = world.submit(World::ask("gw-0042")).await.unwrap();
        let silent = Answer::Deny { comment: " ".to_owned() };
        assert!(matches!(world.answer(&world.ben, &id, silent, NOW).await, Err(AnswerError::NoComment)));
        let deny = Answer::Deny { comment: "not today".to_owned() };
        assert!(matches!(world.answer(&world.ben, &id, deny, NOW).await, Ok(Outcome::Denied(_))));
        let again = world.answer(&world.ben, &id, approve(), NOW).await;
        assert!(matches!(again, Err(AnswerError::NotPending(RequestState::Denied))));
        assert!(world.grant(&id).await.is_none());
    }
}

#[tokio::test]
async fn a_request_that_lapsed_cannot_be_approved() {
    for world in World::all().await {
        let (id, _) = world.submit(World::ask("gw-0042")).await.unwrap();
        let late = NOW + Limits::default().lapse_after;
        let refused = world.answer(&world.ben, &id, approve(), late).await;
        assert!(matches!(refused, Err(AnswerError::NotPending(RequestState::Lapsed))));
    }
}

#[tokio::test]
async fn two_answers_at_the_same_time_make_one_grant() {
    for world in World::all().await {
        let (id, _) = world.submit(World::ask("gw-0042")).await.unwrap();
        let lea = person(&world.db, "lea@example.com", &["support-leads"], NOW).await;
        let (one, two) = tokio::join!(
            world.answer(&world.ben, &id, approve(), NOW),
            world.answer(&lea, &id, approve(), NOW)
        );
        let granted = [one, two].iter().filter(|r| matches!(r, Ok(Outcome::Granted { .. }))).count();
        assert_eq!(granted, 1);
        assert_eq!(world.events(&id).await.iter().filter(|kind| *kind == "grant.made").count(), 1);
    }
}

#[tokio::test]
async fn what_policy_refuses_at_once_is_kept_with_its_reason() {
    for world in World::all().await {
        let ask = Ask { duration_s: 9 * 3600, ..World::ask("gw-0042") };
        let (id, outcome) = world.submit(ask).await.unwrap();
        let Outcome::Denied(refusal) = outcome else { panic!("{outcome:?}") };
        assert!(refusal.reason.contains("8 hours"), "{}", refusal.reason);
        assert!(!refusal.would_allow.is_empty(), "says what would have been possible");
        assert_eq!(world.events(&id).await, ["request.asked", "request.denied"]);
    }
}

#[tokio::test]
async fn unfit_requests_leave_nothing_behind() {
    for world in World::all().await {
        let long = Ask { reason: "x".repeat(100_000), ..World::ask("gw-0042") };
        assert!(matches!(world.submit(long).await, Err(SubmitError::Text(UnfitText::TooLong { .. }))));
        for hidden in ["a\x1b]0;pwned\x07", "pay \u{202e}load", "zero\u{200b}width"] {
            let ask = Ask { reason: hidden.to_owned(), ..World::ask("gw-0042") };
            assert!(matches!(world.submit(ask).await, Err(SubmitError::Text(UnfitText::Hidden { .. }))));
            let ask = Ask { ticket: Some(hidden.to_owned()), ..World::ask("gw-0042") };
            assert!(matches!(world.submit(ask).await, Err(SubmitError::Text(UnfitText::Hidden { .. }))));
        }
        let nowhere = world.submit(World::ask("gw-9999")).await;
        assert!(matches!(nowhere, Err(SubmitError::UnknownDevice(_))));
        let nothing = Ask { channels: ChannelSet::default(), ..World::ask("gw-0042") };
        assert!(matches!(world.submit(nothing).await, Err(SubmitError::NoChannels)));
        let count = sqlx::query("SELECT id FROM request").fetch_all(world.db.pool()).await.unwrap().len();
        assert_eq!(count, 0);
    }
}

#[tokio::test]
async fn a_revoked_grant_and_an_expired_one_are_not_live_any_more() {
    for world in World::all().await {
        let (id, _) = world.submit(World::ask("gw-0043")).await.unwrap();
        let grant = world.grant(&id).await.unwrap();
        assert!(grant.is_live(NOW));
        assert!(!grant.is_live(grant.ends_at), "also before the sweeper has come by");
        let mut tx = world.db.begin().await.unwrap();
        let recorded = revoke(&mut tx, &world.ben, &grant, "enough", NOW).await.unwrap().unwrap();
        tx.commit(recorded).await.unwrap();
        assert_eq!(world.grant(&id).await.unwrap().state, GrantState::Revoked);
        let mut tx = world.db.begin().await.unwrap();
        assert!(expire(&mut tx, &id, NOW).await.unwrap().is_none(), "it is over once");
    }
}

#[tokio::test]
async fn promise_3_one_certificate_a_request_for_one_command_becomes_a_grant_of_that_command() {
    for world in World::all().await {
        let command = || Some("systemctl status modem".to_owned());
        let one = Ask { command: command(), channels: "exec".parse().unwrap(), ..World::ask("gw-0043") };
        let (id, outcome) = world.submit(one.clone()).await.unwrap();
        assert!(matches!(outcome, Outcome::Granted { .. }));
        let grant = world.grant(&id).await.unwrap();
        assert_eq!((grant.scope.command, grant.scope.channels.to_string()), (command(), "exec".to_owned()));

        // Nothing else goes with it, whoever approves.
        let more = Ask { channels: "shell,exec".parse().unwrap(), ..one.clone() };
        assert!(matches!(world.submit(more).await, Err(SubmitError::CommandAndMore)));
        for unfit in ["", "ls\nrm", "ls\u{1b}[2K", "ls ", &"x".repeat(5000)] {
            let ask = Ask { command: Some(unfit.to_owned()), ..one.clone() };
            assert!(matches!(world.submit(ask).await, Err(SubmitError::Text(_))), "{unfit:?}");
        }
        // Nor does the schema hold it.
        let widened = sqlx::query("UPDATE access_grant SET channels = 'exec,shell' WHERE request = $1")
            .bind(id.to_string())
            .execute(world.db.pool())
            .await;
        assert!(violates(&widened.unwrap_err(), &["grant_of_a_command_is_for_exec"]));
    }
}

#[tokio::test]
async fn a_window_has_a_shortest_and_a_longest_length() {
    for world in World::all().await {
        for duration_s in [0, 29, 7 * 24 * 3600 + 1, u64::MAX] {
            let asked = world.submit(Ask { duration_s, ..World::ask("gw-0043") }).await;
            assert!(matches!(asked, Err(SubmitError::Duration)), "{duration_s}: {asked:?}");
        }
        assert!(world.submit(Ask { duration_s: 30, ..World::ask("gw-0043") }).await.is_ok());
    }
}

#[tokio::test]
async fn so_many_requests_of_one_person_wait_and_no_more() {
    for world in World::all().await {
        let most = Limits::default().pending_per_person;
        for _ in 0..most {
            assert!(matches!(world.submit(World::ask("gw-0042")).await, Ok((_, Outcome::Waiting { .. }))));
        }
        let refused = world.submit(World::ask("gw-0042")).await;
        assert!(matches!(refused, Err(SubmitError::TooManyPending(n)) if n == most), "{refused:?}");
    }
}
