//! The recorders of a guest that moved between hosts, as those of one guest.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use burst_trace::file::word;
use burst_trace::{
    BurstRecord, Clock, Clocks, Migration, NotOneGuest, Reader, Record, Recorder, RecorderOptions,
    Source, Step, Writer,
};

/// One for all: to make one takes 20 ms.
static CLOCK: LazyLock<Clock> = LazyLock::new(Clock::new);
const ADDRESS: [u8; 6] = [2, 0, 0, 0, 0, 1];

struct Host {
    path: PathBuf,
    recorder: Recorder,
    writer: Writer,
}

impl Host {
    fn new(directory: &Path, name: &str) -> Self {
        let options = RecorderOptions {
            path: directory.join(name),
            workers: 1,
            queue_pairs: 1,
            capacity: 64,
            facts: "{}".into(),
        };
        let recorder = Recorder::create(&options, &CLOCK).unwrap();
        let writer = recorder.writer(0, *CLOCK);
        Self { path: options.path, recorder, writer }
    }

    fn burst(&mut self, ring: u16, first: u64, last: u64) {
        let stages = [last - first, 0, 0, 0, 0, 0, 0];
        self.writer.burst(&BurstRecord {
            first,
            last,
            stages,
            packets: 1,
            ring,
            ..Default::default()
        });
    }

    fn arrive(&mut self, at: u64) {
        self.writer.milestone(at, Step::FrontEndCame);
        self.writer.milestone(at + 10, Step::RingStarted(0));
        self.writer.milestone(at + 11, Step::RingStarted(1));
    }

    fn announce(&mut self, at: u64, address: [u8; 6]) {
        self.burst(1, at - 1, at);
        self.writer.milestone(at, Step::Announced(address));
    }

    fn leave(&mut self, at: u64) {
        self.writer.milestone(at, Step::RingStopped(0));
        self.writer.milestone(at + 1, Step::RingStopped(1));
        self.writer.milestone(at + 500, Step::FrontEndLeft);
    }

    fn tamper(&self, at: usize, value: u64) {
        let file = fs::File::options().write(true).open(&self.path).unwrap();
        file.write_all_at(&value.to_ne_bytes(), 8 * at as u64).unwrap();
    }

    fn source(&self) -> (Source, PathBuf) {
        (Reader::open(&self.path).unwrap().into(), self.path.clone())
    }
}

/// Two hosts, and the time at which the first gets its guest.
fn hosts(directory: &Path) -> ([Host; 2], u64) {
    let hosts = ["old.trace", "new.trace"].map(|name| Host::new(directory, name));
    (hosts, CLOCK.now())
}

/// A guest that moves from the first host to the second.
fn moved(directory: &Path) -> ([Host; 2], u64) {
    let ([mut old, mut new], at) = hosts(directory);
    old.arrive(at);
    old.burst(0, at + 100, at + 200);
    // The new front end is there before the guest comes.
    new.writer.milestone(at + 300, Step::FrontEndCame);
    old.burst(1, at + 500, at + 600);
    old.leave(at + 700);
    new.writer.milestone(at + 800, Step::RingStarted(0));
    new.writer.milestone(at + 801, Step::RingStarted(1));
    new.announce(at + 900, ADDRESS);
    new.burst(0, at + 1000, at + 1100);
    new.burst(1, at + 1200, at + 1300);
    ([old, new], at)
}

fn moves(source: &Source) -> Vec<Migration> {
    let Source::Joined(joined) = source else { panic!("one file") };
    joined.migrations().to_vec()
}

fn migrations(hosts: &[Host]) -> Vec<Migration> {
    moves(&Source::join(hosts.iter().map(Host::source).collect()).unwrap())
}

#[test]
fn a_move_has_what_each_host_knows() {
    let directory = tempfile::tempdir().unwrap();
    let (hosts, at) = moved(directory.path());
    let expected = Migration {
        before: at + 600,
        stopped: at + 701,
        left: at + 1200,
        connected: at + 300,
        started: at + 800,
        announced: at + 900,
        // The announcement's own burst is not the guest's.
        after: at + 1100,
        sent: at + 1300,
        clocks: Clocks::Same,
        writer: 0,
    };
    assert_eq!(migrations(&hosts), [expected]);
    let [old, new] = hosts;
    assert_eq!(migrations(&[new, old]), [expected], "in any order");
}

