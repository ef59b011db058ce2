use std::os::unix::fs::symlink;

use rustix::fs::{CWD, Mode, chown, mkfifoat};
use rustix::process::{Gid, Uid};
use tempfile::TempDir;

use super::*;

const MARK: [u8; 8] = *b"RINGSCP1";

#[test]
fn it_is_a_new_file_each_time_for_its_owner_alone() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("capture");
    create_own(&path, 0o600, MARK).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    let before = FileId::of_path(&path);
    let reader = File::open(&path).unwrap();
    let made = create_own(&path, 0o600, MARK).unwrap();
    assert_ne!(
        FileId::of_path(&path),
        before,
        "a reader of the old file sees nothing of the new one"
    );
    assert_eq!(made.metadata().unwrap().mode() & 0o777, 0o600);
    assert_eq!(reader.metadata().unwrap().nlink(), 0);
    assert_eq!(directory.path().read_dir().unwrap().count(), 1);
}

#[test]
fn links_fifos_recorders_and_other_users_files_are_refused_and_left_alone() {
    let directory = TempDir::new().unwrap();
    let path = |name| directory.path().join(name);
    fs::write(path("target"), "precious").unwrap();
    symlink("target", path("link")).unwrap();
    symlink("nowhere", path("dangling")).unwrap();
    mkfifoat(CWD, path("fifo"), Mode::RWXU).unwrap();
    fs::write(path("vm0.trace"), [&MARK[..], &[0; 100]].concat()).unwrap();
    let mut cases = vec![
        ("link", "a symbolic link"),
        ("dangling", "a symbolic link"),
        ("fifo", "a FIFO"),
        ("vm0.trace", "a flight recorder"),
    ];
    fs::write(path("other"), "theirs").unwrap();
    // Only root can give a file away.
    if chown(path("other"), Some(Uid::from_raw(12345)), Some(Gid::from_raw(12345))).is_ok() {
        cases.push(("other", "another user's (uid 12345)"));
    }
    for (name, part) in cases {
        let error = create_own(&path(name), 0o600, MARK).unwrap_err().to_string();
        assert!(error.contains(part), "{name}: {error}");
    }
    assert_eq!(fs::read(path("target")).unwrap(), b"precious");
    assert_eq!(fs::read(path("other")).unwrap(), b"theirs");
    assert!(!path("nowhere").exists());
}

#[test]
fn a_lock_is_of_one_and_can_be_taken_again() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("vm0.lock");
    let lock = Lock::take(&path).unwrap().expect("nobody has it");
    assert!(Lock::take(&path).unwrap().is_none());
    drop(lock);
    assert!(!path.exists());
    fs::write(&path, "").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    let _lock = Lock::take(&path).unwrap().expect("nobody has it");
    assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600, "nobody else can lock it");
}

#[test]
fn a_lock_is_no_link_and_nobody_elses() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("vm0.lock");
    symlink("target", &path).unwrap();
    let error = Lock::take(&path).unwrap_err().to_string();
    assert!(error.contains("a symbolic link"), "{error}");
    assert!(!directory.path().join("target").exists());
}
