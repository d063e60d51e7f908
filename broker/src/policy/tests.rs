//! What policy promises, on real Cedar.

use super::*;
use daypass_protocol::api::{CraClass, DeviceState};
use daypass_protocol::ids::PersonId;
use daypass_protocol::time::Timestamp;
use std::path::Path;
use std::time::Duration;

const NOW: Timestamp = Timestamp(1_795_342_500_000);

fn person(n: u8, teams: &[&str]) -> Subject {
    Subject {
        id: PersonId::from_random([n; 5]),
        email: format!("person{n}@example.com"),
        teams: teams.iter().map(|team| (*team).to_owned()).collect(),
        mfa: true,
        signed_in_at: NOW,
    }
}

fn device(env: &str) -> DeviceFacts {
    DeviceFacts {
        id: "gw-0042".parse().unwrap(),
        product_line: "edge-gateway".parse().unwrap(),
        cra_class: CraClass::Default,
        state: DeviceState::Active,
        labels: [("env".to_owned(), env.to_owned())].into(),
        forward_targets: vec![],
    }
}

fn ask(subject: Subject, env: &str) -> ConnectAsk {
    ConnectAsk {
        subject,
        device: device(env),
        login: "diag".parse().unwrap(),
        channels: "shell".parse().unwrap(),
        duration: Duration::from_mins(30),
        reason: "the uplink flaps".to_owned(),
        ticket: None,
        emergency: false,
        on_site: false,
        command: None,
        forward_targets: vec![],
    }
}

fn with(policies: &str) -> Result<Policies, PolicyErrors> {
    Policies::from_sources(shipped::SCHEMA.1, &[("t.cedar".to_owned(), policies.to_owned())])
}

fn denied(decision: Decision) -> Refusal {
    match decision {
        Decision::Deny(refusal) => refusal,
        other => panic!("not refused: {other}"),
    }
}

const PERMIT_ALL: &str =
    "@id(\"all\") @description(\"Everybody may do everything.\") permit (principal, action, resource);\n";

#[test]
fn the_shipped_cases_come_out_as_written() {
    let policies = shipped::policies().unwrap();
    let files: Vec<_> =
        shipped::CASES.iter().map(|(name, text)| cases::CaseFile::parse(name, text).unwrap()).collect();
    let report = cases::run(&policies, &files);
    assert!(report.passed(), "{report}");
    assert!(report.outcomes.len() > 40);
}

#[test]
fn the_shipped_files_are_all_the_files_of_the_folder() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies");
    let loaded = Policies::load(&dir).unwrap();
    assert_eq!(loaded.hash(), shipped::policies().unwrap().hash());
    assert_eq!(cases::load(&dir).unwrap().len(), shipped::CASES.len());
    assert!(commands::test(&dir).unwrap().passed());
    assert!(commands::check(&dir).unwrap().contains(loaded.hash()));
}

#[test]
fn what_no_policy_permits_is_refused() {
    let lone = "@id(\"forbid-root\") @description(\"No root.\") forbid (principal, action == Action::\"connect\", \
                resource) when { context.login == \"root\" };";
    let policies = with(lone).unwrap();
    let refusal = denied(evaluate(&policies, &ask(person(1, &["support"]), "lab"), &Approvals::none(), NOW));
    assert!(refusal.policies.is_empty() && refusal.reason.starts_with("No policy permits"), "{refusal}");
    for action in Action::ALL.iter().filter(|action| action.about() == About::Fleet) {
        assert!(!may(&policies, &person(1, &["fleet"]), *action, &Resource::Fleet, NOW).is_permitted());
    }
}

#[test]
fn forbid_beats_permit() {
    let forbid = "@id(\"never\") @description(\"Never here.\") forbid (principal, action == Action::\"connect\", \
                  resource) when { resource.hasTag(\"env\") && resource.getTag(\"env\") == \"lab\" };";
    let policies = with(&format!("{PERMIT_ALL}{forbid}")).unwrap();
    let subject = || person(1, &["support"]);
    let refusal = denied(evaluate(&policies, &ask(subject(), "lab"), &Approvals::none(), NOW));
    assert_eq!((refusal.reason.as_str(), refusal.policies), ("Never here.", vec!["never".to_owned()]));
    assert!(matches!(
        evaluate(&policies, &ask(subject(), "field"), &Approvals::none(), NOW),
        Decision::Allow(_)
    ));
}

