//! Addresses on the command line.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};

use host_links::link::Link;

/// What an address may look like.
const FORMS: &str = "10.0.0.1, 10.0.0.1:7007, fe80::1%eth0 or [fe80::1%eth0]:7007";

/// The address of a `udp-echo`, whose port may be left out.
pub fn udp(text: &str) -> Result<SocketAddr, String> {
    parse(text, 7007)
}

/// The address of a `tcp-serve`, whose port may be left out.
pub fn tcp(text: &str) -> Result<SocketAddr, String> {
    parse(text, 7008)
}

/// The address of a `udp-count`, whose port may be left out.
pub fn flow(text: &str) -> Result<SocketAddr, String> {
    parse(text, 7011)
}

/// An IP address with an optional port, and for a link-local one its interface, by name or number (RFC 4007, section 11).
fn parse(text: &str, default_port: u16) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return with_interface(address);
    }
    let expected = || format!("expected an address such as {FORMS}");
    let (ip, port) = match text.strip_prefix('[') {
        None => (text, default_port),
        Some(rest) => match rest.split_once(']').ok_or_else(expected)? {
            (ip, "") => (ip, default_port),
            (ip, port) => {
                let port = port.strip_prefix(':').and_then(|port| port.parse().ok());
                (ip, port.ok_or_else(expected)?)
            }
        },
    };
    let Some((ip, interface)) = ip.split_once('%') else {
        let ip: IpAddr = ip.parse().map_err(|_| expected())?;
        return with_interface(SocketAddr::new(ip, port));
    };
    let ip: Ipv6Addr = ip.parse().map_err(|_| expected())?;
    Ok(SocketAddrV6::new(ip, port, 0, scope(interface)?).into())
}

/// Refuses a link-local address that does not say on which link.
fn with_interface(address: SocketAddr) -> Result<SocketAddr, String> {
    match address {
        SocketAddr::V6(v6) if v6.ip().is_unicast_link_local() && v6.scope_id() == 0 => {
            Err(format!(
                "a link-local address needs its interface: {}%eth0 for one called eth0",
                v6.ip()
            ))
        }
        _ => Ok(address),
    }
}

/// The number of the interface.
fn scope(interface: &str) -> Result<u32, String> {
    if let Ok(index) = interface.parse() {
        return Ok(index);
    }
    match Link::named(interface) {
        Ok(Some(link)) => Ok(link.index),
        Ok(None) => Err(format!(
            "expected an interface after %, found none called {interface}; see `ip link`"
        )),
        Err(error) => Err(format!("cannot look for the interface {interface}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_and_no_port_make_an_address() {
        for (text, expected) in [
            ("10.0.0.1:9", "10.0.0.1:9"),
            ("10.0.0.1", "10.0.0.1:7007"),
            ("::1", "[::1]:7007"),
            ("[::1]", "[::1]:7007"),
            ("[::1]:9", "[::1]:9"),
            // The loopback interface has the number 1 in every namespace.
            ("fe80::1%lo", "[fe80::1%1]:7007"),
            ("[fe80::1%lo]:9", "[fe80::1%1]:9"),
            ("fe80::1%3", "[fe80::1%3]:7007"),
        ] {
            assert_eq!(udp(text).unwrap().to_string(), expected, "{text}");
        }
        assert_eq!(tcp("10.0.0.1").unwrap().port(), 7008);
    }

    #[test]
    fn anything_else_is_refused_with_what_was_expected() {
        for text in [
            "",
            "host",
            "10.0.0.1:",
            "10.0.0.1:x",
            "[::1",
            "[::1]x",
            "[::1]:99999",
            "10.0.0.1%lo",
            "%lo",
        ] {
            assert!(udp(text).unwrap_err().contains("fe80::1%eth0"), "{text}");
        }
        for text in ["fe80::1", "[fe80::1]:9"] {
            assert!(udp(text).unwrap_err().contains("fe80::1%eth0"), "{text}");
        }
        assert!(udp("fe80::1%nosuch0").unwrap_err().contains("none called nosuch0"));
    }
}
