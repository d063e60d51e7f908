//! The seeds that were kept go through the functions that the fuzzer calls, in every run of the tests.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;

fn replay(name: &str, target: impl Fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(name);
    let mut count = 0;
    for seed in std::fs::read_dir(&folder).unwrap() {
        let path = seed.unwrap().path();
        // Shown when the test fails: the last one is it.
        println!("{}", path.display());
        target(&std::fs::read(&path).unwrap());
        count += 1;
    }
    assert!(count >= 10, "{count} seeds in {}", folder.display());
}

#[test]
fn frames_and_control_messages_read_the_same_in_any_cut_and_back() {
    replay("frame", fuzz_targets::frame);
}

#[test]
fn no_certificate_or_bundle_outside_the_profile_passes() {
    replay("certificate", fuzz_targets::certificate);
}

#[test]
fn file_transfers_read_the_same_in_any_cut_and_nothing_passes_that_was_not_sent() {
    replay("sftp", fuzz_targets::sftp);
}

#[test]
fn a_hello_proves_nothing_without_the_right_key_purpose_and_connection() {
    replay("hello", fuzz_targets::hello);
}
