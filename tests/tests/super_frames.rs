//! Frames that a guest sends in one burst go to the kernel together (GRO), and a receiver that takes single frames only gets
//! them byte for byte as they were sent, in the order of each flow: the kernel segments what was joined.

use std::time::Duration;

use frontend::{Guest, GuestOptions};
use lab::outside::Outside;
use ringscope_tests::daemon::Daemon;
use ringscope_tests::eventually::{eventually, when};
use ringscope_tests::flows::{Flow, Sent, flow_of};
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(10);
/// The guest's transmit ring.
const TX: usize = 1;

/// A guest whose frames go through a tap and a bridge to another one, which takes no offloads.
struct Way {
    from: Guest,
    to: Guest,
    /// The frame that found out that the way is there. It may come several times.
    hello: Sent,
    near: Daemon,
    _far: Daemon,
    _outside: Outside,
    _directory: TempDir,
}

impl Way {
    /// With these keys of a tap, or of a macvtap on the bridge if there is `macvtap` in front of them.
    fn new(name: &str, keys: &str) -> Self {
        let mut outside = Outside::new(name).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let near = match keys.strip_prefix("macvtap") {
            Some(keys) => {
                let bridge = outside.bridge();
                format!("macvtap:ifname=rsm{},over={bridge}{keys}", std::process::id())
            }
            None => format!("tap:ifname={}{keys}", outside.add_tap(1).unwrap()),
        };
        let far = format!("tap:ifname={}", outside.add_tap(1).unwrap());
        let start = |name: &str, datapath: &str| {
            Daemon::start(directory.path(), name, &["--datapath", datapath]).unwrap()
        };
        let (near, far) = (start("near", &near), start("far", &far));
        let from = GuestOptions::default().offloads();
        let from = Guest::connect(near.socket(), from).unwrap();
        let to = Guest::connect(far.socket(), GuestOptions::default().queue_size(256)).unwrap();
        let hello = Flow::udp(0).next(&[7; 100], false);
        let (_far, _outside, _directory) = (far, outside, directory);
        let mut way = Self { from, to, hello: hello.clone(), near, _far, _outside, _directory };
        // A bridge takes no frames before it knows that its port is up.
        eventually(SOON, "the bridge", || {
            way.send(std::slice::from_ref(&hello));
            let came = way.to.pair(0).receive().unwrap();
            when(came.is_some_and(|frame| frame.bytes == hello.bytes), "nothing")
        });
        way
    }

    /// Sends these frames in one burst.
    fn send(&mut self, frames: &[Sent]) {
        let pair = self.from.pair(0);
        for Sent { header, bytes, .. } in frames {
            let frame = [&header[..], bytes].concat();
            eventually(SOON, "room in the ring", || {
                when(pair.queue_chain(&[&frame]).unwrap(), "none")
            });
        }
        pair.flush().unwrap();
    }

    /// Sends a burst, and expects it at the other end. A frame may only pass those of other flows.
    fn carries(&mut self, frames: &[Sent]) {
        self.send(frames);
        let mut left: Vec<&Sent> = frames.iter().collect();
        while !left.is_empty() {
            let came = eventually(SOON, "a frame", || {
                let came = self.to.pair(0).receive().unwrap();
                came.filter(|came| came.bytes != self.hello.bytes).ok_or(left.len())
            });
            let is_it = |sent: &&Sent| sent.comparable(&came.bytes) == sent.comparable(&sent.whole);
            let at = left.iter().position(is_it).unwrap_or_else(|| {
                let (came, wanted) = (&came.bytes, &left[0].whole);
                panic!(
                    "{} of {}: {:02x?}\ncame as {:02x?}",
                    left.len(),
                    frames.len(),
                    &wanted[..wanted.len().min(100)],
                    &came[..came.len().min(100)]
                )
            });
            let sent = left.remove(at);
            let own = flow_of(&sent.whole);
            for passed in &left[..at] {
                let other = flow_of(&passed.whole);
                assert!(
                    own.is_some() && other.is_some() && own != other,
                    "{own:02x?} {other:02x?}"
                );
            }
        }
    }

