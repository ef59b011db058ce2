//! The speed of the interface that a guest's frames go through.

use std::fs::read_to_string;

use virtio_net::LinkSpeed;

use crate::spec::{DatapathSpec, Port};

/// The speed of the interface of `datapath`. Unknown without an interface, with one that was handed over, and for a tap:
/// the kernel says 10 Mbit/s of every tap.
pub fn of(datapath: &DatapathSpec) -> LinkSpeed {
    match datapath {
        DatapathSpec::Macvtap { port: Port::Name(name), .. }
        | DatapathSpec::AfXdp { ifname: name, .. } => {
            let file = |what| read_to_string(format!("/sys/class/net/{name}/{what}")).ok();
            read(file("speed").as_deref(), file("duplex").as_deref())
        }
        _ => LinkSpeed::UNKNOWN,
    }
}

/// From the contents of the interface's files in `/sys/class/net` (Documentation/ABI/testing/sysfs-class-net). They say -1
/// and `unknown`, or cannot be read, if the driver does not know.
fn read(speed: Option<&str>, duplex: Option<&str>) -> LinkSpeed {
    let speed = speed.and_then(|text| text.trim().parse().ok()).filter(|&mbit| mbit > 0);
    match (speed, duplex.map(str::trim)) {
        (Some(mbit), Some(mode @ ("full" | "half"))) => LinkSpeed::new(mbit, mode == "full"),
        _ => LinkSpeed::UNKNOWN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_driver_does_not_know_is_unknown() {
        assert_eq!(read(Some("10000\n"), Some("full\n")), LinkSpeed::new(10_000, true));
        assert_eq!(read(Some("100\n"), Some("half\n")), LinkSpeed::new(100, false));
        for unknown in [None, Some("-1\n"), Some("0\n")] {
            assert_eq!(read(unknown, Some("full\n")), LinkSpeed::UNKNOWN);
        }
        assert_eq!(read(Some("10000\n"), Some("unknown\n")), LinkSpeed::UNKNOWN);
    }
}