/// Cedar skips a policy that it cannot evaluate: a skipped forbid would fail open.
#[test]
fn a_policy_that_cannot_be_evaluated_refuses() {
    let overflow = "@id(\"sum\") @description(\"A sum that is too large.\") forbid (principal, action == \
                    Action::\"connect\", resource) when { context.reason_length * 922337203685477580 > 0 };";
    let policies = with(&format!("{PERMIT_ALL}{overflow}")).unwrap();
    // A reason of ten characters or more overflows.
    let ask = ask(person(1, &["support"]), "lab");
    let refusal = denied(evaluate(&policies, &ask, &Approvals::none(), NOW));
    assert!(refusal.cause.as_deref().unwrap().contains("overflow"), "{refusal}");
    assert!(!holds(&policies, &ask, &Approvals::none(), NOW).is_permitted());
}

#[test]
fn a_set_that_does_not_validate_is_refused_with_every_mistake_and_its_place() {
    let errors = with(
        "@id(\"a\")\n@description(\"A.\")\npermit (principal, action, resource)\nwhen { resource.colour == 1 };\n\n\
         @id(\"a\") @description(\"B.\") permit (principal, action, resource);\n\
         permit (principal, action, resource);\n\
         @id(\"state\") @description(\"D.\") permit (principal, action == Action::\"connect\", resource)\n\
         when { resource.state == DeviceState::\"actve\" };\n\
         @id(\"t\") @description(\"T.\") permit (principal == ?principal, action, resource);\n",
    )
    .unwrap_err()
    .to_string();
    for expected in [
        "t.cedar:4: ",
        "colour",
        "t.cedar:6: a second policy with @id(\"a\")",
        "t.cedar:7: a policy needs @id",
        "t.cedar:7: a policy needs @description",
        "t.cedar:9: ",
        "actve",
        "t.cedar:10: a template",
    ] {
        assert!(errors.contains(expected), "no {expected:?} in:\n{errors}");
    }
    let unparsable = with("@id(\"a\")\npermit (principal,\n").unwrap_err().to_string();
    assert!(unparsable.starts_with("t.cedar:"), "{unparsable}");
    assert!(with("").unwrap_err().to_string().contains("nobody could do anything"));
}

#[test]
fn a_policy_that_can_never_apply_is_refused() {
    let never = "@id(\"n\") @description(\"N.\") forbid (principal, action == Action::\"connect\", resource) \
                 when { context.approvals >= 1 && false };";
    assert!(with(&format!("{PERMIT_ALL}{never}")).is_err());
}

#[test]
fn a_schema_that_lacks_what_the_broker_asks_with_is_refused() {
    let lacking = shipped::SCHEMA.1.replace("ticket?: String,", "");
    let all = [("t.cedar".to_owned(), PERMIT_ALL.to_owned())];
    let errors = Policies::from_sources(&lacking, &all).unwrap_err().to_string();
    assert!(errors.contains("the broker cannot ask for connect"), "{errors}");
    let lacking = shipped::SCHEMA.1.replace("\"replay\", ", "");
    let errors = Policies::from_sources(&lacking, &all).unwrap_err().to_string();
    assert!(errors.contains("the broker cannot ask for replay"), "{errors}");
}

#[test]
fn a_reload_that_fails_leaves_the_old_set_in_force() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("schema.cedarschema"), shipped::SCHEMA.1).unwrap();
    std::fs::write(dir.path().join("a.cedar"), PERMIT_ALL).unwrap();
    let store = PolicyStore::new(shipped::policies().unwrap());
    let shipped = store.current().hash().to_owned();

    std::fs::write(dir.path().join("b.cedar"), "permit (principal, action, resource) when { 1 };").unwrap();
    let errors = store.reload(dir.path()).unwrap_err().to_string();
    assert!(errors.contains("b.cedar:1"), "{errors}");
    assert_eq!(store.current().hash(), shipped);
    assert!(store.reload(Path::new("/nonexistent")).is_err());
    assert_eq!(store.current().hash(), shipped);

    std::fs::remove_file(dir.path().join("b.cedar")).unwrap();
    let reloaded = store.reload(dir.path()).unwrap();
    assert!(reloaded.changed() && reloaded.before == shipped);
    assert_eq!(store.current().hash(), reloaded.after);
}

