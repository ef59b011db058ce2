//! The records of a guest move with it through its front end (`--device-state on`).

use std::fs;
use std::io::{PipeReader, PipeWriter, Read as _, Write as _, pipe};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use frontend::{Guest, GuestOptions};
use ringscope_tests::daemon::{Daemon, program};
use ringscope_tests::eventually::{SOON, eventually, when};
use ringscope_tests::frames;
use ringscope_tests::migration::Target;
use ringscope_tests::monitor::Monitor;
use ringscope_tests::processes::children;
use ringscope_tests::qemu::{Failure, Place};
use ringscope_tests::traffic;
use serde_json::{Value, json};

const ON: [&str; 2] = ["--device-state", "on"];
/// Longest wait of the daemon for the end of a front end's pipe, and a reserve.
const PATIENCE: Duration = Duration::from_secs(2);

fn start(directory: &Path, name: &str) -> Daemon {
    let reflect = ["--datapath", "reflect"];
    Daemon::start(directory, name, &[&reflect[..], &ON].concat()).unwrap()
}

/// A guest that has sent some frames.
fn guest_of(daemon: &Daemon) -> Guest {
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    frames::come_back(&mut guest).unwrap();
    guest
}

fn stop(guest: &mut Guest) {
    for ring in [1, 0] {
        guest.stop_ring(ring).unwrap();
    }
}

/// Starts the rings again, and lets frames through.
fn go_on(guest: &mut Guest) {
    for ring in [0, 1] {
        guest.start_ring(ring).unwrap();
    }
    frames::come_back(guest).unwrap();
}

/// The state of the daemon that serves this guest.
fn save(guest: &mut Guest) -> Vec<u8> {
    save_through(guest, pipe().unwrap())
}

fn save_through(guest: &mut Guest, (mut reader, writer): (PipeReader, PipeWriter)) -> Vec<u8> {
    guest.link().unwrap().transfer_state(writer.into(), false).unwrap();
    let mut state = Vec::new();
    reader.read_to_end(&mut state).unwrap();
    guest.link().unwrap().check_state().unwrap();
    state
}

fn load(guest: &mut Guest, state: &[u8]) {
    load_through(guest, state, pipe().unwrap());
}

fn load_through(guest: &mut Guest, state: &[u8], (reader, mut writer): (PipeReader, PipeWriter)) {
    guest.link().unwrap().transfer_state(reader.into(), true).unwrap();
    writer.write_all(state).unwrap();
    drop(writer);
    guest.link().unwrap().check_state().unwrap();
}

/// A report, and what was said beside it.
fn report(files: &[&Path]) -> (Value, String) {
    let mut command = Command::new(program("ringscope").unwrap());
    let output = command.arg("report").args(files).args(["--format", "json"]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    (serde_json::from_slice(&output.stdout).unwrap(), said)
}

/// How long each move took.
fn gaps(report: &Value) -> Vec<u64> {
    let rows = report["migrations"].as_array().map(Vec::as_slice).unwrap_or_default();
    rows.iter().map(|row| row["gap_ns"].as_u64().unwrap()).collect()
}

#[test]
fn the_report_of_one_host_has_the_move_and_what_was_before() {
    let directory = tempfile::tempdir().unwrap();
    let daemons = ["old", "new"].map(|name| start(directory.path(), name));
    let mut guest = guest_of(&daemons[0]);
    stop(&mut guest);
    let state = save(&mut guest);
    assert!(state.len() < 3 << 20, "{} bytes", state.len());
    daemons[0].expect_log("the guest took its newest records along");
    guest.reconnect(daemons[1].socket()).unwrap();
    stop(&mut guest);
    load(&mut guest, &state);
    daemons[1].expect_log("the guest brought its records from the host before");
    go_on(&mut guest);
    // The file of the old host could be gone.
    let [old, new] = daemons.each_ref().map(Daemon::recorder);
    let (both, _) = report(&[old, new]);
    let (one, said) = report(&[new]);
    assert_eq!(said, "");
    assert_eq!(gaps(&one).len(), 1, "{}", one["migrations"]);
    assert_eq!(gaps(&one), gaps(&both));
    assert_eq!(one["tx"]["packets"], both["tx"]["packets"]);
    // A daemon that is started again keeps it.
    let [_, daemon] = daemons;
    drop((guest, daemon));
    let daemon = start(directory.path(), "new");
    eventually(SOON, "the records of the daemon before", || {
        let found = gaps(&report(&[daemon.recorder()]).0);
        when(found == gaps(&both), format!("{found:?}"))
    });
}

#[test]
fn records_that_cannot_be_used_are_left_out_with_the_reason() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = start(directory.path(), "vm");
    let mut guest = guest_of(&daemon);
    let own = report(&[daemon.recorder()]).0["tx"]["packets"].clone();
    let another = {
        let daemon = start(directory.path(), "other");
        let options = GuestOptions::default().packed(true);
        let mut guest = Guest::connect(daemon.socket(), options).unwrap();
        frames::come_back(&mut guest).unwrap();
        stop(&mut guest);
        save(&mut guest)
    };
    let cut = &another[..another.len() - 8];
    let states = [
        (&b"no recorder"[..], "no flight recorder"),
        (&[7; 100_000], "no flight recorder"),
        (cut, "no flight recorder"),
        (&another, "negotiated other features"),
    ];
    for (state, reason) in states {
        stop(&mut guest);
        load(&mut guest, state);
        let (report, said) = report(&[daemon.recorder()]);
        assert!(said.contains("without the records that came") && said.contains(reason), "{said}");
        assert_eq!(report["tx"]["packets"], own);
        assert_eq!(said.lines().count(), 1, "{said}");
        for ring in [0, 1] {
            guest.start_ring(ring).unwrap();
        }
    }
    // Nothing is nothing.
    stop(&mut guest);
    load(&mut guest, &[]);
    assert_eq!(report(&[daemon.recorder()]).1, "");
    go_on(&mut guest);
}

