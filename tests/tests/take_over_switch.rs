//! A new daemon takes over a switch with all its guests, under load: no frame is lost, none goes to a guest that it is not for,
//! and the uplink stays as it is.
//!
//! `RINGSCOPE_TAKE_OVERS` is the number of take-overs.

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use frontend::{Guest, GuestOptions};
use lab::outside::Outside;
use ringscope_tests::daemon::Daemon;
use ringscope_tests::lan::{Lan, frame, station};
use ringscope_tests::pings::Pinger;
use ringscope_tests::take_over::{expect_short, gap, message, read, take_overs};

const SOON: Duration = Duration::from_secs(5);
/// Most frames that are on their way: fewer than a ring has.
const ON_THE_WAY_MAX: usize = 200;

/// Numbered frames from one guest to the next, which sends nothing: only what the switch has learned says where it is.
#[derive(Default)]
struct Stream {
    sent: usize,
    came: usize,
}

impl Stream {
    const FROM: usize = 0;
    const TO: usize = 1;

    fn numbered(number: usize) -> Vec<u8> {
        frame(station(Self::TO), station(Self::FROM), number, 60 + number % 1400)
    }

    fn turn(&mut self, guests: &mut [Guest]) {
        let from = guests[Self::FROM].pair(0);
        while self.sent - self.came < ON_THE_WAY_MAX
            && from.queue(&Self::numbered(self.sent)).unwrap()
        {
            self.sent += 1;
        }
        from.flush().unwrap();
        self.receive(guests);
    }

    fn receive(&mut self, guests: &mut [Guest]) {
        while let Some(came) = guests[Self::TO].pair(0).receive().unwrap() {
            assert!(came.bytes == Self::numbered(self.came), "another frame than {}", self.came);
            self.came += 1;
        }
    }

    /// Sends all the time while `what` goes on, and some time more.
    fn during<T: Send>(&mut self, guests: &mut [Guest], what: impl FnOnce() -> T + Send) -> T {
        let result = std::thread::scope(|scope| {
            let other = scope.spawn(what);
            while !other.is_finished() {
                self.turn(guests);
            }
            other.join().unwrap()
        });
        let until = Instant::now() + Duration::from_millis(20);
        while Instant::now() < until {
            self.turn(guests);
        }
        result
    }

    /// Waits for the frames that are on their way.
    fn settle(&mut self, guests: &mut [Guest]) {
        let until = Instant::now() + SOON;
        while self.came < self.sent {
            let lost = self.sent - self.came;
            assert!(Instant::now() < until, "{lost} of {} frames are lost", self.sent);
            self.receive(guests);
        }
    }
}

/// Three guests: the third one gets what goes to everyone.
fn lan(keys: &str) -> Lan {
    let options = GuestOptions::default();
    let mut lan = Lan::new(&[options.clone(), options.clone().packed(true), options], keys);
    lan.introduce();
    lan
}

#[test]
fn no_frame_between_guests_is_lost_and_none_goes_to_others() {
    let mut lan = lan("");
    let config = lan.directory().join("config.toml");
    let arguments = ["--config", config.to_str().unwrap()];
    let (mut stream, mut gaps) = (Stream::default(), Vec::new());
    for _ in 0..take_overs(5) {
        let Lan { guests, daemon, .. } = &mut lan;
        let next = stream.during(guests, || daemon.successor(&arguments).unwrap());
        assert_eq!(daemon.wait(SOON).unwrap().code(), Some(0), "{}", daemon.log());
        gaps.push(gap(&next.log()));
        *daemon = next;
    }
    stream.settle(&mut lan.guests);
    assert!(stream.sent > 1000 * gaps.len(), "{} frames", stream.sent);
    expect_short("switch", gaps);
    lan.expect_nothing(2);
    lan.introduce();
}