#[test]
fn a_team_that_policy_does_not_name_gets_nothing() {
    let policies = shipped::policies().unwrap();
    for teams in [&[][..], &["Support"], &["support "], &["support\u{200b}"], &["сupport"], &["everyone"]] {
        let who = person(1, teams);
        let all = Approvals::of(
            &who.id,
            [(&PersonId::from_random([8; 5]), &vec!["safety".to_owned(), "support-leads".to_owned()])],
        );
        assert!(denied(evaluate(&policies, &ask(who.clone(), "lab"), &all, NOW)).would_allow.is_empty());
        let read = may(&policies, &who, Action::ReadDevice, &Resource::Device(&device("lab")), NOW);
        assert!(!read.is_permitted(), "{teams:?}");
    }
}

#[test]
fn nobody_answers_their_own_request_even_where_policy_permits_it() {
    let policies = with(PERMIT_ALL).unwrap();
    let ana = person(1, &["support-leads"]);
    let own = ask(ana.clone(), "field").as_request();
    assert!(!may(&policies, &ana, Action::Approve, &Resource::Request(&own), NOW).is_permitted());
    let other = ask(person(2, &[]), "field").as_request();
    assert!(may(&policies, &ana, Action::Approve, &Resource::Request(&other), NOW).is_permitted());
}

#[test]
fn nobody_reviews_their_own_session_even_where_policy_permits_it() {
    let policies = with(PERMIT_ALL).unwrap();
    let ana = person(1, &["security"]);
    let session = |who: &Subject| SessionFacts {
        person: who.id.clone(),
        device: device("lab"),
        login: "diag".parse().unwrap(),
    };
    let review =
        |session: &SessionFacts| may(&policies, &ana, Action::Review, &Resource::Session(session), NOW);
    assert!(!review(&session(&ana)).is_permitted());
    assert!(review(&session(&person(2, &[]))).is_permitted());
}

#[test]
fn an_approval_counts_once_and_never_from_the_requester() {
    let (ana, ben) = (PersonId::from_random([1; 5]), PersonId::from_random([2; 5]));
    let (leads, safety) = (vec!["support-leads".to_owned()], vec!["safety".to_owned()]);
    let approvals = Approvals::of(&ana, [(&ana, &safety), (&ben, &leads), (&ben, &leads)]);
    assert_eq!(approvals.count(), 1);
    assert_eq!(approvals.teams().iter().collect::<Vec<_>>(), ["support-leads"]);
}

/// Everything that people or systems write reaches Cedar as a value.
#[test]
fn weird_text_changes_no_decision() {
    let policies = shipped::policies().unwrap();
    for weird in [
        "\" || true || \"",
        "lab\") || true; permit(principal,action,resource); //",
        "Team::\"support\"",
        "support\",Team::\"safety",
        "\u{202e}bal\0\n\t\\u{22}",
        "__expr",
        "𝕝𝕒𝕓",
        "",
    ] {
        let mut outsider = ask(person(1, &[weird]), "lab");
        outsider.subject.email = weird.to_owned();
        outsider.reason = weird.to_owned();
        outsider.ticket = Some(weird.to_owned());
        outsider.device.labels.insert(weird.to_owned(), weird.to_owned());
        let teams = vec![weird.to_owned()];
        let approver = PersonId::from_random([3; 5]);
        let approvals = || Approvals::of(&outsider.subject.id, [(&approver, &teams)]);
        let refusal = denied(evaluate(&policies, &outsider, &approvals(), NOW));
        assert_eq!(refusal.cause, None, "{weird:?} is a value and not an error");

        let mut engineer = outsider.clone();
        engineer.subject.teams.push("support".to_owned());
        engineer.device.labels.insert("env".to_owned(), "lab".to_owned());
        assert!(matches!(evaluate(&policies, &engineer, &approvals(), NOW), Decision::Allow(_)), "{weird:?}");
        engineer.device.labels.insert("env".to_owned(), weird.to_owned());
        engineer.reason = "a real reason".to_owned();
        assert!(
            matches!(evaluate(&policies, &engineer, &approvals(), NOW), Decision::NeedsApproval(_)),
            "{weird:?} is not a lab"
        );
    }
}

