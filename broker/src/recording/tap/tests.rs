use super::super::sftp::tests as packets;
use super::super::tests::{Fixture, SmallDisk, quick};
use super::super::{ChannelFacts, ChannelRecorder, Recorder, store};
use super::*;
use crate::testing;
use daypass_protocol::api::EndReason;
use daypass_protocol::channel::ChannelKind;

fn sftp() -> ChannelFacts {
    ChannelFacts { kind: ChannelKind::Sftp, pty: None, command: None, target: None }
}

/// What comes through from the device, once it is on record.
async fn out(files: &ChannelRecorder, bytes: impl Into<Bytes>) -> Result<Passed, NotPassed> {
    let (passed, mut pending) = files.pass_out(bytes.into()).await?;
    pending.recorded().await?;
    Ok(passed)
}

/// A channel for files, past its greeting.
async fn greeted(recorder: &Recorder) -> ChannelRecorder {
    let files = recorder.channel(0, sftp()).await.unwrap();
    for (passed, sent) in [
        (files.pass_in(packets::init().into()).await, packets::init()),
        (out(&files, packets::version()).await, packets::version()),
    ] {
        assert_eq!(passed.unwrap().pieces().collect::<Vec<_>>(), [Bytes::from(sent)]);
    }
    files
}

const REMOVE: u8 = 13;

#[tokio::test]
async fn a_channel_for_files_has_no_recording_of_its_own_and_its_operations_are_events() {
    for db in testing::databases().await {
        let at = Fixture::new(db).await;
        let recorder = at.recordings.start(&at.facts, None).await.unwrap();
        let files = greeted(&recorder).await;
        files.pass_in(packets::named(REMOVE, 1, "/etc/motd").into()).await.unwrap();
        let live = at.content(0).await;
        assert!(
            live.contains(r#""event":"sftp_asked","channel":0,"op":"remove","path":{"text":"/etc/motd"}}"#),
            "{live}"
        );
        out(&files, packets::status(1, 3)).await.unwrap();
        files.stderr(&Bytes::from_static(b"debug")).await.unwrap().recorded().await.unwrap();
        // Asked, and never answered.
        files.pass_in(packets::named(REMOVE, 2, "/etc/issue").into()).await.unwrap();
        files.close().await.unwrap();
        recorder.close(EndReason::Closed, None).await.unwrap();
        at.recordings.settle().await;

        let events = at.content(0).await;
        assert!(events.contains(r#""path":{"text":"/etc/motd"},"result":"permission_denied""#), "{events}");
        assert!(events.contains(r#""path":{"text":"/etc/issue"},"result":"no_answer""#), "{events}");
        assert!(
            events.contains(r#""event":"sftp_stderr","channel":0,"output":{"text":"debug"}"#),
            "{events}"
        );
        for line in events.lines() {
            serde_json::from_str::<SessionEvent>(line).unwrap();
        }
        assert_eq!(store::of_session(&at.db, &at.facts.session).await.unwrap().len(), 1);
        at.end_session().await;
    }
}

#[tokio::test]
async fn a_client_that_asks_without_end_waits_for_answers_and_goes_on() {
    let at = Fixture::new(testing::sqlite().await).await;
    let recorder = at.recordings.start(&at.facts, None).await.unwrap();
    let files = greeted(&recorder).await;
    for number in 0..u32::try_from(ENOUGH).unwrap() {
        files.pass_in(packets::named(17, number, "/a").into()).await.unwrap();
    }
    let one_more = packets::named(17, 9000, "/a");
    let mut asking = std::pin::pin!(files.pass_in(one_more.clone().into()));
    tokio::select! {
        biased;
        _ = &mut asking => panic!("it did not wait"),
        () = std::future::ready(()) => {}
    }
    let _ = out(&files, packets::status(7, 2)).await.unwrap();
    let passed = asking.await.unwrap();
    assert_eq!(passed.pieces().collect::<Vec<_>>(), [Bytes::from(one_more)]);
}

#[tokio::test]
async fn no_recorder_no_session_a_request_passes_only_when_it_is_on_record() {
    let disk = SmallDisk::mount();
    let at = Fixture::at(testing::sqlite().await, disk.0.join("recordings"), quick()).await;
    let recorder = at.recordings.start(&at.facts, None).await.unwrap();
    let files = greeted(&recorder).await;
    std::fs::write(disk.0.join("filler"), vec![0; 2 << 20]).unwrap_err();
    // What is left of the page that the file has begun takes a few.
    // Nothing is answered, so that nothing but requests is written.
    let mut passed = 0;
    let error = loop {
        let request = packets::named(REMOVE, passed, &"x".repeat(1000));
        match files.pass_in(request.into()).await {
            Ok(_) => passed += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, NotPassed::Recorder(RecordError::Full(_))), "{error:?}");
    // A line that was torn is none.
    let events = at.content(0).await;
    let whole = |line: &&str| serde_json::from_str::<SessionEvent>(line).is_ok();
    let on_record = events.lines().filter(whole).filter(|line| line.contains("sftp_asked")).count();
    assert!(passed as usize <= on_record, "{passed} passed, {on_record} are on record");
    // Room again: what was torn stays over, in both directions, also for what is not written down.
    std::fs::remove_file(disk.0.join("filler")).unwrap();
    let stat = packets::named(17, 5000, "/");
    assert!(matches!(files.pass_in(stat.into()).await, Err(NotPassed::Recorder(_))));
    assert!(matches!(out(&files, packets::status(0, 0)).await, Err(NotPassed::Recorder(_))));
    drop((files, recorder));
    at.recordings.settle().await;
}

#[tokio::test]
async fn what_does_not_read_is_on_record_and_does_not_pass() {
    let at = Fixture::new(testing::sqlite().await).await;
    let recorder = at.recordings.start(&at.facts, None).await.unwrap();
    let files = greeted(&recorder).await;
    let error = files.pass_in(Bytes::from_static(b"\0\0\0\x05\xfaabcd")).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "your client sent an SFTP packet of type 250, which does not belong here, so the file transfer cannot be recorded and was ended"
    );
    assert!(at.content(0).await.contains(r#""event":"sftp_unreadable","channel":0,"why":"your client sent"#));
    assert!(files.pass_in(packets::named(REMOVE, 1, "/").into()).await.is_err());
    drop((files, recorder));
    at.recordings.settle().await;
}

#[tokio::test]
async fn an_operation_whose_call_was_dropped_half_way_is_still_on_record_once() {
    for polls in 0..4 {
        let at = Fixture::new(testing::sqlite().await).await;
        let recorder = at.recordings.start(&at.facts, None).await.unwrap();
        let files = greeted(&recorder).await;
        files.pass_in(packets::named(REMOVE, 1, "/etc/motd").into()).await.unwrap();
        {
            let mut answer = Box::pin(out(&files, packets::status(1, 0)));
            for _ in 0..=polls {
                // One poll.
                tokio::select! {
                    biased;
                    _ = &mut answer => break,
                    () = std::future::ready(()) => {}
                }
                tokio::task::yield_now().await;
            }
        }
        files.close().await.unwrap();
        let events = at.content(0).await;
        assert_eq!(events.matches(r#""event":"sftp","channel":0,"op":"remove""#).count(), 1, "{events}");
        assert_eq!(events.matches(r#""result":"ok""#).count(), 1, "{events}");
        drop(recorder);
        at.recordings.settle().await;
    }
}