#[test]
fn a_switch_goes_on_if_the_new_daemon_fails() {
    let mut lan = lan("");
    let door = lan.directory().join("vm0.take-over");
    let guests: Vec<_> = (0..3)
        .map(|n| {
            let socket = lan.directory().join(format!("vm{n}.sock"));
            format!(
                "{{\"name\":\"vm{n}\",\"datapath\":\"switch:lan\",\"queue_pairs\":1,\"endpoint\":\"--socket-path {}\"}}",
                socket.display()
            )
        })
        .collect();
    let hello = format!("{{\"hello\":{{\"program\":\"test\",\"guests\":[{}]}}}}", guests.join(","));
    let mut stream = Stream::default();
    for _ in 0..3 {
        stream.during(&mut lan.guests, || {
            let mut other = UnixStream::connect(&door).unwrap();
            other.write_all(&message(2, &hello)).unwrap();
            assert!(read(&mut other).contains("estate"));
            other.write_all(&message(2, "\"ready\"")).unwrap();
            assert!(read(&mut other).contains("start"));
            std::thread::sleep(Duration::from_millis(5));
        });
        lan.daemon.expect_log("it ended before it served the guests");
        stream.settle(&mut lan.guests);
    }
    assert!(stream.sent > 1000, "{} frames", stream.sent);
    lan.expect_nothing(2);
    lan.introduce();
}

/// Pings through the uplink all the time while daemons take over. Each must be answered, in order.
fn pings_pass(uplink: &str) {
    let options = GuestOptions::default();
    let datapath = format!("switch:lan,uplink={uplink}");
    let mut lan = Lan::with_datapath(&datapath, &[options.clone(), options.packed(true)], "");
    let config = lan.directory().join("config.toml");
    let arguments = ["--config", config.to_str().unwrap()];
    // Of the second guest: the uplink is handed over with the first.
    let mut pinger = Pinger::new(lan.pair(1), Pinger::MAC);
    let mut gaps = Vec::new();
    for _ in 0..take_overs(3) {
        let Lan { guests, daemon, .. } = &mut lan;
        let next = std::thread::scope(|scope| {
            let next = scope.spawn(|| daemon.successor(&arguments).unwrap());
            while !next.is_finished() {
                pinger.ping_burst(guests[1].pair(0), 20);
            }
            next.join().unwrap()
        });
        (0..10).for_each(|_| pinger.ping_burst(guests[1].pair(0), 20));
        assert_eq!(daemon.wait(SOON).unwrap().code(), Some(0), "{}", daemon.log());
        gaps.push(gap(&next.log()));
        *daemon = next;
    }
    expect_short(uplink, gaps);
}

/// Frames that the host outside has sent.
fn sent(outside: &Outside) -> u64 {
    let text = outside.exec("cat /sys/class/net/eth0/statistics/tx_packets").unwrap();
    text.trim().parse().unwrap()
}

/// No guest is there, so the daemon before lets go of the uplink only at its end.
#[test]
fn the_first_guest_may_come_after_it() {
    let directory = tempfile::tempdir().unwrap();
    let outside = Outside::on_wire("takeover", 1).unwrap();
    let datapath = format!("switch:lan,uplink=af-xdp:ifname={}", outside.wire());
    let arguments = ["--datapath", &datapath];
    let mut daemon = Daemon::start(directory.path(), "vm", &arguments).unwrap();
    for _ in 0..take_overs(3) {
        // Frames come all the time.
        let flood = "ping -q -f -l 20000 -w 1 -b 10.77.0.255 >/dev/null 2>&1 || true";
        let before = sent(&outside);
        let next = std::thread::scope(|scope| {
            let flood = scope.spawn(|| outside.exec(flood).unwrap());
            let next = daemon.successor(&arguments).unwrap();
            flood.join().unwrap();
            next
        });
        assert!(sent(&outside) > before + 5000, "a flood");
        assert_eq!(daemon.wait(SOON).unwrap().code(), Some(0), "{}", daemon.log());
        daemon = next;
    }
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    let mut pinger = Pinger::new(guest.pair(0), Pinger::MAC);
    (0..10).for_each(|_| pinger.ping_burst(guest.pair(0), 20));
}

#[test]
fn its_uplink_stays_as_it_is() {
    let mut outside = Outside::new("takeover").unwrap();
    for engine in ["", ",engine=uring"] {
        let tap = outside.add_tap(1).unwrap();
        pings_pass(&format!("tap:ifname={tap}{engine}"));
    }
    let outside = Outside::on_wire("takeover", 1).unwrap();
    pings_pass(&format!("af-xdp:ifname={}", outside.wire()));
}
