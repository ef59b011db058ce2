use std::os::unix::fs::{PermissionsExt as _, symlink};

use proptest::prelude::*;

use super::*;

const RINGS: u16 = 4;

fn identity() -> RingIdentity {
    RingIdentity {
        parts: [0x1000, 0x2000, 0x3000],
        size: 256,
        said: 0x8000,
        packed: true,
        in_order: false,
        event_index: true,
        indirect: true,
    }
}

#[test]
fn the_next_daemon_reads_what_the_last_one_noted() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vm0.rings");
    let (journal, found) = Journal::open(&path, RINGS).unwrap();
    assert_eq!(found, Found::Nothing);
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, MODE);
    assert!(journal.slot(RINGS).is_none());
    let slot = journal.slot(3).unwrap();
    assert_eq!(slot.entry(), None);
    slot.begin(&identity(), 0x8000, None);
    slot.taken(0x8003, 0x8007);
    slot.pending(77);
    let group = Published { before: Some(0x8001), from: 0x8003, to: 4 };
    slot.publishing(group);
    drop((slot, journal));

    let (journal, found) = Journal::open(&path, RINGS).unwrap();
    assert_eq!(found, Found::Journal);
    let entry = journal.slot(3).unwrap().entry().unwrap();
    assert_eq!(entry.identity, identity());
    assert_eq!((entry.used, entry.taken, entry.pending), (0x8003, 0x8007, 77));
    assert_eq!(entry.published, Some(group));
    assert_eq!(journal.slot(2).unwrap().entry(), None);
    journal.slot(3).unwrap().forget();
    assert_eq!(journal.slot(3).unwrap().entry(), None);
}

#[test]
fn a_file_that_does_not_fit_is_replaced_and_the_reason_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vm0.rings");
    let write = |at: usize, word: u64| {
        let mut bytes = fs::read(&path).unwrap();
        bytes[at * 8..at * 8 + 8].copy_from_slice(&word.to_le_bytes());
        fs::write(&path, bytes).unwrap();
    };
    let expect = |part: &str| {
        let (journal, found) = Journal::open(&path, RINGS).unwrap();
        let Found::Unfit(why) = found else { panic!("{found:?}") };
        assert!(why.contains(part), "{part}: {why}");
        assert!((0..RINGS).all(|ring| journal.slot(ring).unwrap().entry().is_none()));
        journal.slot(0).unwrap().begin(&identity(), 5, None);
    };
    Journal::open(&path, RINGS).unwrap();
    write(word::MAGIC, 0);
    expect("does not begin as a journal");
    write(word::VERSION, 2);
    expect("found version 2");
    write(word::RINGS, 5);
    expect("expected 4 rings, found 5");
    write(word::BOOT + 1, 0);
    expect("the host was booted since");
    let len = path.metadata().unwrap().len();
    for wrong in [0, len - 1, len + 8] {
        File::options().write(true).open(&path).unwrap().set_len(wrong).unwrap();
        expect(&format!("found {wrong}"));
    }
}

#[test]
fn nothing_but_a_regular_file_is_opened() {
    let directory = tempfile::tempdir().unwrap();
    let elsewhere = directory.path().join("elsewhere");
    fs::write(&elsewhere, [7; 100]).unwrap();
    let link = directory.path().join("link.rings");
    symlink(&elsewhere, &link).unwrap();
    let folder = directory.path().join("folder.rings");
    fs::create_dir(&folder).unwrap();
    for path in [&link, &folder] {
        let error = Journal::open(path, RINGS).unwrap_err().to_string();
        assert!(error.contains("expected a regular file or nothing"), "{error}");
    }
    assert_eq!(fs::read(&elsewhere).unwrap(), [7; 100]);
}

#[test]
fn a_file_that_is_shortened_meanwhile_ends_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vm0.rings");
    let (journal, _) = Journal::open(&path, RINGS).unwrap();
    let slot = journal.slot(0).unwrap();
    File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
    slot.begin(&identity(), 0, None);
    slot.taken(1, 2);
    assert_eq!(path.metadata().unwrap().len(), 0);
}

proptest! {
    #[test]
    fn any_bytes_are_an_entry_or_none(
        words in proptest::array::uniform16(any::<u64>()),
        in_service: bool,
    ) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vm0.rings");
        let (journal, _) = Journal::open(&path, RINGS).unwrap();
        for (at, word) in words.into_iter().enumerate() {
            journal.ring(1)[at].store(word, Ordering::Relaxed);
        }
        if in_service {
            journal.ring(1)[ring::STATE].store(IN_SERVICE, Ordering::Relaxed);
        }
        let slot = journal.slot(1).unwrap();
        if let Some(entry) = slot.entry() {
            prop_assert!(in_service || words[0] == IN_SERVICE);
            slot.begin(&entry.identity, entry.used, entry.published);
            prop_assert_eq!(slot.entry().map(|it| it.identity), Some(entry.identity));
        }
    }
}

#[test]
fn a_journal_that_is_in_use_stays_until_the_new_one_gets_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vm0.rings");
    let (old, _) = Journal::open(&path, RINGS).unwrap();
    old.slot(1).unwrap().begin(&identity(), 0x8000, None);
    // One that fits is shared.
    let (shared, found) = Journal::open_beside(&path, RINGS).unwrap();
    assert_eq!(found, Found::Journal);
    assert!(shared.slot(1).unwrap().entry().is_some());
    shared.take_place().unwrap();
    drop(shared);

    let before = fs::read(&path).unwrap();
    let names = || fs::read_dir(directory.path()).unwrap().count();
    for taken_over in [false, true] {
        let (new, found) = Journal::open_beside(&path, RINGS + 2).unwrap();
        assert!(matches!(found, Found::Unfit(_)));
        assert_eq!((fs::read(&path).unwrap(), names()), (before.clone(), 2));
        if taken_over {
            new.take_place().unwrap();
        }
        new.slot(5).unwrap().begin(&identity(), 0x8001, None);
        drop(new);
        assert_eq!(names(), 1);
    }
    assert_ne!(fs::read(&path).unwrap(), before);
    let (journal, found) = Journal::open(&path, RINGS + 2).unwrap();
    assert_eq!(found, Found::Journal);
    assert!(journal.slot(5).unwrap().entry().is_some());
}