#[test]
fn extreme_numbers_are_decided_and_not_a_panic() {
    let policies = shipped::policies().unwrap();
    let mut long = ask(person(1, &["support"]), "lab");
    long.duration = Duration::MAX;
    assert_eq!(
        denied(evaluate(&policies, &long, &Approvals::none(), NOW)).policies,
        ["at-most-a-working-day"]
    );
    let mut far = ask(person(1, &["support"]), "lab");
    far.subject.signed_in_at = Timestamp(i64::MIN);
    let _ = evaluate(&policies, &far, &Approvals::none(), NOW);
    let beyond = denied(evaluate(&policies, &far, &Approvals::none(), Timestamp(i64::MAX)));
    assert!(beyond.cause.is_some(), "a moment that Cedar cannot hold refuses");
}

#[test]
fn an_ask_for_nothing_is_refused() {
    let policies = shipped::policies().unwrap();
    let mut none = ask(person(1, &["support"]), "lab");
    none.channels = "".parse().unwrap();
    let _ = denied(evaluate(&policies, &none, &Approvals::none(), NOW));
    assert!(!holds(&policies, &none, &Approvals::none(), NOW).is_permitted());
    none.channels = "shell".parse().unwrap();
    none.duration = Duration::ZERO;
    let _ = denied(evaluate(&policies, &none, &Approvals::none(), NOW));
}

#[test]
fn an_ask_that_nobody_may_approve_is_refused_and_not_left_waiting() {
    let alone = "@id(\"c\") @description(\"With an approval.\") permit (principal, action == Action::\"connect\", \
                 resource) when { context.approvals >= 1 };\n";
    let ask = ask(person(1, &["support"]), "lab");
    let refusal = denied(evaluate(&with(alone).unwrap(), &ask, &Approvals::none(), NOW));
    assert!(refusal.reason.contains("nobody may give"), "{refusal}");

    let anybody = "@id(\"p\") @description(\"Anybody answers.\") permit (principal, action == Action::\"approve\", \
                   resource);";
    let policies = with(&format!("{alone}{anybody}")).unwrap();
    let Decision::NeedsApproval(asked) = evaluate(&policies, &ask, &Approvals::none(), NOW) else {
        panic!("not waiting")
    };
    assert!(asked.anybody && asked.approver_teams.is_empty());
    assert_eq!(asked.why, ["With an approval."]);
}

#[test]
fn what_somebody_may_at_all_follows_their_teams() {
    let policies = shipped::policies().unwrap();
    let names = |teams: &[&str]| -> Vec<&'static str> {
        may_at_all(&policies, &person(1, teams), NOW).into_iter().map(Action::as_str).collect()
    };
    let ana = names(&["support"]);
    assert!(ana.contains(&"connect") && ana.contains(&"list_devices"), "{ana:?}");
    assert!(!ana.contains(&"approve") && !ana.contains(&"review") && !ana.contains(&"enrol_device"));
    assert!(names(&["support-leads"]).contains(&"approve"));
    let chloe = names(&["security"]);
    assert!(chloe.contains(&"review") && chloe.contains(&"read_audit") && !chloe.contains(&"connect"));
    assert!(names(&["fleet"]).contains(&"enrol_device"));
    assert!(!names(&["marketing"]).contains(&"read_device"));
}

#[test]
fn an_action_asked_on_the_wrong_thing_is_refused() {
    let policies = with(PERMIT_ALL).unwrap();
    let who = person(1, &["fleet"]);
    for (action, resource) in
        [(Action::Replay, Resource::Fleet), (Action::ListDevices, Resource::Device(&device("lab")))]
    {
        assert!(!may(&policies, &who, action, &resource, NOW).is_permitted());
    }
    assert!(!may(&policies, &who, Action::Connect, &Resource::Device(&device("lab")), NOW).is_permitted());
}

#[test]
fn policy_may_permit_one_command_by_its_words() {
    let policies = with(
        "@id(\"look\") @description(\"Support may look at the modem.\")
         permit (principal in Team::\"support\", action == Action::\"connect\", resource)
         when { context has command && context.command == \"systemctl status modem\" };",
    )
    .unwrap();
    let decide = |command: Option<&str>| {
        let mut ask = ask(person(1, &["support"]), "field");
        ask.channels = "exec".parse().unwrap();
        ask.command = command.map(str::to_owned);
        evaluate(&policies, &ask, &Approvals::none(), NOW)
    };
    assert!(matches!(decide(Some("systemctl status modem")), Decision::Allow(_)));
    assert!(denied(decide(Some("reboot"))).reason.contains("the command \"reboot\""));
    denied(decide(None));
}