/// The helper process has few privileges, and none over files of other users.
#[test]
fn daemon_and_front_end_may_be_of_different_users() {
    let reflect = ["--datapath", "reflect"];
    for user in [&[][..], &["--user", "4712:4712"]] {
        let directory = tempfile::tempdir().unwrap();
        std::os::unix::fs::chown(directory.path(), Some(4712), None).unwrap();
        let arguments = [&reflect[..], &ON, user].concat();
        let daemon = Daemon::start(directory.path(), "vm", &arguments).unwrap();
        let mut guest = guest_of(&daemon);
        stop(&mut guest);
        for uid in [0, 4711] {
            let uid = rustix::process::Uid::from_raw(uid);
            // A pipe is its maker's, and the kernel has a user for each thread.
            let of_user = || {
                std::thread::scope(|scope| {
                    let make = || {
                        rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
                        pipe().unwrap()
                    };
                    scope.spawn(make).join().unwrap()
                })
            };
            let state = save_through(&mut guest, of_user());
            load_through(&mut guest, &state, of_user());
            let came = fs::read(directory.path().join("vm.moved")).unwrap();
            assert!(came == state, "{}", daemon.log());
        }
    }
}

#[test]
fn a_file_that_is_removed_is_not_written_to_in_silence() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = start(directory.path(), "vm");
    let mut guest = guest_of(&daemon);
    stop(&mut guest);
    let state = save(&mut guest);
    fs::remove_file(directory.path().join("vm.moved")).unwrap();
    load(&mut guest, &state);
    daemon.expect_log("the records that the guest brought are lost");
    assert!(!daemon.log().contains("ringscope report shows both"));
}

#[test]
fn a_daemon_without_the_flag_moves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(directory.path(), "vm", &["--datapath", "reflect"]).unwrap();
    let mut guest = guest_of(&daemon);
    stop(&mut guest);
    let (_reader, writer) = pipe().unwrap();
    assert!(guest.link().unwrap().transfer_state(writer.into(), false).is_err());
    go_on(&mut guest);
    assert!(!directory.path().join("vm.moved").exists());
}

#[test]
fn a_front_end_that_does_not_finish_holds_nobody_up() {
    let directory = tempfile::tempdir().unwrap();
    let mut daemon = start(directory.path(), "vm");
    let mut guest = guest_of(&daemon);
    // Rings run.
    let (_reader, writer) = pipe().unwrap();
    assert!(guest.link().unwrap().transfer_state(writer.into(), false).is_err());
    stop(&mut guest);
    // Nobody reads, nobody writes, without an end; and all at once.
    let (unread, writer) = pipe().unwrap();
    // Smaller than any state.
    rustix::pipe::fcntl_setpipe_size(&writer, 4096).unwrap();
    let link = guest.link().unwrap();
    link.transfer_state(writer.into(), false).unwrap();
    let begun = Instant::now();
    assert!(link.check_state().is_err());
    assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
    let (reader, unwritten) = pipe().unwrap();
    link.transfer_state(reader.into(), true).unwrap();
    assert!(link.check_state().is_err());
    let (reader, mut endless) = pipe().unwrap();
    link.transfer_state(reader.into(), true).unwrap();
    while endless.write_all(&[0; 1 << 16]).is_ok() {}
    assert!(link.check_state().is_err());
    daemon.expect_log("cannot be copied");
    let refused = (0..50).filter(|_| {
        let (reader, writer) = pipe().unwrap();
        drop::<PipeReader>(reader);
        link.transfer_state(writer.into(), false).is_err()
    });
    let refused = refused.count();
    go_on(&mut guest);
    // Those that nobody waits for are no obstacle.
    stop(&mut guest);
    let until = Instant::now() + PATIENCE;
    while guest.link().unwrap().check_state().is_ok() && Instant::now() < until {}
    let (reader, writer) = pipe().unwrap();
    drop(writer);
    while guest.link().unwrap().transfer_state(reader.try_clone().unwrap().into(), true).is_err() {
        assert!(Instant::now() < until + PATIENCE, "{refused} were refused");
    }
    let status = daemon.terminate(Duration::from_secs(1)).unwrap();
    assert!(status.success(), "{}", daemon.log());
    drop((unread, unwritten));
}

