//! Files that are shortened under their mapping. Without the handler, each of these tests ends by SIGBUS.
#![allow(unsafe_code, reason = "bytes of a mapping")]

use std::fs::File;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use file_mapping::{FileMapping, SharedWords, generation};

const PAGE: usize = 4096;

fn file(pages: usize) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len((pages * PAGE) as u64).unwrap();
    file
}

fn word(map: &FileMapping, page: usize) -> &AtomicU64 {
    assert!((page + 1) * PAGE <= map.len());
    // SAFETY: in bounds, aligned, and only ever accessed as atomics.
    unsafe { AtomicU64::from_ptr(map.as_ptr().add(page * PAGE).cast()) }
}

#[test]
fn a_file_that_is_shortened_tears_its_mapping_and_no_other() {
    let (short, other) = (file(8), file(1));
    let (map, second) =
        (FileMapping::writable(&short).unwrap(), FileMapping::read_only(&short).unwrap());
    let other = FileMapping::writable(&other).unwrap();
    for page in 0..8 {
        word(&map, page).store(7, Ordering::Relaxed);
    }
    let before = generation();
    short.set_len(2 * PAGE as u64).unwrap();
    assert_eq!(word(&map, 1).load(Ordering::Relaxed), 7);
    assert!(!map.is_torn());
    assert_eq!(word(&map, 4).load(Ordering::Relaxed), 0);
    assert!(map.is_torn() && generation() != before);
    // Pages after page 4 were replaced together with it; those before it are missing, too.
    for page in [7, 3, 2] {
        word(&map, page).store(9, Ordering::Relaxed);
        assert_eq!(word(&map, page).load(Ordering::Relaxed), 9);
    }
    assert_eq!(word(&map, 1).load(Ordering::Relaxed), 7, "what the file has is still there");
    assert!(!second.is_torn() && !other.is_torn());
    assert_eq!(word(&second, 5).load(Ordering::Relaxed), 0);
    assert!(second.is_torn() && !other.is_torn());
}

#[test]
fn words_are_shared_until_the_file_is_shortened() {
    let file = file(2);
    file.set_len(2 * PAGE as u64 - 1).unwrap();
    let [one, other] = [(); 2].map(|()| SharedWords::map(&file).unwrap());
    // The last word is not whole.
    assert_eq!(one.words().len(), 2 * PAGE / 8 - 1);
    one.words()[PAGE / 8].store(7, Ordering::Relaxed);
    assert_eq!(other.words()[PAGE / 8].load(Ordering::Relaxed), 7);
    file.set_len(PAGE as u64).unwrap();
    assert_eq!(one.words()[PAGE / 8].load(Ordering::Relaxed), 0);
    assert!(one.is_torn() && !other.is_torn());
}

#[test]
fn many_threads_may_find_the_same_page_missing() {
    let short = file(64);
    let map = FileMapping::writable(&short).unwrap();
    short.set_len(0).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for page in (0..64).rev() {
                    word(&map, page).fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    assert!(map.is_torn());
}

/// Runs the test `name` of this program in a process of its own.
fn ended_by(name: &str) -> Option<i32> {
    let program = std::env::current_exe().unwrap();
    let arguments = ["--exact", name, "--ignored", "--test-threads=1"];
    Command::new(program).args(arguments).output().unwrap().status.signal()
}

#[test]
fn a_mapping_that_is_not_registered_ends_the_process_as_before() {
    assert_eq!(ended_by("reads_a_page_that_is_missing_elsewhere"), Some(libc::SIGBUS));
    assert_eq!(ended_by("is_sent_the_signal"), Some(libc::SIGBUS));
}

#[test]
#[ignore = "ends its process"]
fn reads_a_page_that_is_missing_elsewhere() {
    let short = file(2);
    let _registered = FileMapping::read_only(&short).unwrap();
    let elsewhere = memmap2::MmapOptions::new().map_raw(&short).unwrap();
    short.set_len(0).unwrap();
    // SAFETY: in bounds; the page is missing, which is what this is about.
    unsafe { elsewhere.as_ptr().read_volatile() };
}

#[test]
#[ignore = "ends its process"]
fn is_sent_the_signal() {
    let _registered = FileMapping::read_only(&file(1)).unwrap();
    // SAFETY: a signal to ourselves.
    unsafe { libc::raise(libc::SIGBUS) };
    std::thread::sleep(std::time::Duration::from_secs(5));
}
