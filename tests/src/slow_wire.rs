//! A wire whose far end takes its time, so that frames stay on their way.

use lab::outside::Outside;

/// A wire whose far end is done with frames at this rate, kilobits a second. `name`: unique among the tests that run.
///
/// # Panics
/// When it cannot be made.
#[must_use]
pub fn slow_wire(name: &str, kbit: u32) -> Outside {
    let outside = Outside::on_wire(name, 1).expect("a wire");
    for line in [
        "ip link add late0 type ifb",
        "ip link set late0 up",
        &format!("tc qdisc add dev late0 root tbf rate {kbit}kbit burst 2000 latency 9s"),
        "tc qdisc add dev eth0 clsact",
        "tc filter add dev eth0 ingress protocol all u32 match u32 0 0 action mirred egress redirect dev late0",
    ] {
        outside.exec(line).expect("a slow wire");
    }
    outside
}
