//! The addresses at which metrics can be served: on this host only.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// A unix socket, or a port of the loopback interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `unix:/run/ringscope/metrics.sock`.
    Unix(PathBuf),
    /// `127.0.0.1:9101` or `[::1]:9101`.
    Loopback(SocketAddr),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.starts_with('/') {
                Ok(Self::Unix(path.into()))
            } else {
                Err(format!("expected unix: and an absolute path, found '{text}'"))
            };
        }
        let address = text.parse::<SocketAddr>().ok().filter(|it| it.ip().is_loopback());
        address.map(Self::Loopback).ok_or_else(|| {
            format!(
                "expected unix:/PATH or a loopback address such as 127.0.0.1:9101, found '{text}'; metrics are for \
                 this host, have a proxy bring them further"
            )
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Loopback(address) => write!(f, "{address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_host_is_served() {
        for text in ["unix:/run/m.sock", "127.0.0.1:9101", "[::1]:9101", "127.1.2.3:80"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for text in
            ["", "unix:m.sock", "0.0.0.0:9101", "10.0.0.1:9101", "localhost:9101", "9101", "[::]:1"]
        {
            assert!(text.parse::<Address>().unwrap_err().contains("expected"), "{text}");
        }
    }
}