    /// The number of packets and of the frames in them since the daemon's start.
    fn joined(&self) -> (u64, u64) {
        let gro = self.near.reader().unwrap().gro(TX);
        (gro.frames, gro.segments)
    }
}

/// The kinds of flows that are joined.
fn kinds() -> Vec<Flow> {
    let both = [Flow::udp(1), Flow::tcp(2)];
    let versions = both.into_iter().flat_map(|flow| [flow.clone(), Flow { is_v6: true, ..flow }]);
    let tags = versions.flat_map(|flow| [flow.clone(), Flow { is_tagged: true, ..flow }]);
    let atomic = Flow { is_atomic: true, ..Flow::udp(3) };
    tags.chain([atomic]).collect()
}

#[test]
fn every_kind_of_flow_is_joined_and_comes_as_it_was_sent() {
    for keys in ["", ",engine=uring", ",napi=on", "macvtap"] {
        let mut way = Way::new("joined", keys);
        for mut flow in kinds() {
            for (is_partial, last) in [(false, 1000), (true, 1000), (false, 1)] {
                let before = way.joined();
                let mut burst: Vec<_> =
                    (0..39).map(|n| flow.next(&[n; 1000], is_partial)).collect();
                burst.push(flow.next(&vec![7; last], is_partial));
                way.carries(&burst);
                eventually(SOON, "the count", || {
                    let now = way.joined();
                    let joined = (now.0 - before.0, now.1 - before.1);
                    when(joined == (1, 40), format!("{joined:?} for {flow:?}{keys}"))
                });
            }
        }
        let totals = way.near.reader().unwrap().totals(TX);
        assert!(totals.packets > 40 * 27 && totals.bytes > 39 * 27 * 1000, "{totals:?}");
    }
}

#[test]
fn flows_in_turn_are_joined_each_by_itself() {
    for (keys, joins) in
        [("", true), (",napi=on", true), ("macvtap", true), (",engine=uring", false)]
    {
        let mut way = Way::new("turns", keys);
        for is_v6 in [false, true] {
            let before = way.joined();
            let of = |n| Flow { is_v6, is_atomic: true, ..Flow::udp(n) };
            let mut flows = [of(1), of(2), Flow { is_v6, ..Flow::tcp(3) }, of(4)];
            let burst: Vec<_> =
                (0..40).map(|n| flows[n % 4].next(&[n as u8; 1000], n % 8 < 4)).collect();
            way.carries(&burst);
            eventually(SOON, "the count", || {
                let now = way.joined();
                let joined = (now.0 - before.0, now.1 - before.1);
                let expected = if joins { (4, 40) } else { (0, 0) };
                when(joined == expected, format!("{joined:?}{keys}"))
            });
        }
    }
}

#[test]
fn without_gro_every_frame_goes_alone() {
    let mut way = Way::new("alone", ",gro=off");
    let mut flow = Flow::udp(1);
    let burst: Vec<_> = (0..40).map(|n| flow.next(&[n; 1000], true)).collect();
    way.carries(&burst);
    assert_eq!(way.joined(), (0, 0));
}

#[test]
fn any_burst_comes_as_it_was_sent() {
    let mut way = Way::new("any", "");
    let mut random = fastrand::Rng::with_seed(0x6772_6f21);
    let mut flows = kinds();
    for _ in 0..150 {
        let mut burst = Vec::new();
        let count = random.usize(2..64);
        while burst.len() < count {
            let flow = random.usize(..flows.len());
            let flow = &mut flows[flow];
            let len = random.usize(1..1400);
            for _ in 0..random.usize(1..20) {
                let len = if random.u8(..10) == 0 { random.usize(1..1400) } else { len };
                let frame = flow.next(&vec![random.u8(..); len], random.bool());
                burst.push(if random.u8(..12) == 0 { frame.spoilt(&mut random) } else { frame });
            }
        }
        burst.truncate(count);
        way.carries(&burst);
    }
    let (packets, frames) = way.joined();
    assert!(packets > 300 && frames > 2 * packets, "{packets} packets of {frames} frames");
}