#[test]
fn helpers_end_with_a_daemon_that_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = start(directory.path(), "vm");
    let mut guest = guest_of(&daemon);
    stop(&mut guest);
    let (mut reader, unwritten) = pipe().unwrap();
    guest.link().unwrap().transfer_state(reader.try_clone().unwrap().into(), true).unwrap();
    let helpers = children(daemon.pid()).unwrap();
    let helpers: Vec<_> = helpers.into_iter().flat_map(|it| children(it).unwrap()).collect();
    assert!(!helpers.is_empty());
    drop(daemon);
    let lives = |pid: &u32| Path::new(&format!("/proc/{pid}")).exists();
    eventually(SOON, "the end of the helpers", || {
        when(!helpers.iter().any(lives), format!("{helpers:?}"))
    });
    drop(unwritten);
    reader.read_to_end(&mut Vec::new()).unwrap();
}

/// A guest in QEMU whose daemon has the flag.
fn guest_in_qemu() -> Result<Place, Failure> {
    let mut place = Place::new(1)?;
    place.spawn(&ON)?;
    let options = place.options()?;
    place.attach(options)?;
    traffic::everything_a_little(&mut place)?;
    Ok(place)
}

#[test]
fn a_guest_in_qemu_takes_its_records_along() -> Result<(), Failure> {
    let mut place = guest_in_qemu()?;
    let mut target = Target::start_daemon_with(&mut place, &ON)?;
    let state = target.receive(&place)?;
    target.daemon.expect_log("the guest brought its records from the host before");
    place.guest().kill()?;
    place.daemon = None;
    traffic::everything_a_little(&mut place)?;
    assert!(target.is_running()?, "QEMU has ended");
    let (report, said) = report(&[target.daemon.recorder()]);
    let [row] = report["migrations"].as_array().ok_or("no migrations")?.as_slice() else {
        return Err(format!("{}: {said}", report["migrations"]).into());
    };
    println!("{row}, {state}");
    for part in ["rings_stopped_ns", "between_hosts_ns", "first_burst_ns", "gap_ns"] {
        assert!(row[part].as_u64().is_some(), "{part}: {row}");
    }
    Ok(())
}

#[test]
fn a_guest_in_qemu_moves_to_a_daemon_that_has_the_flag_first() -> Result<(), Failure> {
    let mut place = traffic::guest_on_tap(1, |_| {})?;
    let mut target = Target::start_daemon_with(&mut place, &ON)?;
    target.receive(&place)?;
    place.guest().kill()?;
    place.daemon = None;
    traffic::everything_a_little(&mut place)?;
    assert!(target.is_running()?, "QEMU has ended");
    Ok(())
}

#[test]
fn qemu_keeps_a_guest_whose_new_daemon_has_no_flag() -> Result<(), Failure> {
    let mut place = guest_in_qemu()?;
    let mut target = Target::start_daemon_with(&mut place, &[])?;
    // The QEMU here has sent everything, and does not hear what becomes of it, unless the other end is the faster one.
    if let Err(failed) = target.receive(&place) {
        assert!(failed.to_string().contains("Unable to write to socket"), "{failed}");
    }
    eventually(SOON, "the end of the QEMU there", || {
        let is_running = target.is_running().map_err(|error| error.to_string())?;
        when(!is_running, std::fs::read_to_string(target.directory().join("qemu.log")).unwrap())
    });
    let said = std::fs::read_to_string(target.directory().join("qemu.log"))?;
    assert!(said.contains("Back-end does not support migration state transfer"), "{said}");
    Monitor::connect(&place)?.execute("cont", &json!({}))?;
    traffic::everything_a_little(&mut place)?;
    Ok(())
}