#[test]
fn a_guest_that_comes_back_has_moved_twice_and_records_come_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let ([mut old, mut new], at) = moved(directory.path());
    new.leave(at + 1400);
    old.arrive(at + 1500);
    old.burst(0, at + 1600, at + 1700);
    let source = Source::join(vec![new.source(), old.source()]).unwrap();
    let (mut ends, mut bursts, mut moves) = (Vec::new(), 0, Vec::new());
    let lost = source.read(|record| {
        ends.push(record.last());
        match record {
            Record::Burst(_) => bursts += 1,
            Record::Migration(it) => moves.push((it.before - at, it.after - at)),
            _ => {}
        }
    });
    assert!(ends.is_sorted(), "{ends:?}");
    assert_eq!((lost, bursts), (0, 6));
    assert_eq!(moves, [(600, 1100), (1300, 1700)]);
    assert!(ends.len() <= source.records_max() + moves.len());
}

#[test]
fn another_front_end_on_the_same_host_is_no_move() {
    let directory = tempfile::tempdir().unwrap();
    let ([mut old, new], at) = moved(directory.path());
    let at = at + 5000;
    drop(new);
    old.arrive(at);
    old.burst(0, at + 100, at + 200);
    assert!(migrations(&[old]).is_empty());
}

/// Gives `host` another boot, and its clock this error.
fn reboot(host: &Host, error_us: Option<u64>) {
    host.tamper(word::BOOT, 1);
    host.tamper(word::CLOCK_ERROR, error_us.map_or(0, |error| error + 1));
    let ns = Reader::open(&host.path).unwrap().anchor_latest().monotonic_ns;
    host.tamper(word::CLOCK_ERROR_AT, ns);
}

#[test]
fn clocks_of_two_boots_are_compared_by_their_real_time_with_its_error() {
    let directory = tempfile::tempdir().unwrap();
    let ([mut old, mut new], at) = hosts(directory.path());
    let ms = CLOCK.ticks_per_second() / 1000;
    old.burst(1, at, at + 100);
    new.burst(0, at + 30 * ms, at + 30 * ms + 100);
    reboot(&old, Some(1500));
    reboot(&new, Some(700));
    // The counter of the old host runs half as fast.
    old.tamper(word::TICKS_PER_SECOND, CLOCK.ticks_per_second() / 2);
    new.tamper(word::BOOT, 2);
    let hosts = [old, new];
    let [migration] = migrations(&hosts)[..] else { panic!("one move") };
    let Clocks::Within(error) = migration.clocks else { panic!("{migration:?}") };
    assert!((2200..2300).contains(&error), "{error}");
    let joined = Source::join(hosts.iter().map(Host::source).collect()).unwrap();
    let mut totals = Vec::new();
    joined.read(|record| {
        if let Record::Burst(burst) = record {
            assert_eq!(burst.stages.iter().sum::<u64>(), burst.total());
            totals.push(burst.total());
        }
    });
    assert_eq!(totals.len(), 2);
    assert!(totals[0].abs_diff(200) <= 2 && totals[1] == 100, "{totals:?}");

    for host in &hosts {
        host.tamper(word::CLOCK_ERROR, 0);
        let [migration] = migrations(&hosts)[..] else { panic!("one move") };
        assert_eq!(migration.clocks, Clocks::Unknown, "the kernel of one host does not know");
    }
}

#[test]
fn what_cannot_be_of_one_guest_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let join = |hosts: &[Host]| Source::join(hosts.iter().map(Host::source).collect()).map(drop);

    let (mut pair, at) = moved(&directory.path().join("features"));
    pair[0].recorder.participants().set_features(1 << 32 | 1 << 26 | 1);
    pair[1].recorder.participants().set_features(1 << 32 | 1 << 30 | 1);
    assert!(join(&pair).is_ok(), "what the front end adds does not count");
    pair[1].recorder.participants().set_features(1 << 32 | 3);
    assert!(matches!(join(&pair), Err(NotOneGuest::Features(..))));
    pair[1].recorder.participants().set_features(0);

    pair[0].announce(at + 650, [2, 0, 0, 0, 0, 2]);
    let error = join(&pair).unwrap_err().to_string();
    assert!(
        error.contains("02:00:00:00:00:02 was announced in one and 02:00:00:00:00:01"),
        "{error}"
    );

    let ([mut old, new], at) = moved(&directory.path().join("time"));
    old.burst(0, at + 1200, at + 1250);
    assert!(matches!(join(&[old, new]), Err(NotOneGuest::SameTime(..))));

    let (empty, _) = hosts(&directory.path().join("empty"));
    assert!(matches!(join(&empty), Err(NotOneGuest::Empty(_))));

    let ([old, _new], _) = moved(&directory.path().join("twice"));
    let twice = Source::join(vec![old.source(), old.source()]);
    assert!(matches!(twice, Err(NotOneGuest::Twice(_))));
}
