//! `--datapath`: where frames go and come from, as text `KIND[:KEY=VALUE,...]`; and `--fault`.

use std::fmt;
use std::os::fd::RawFd;
use std::str::FromStr;

use datapath::Planted;
use datapath::af_xdp::{Choice, Gro, Options, UmemOwner, XdpMode};
use datapath::macvtap::Over;
use virtio_net::FRAME_LEN_MAX;
use worker::{Crash, Delay};

/// The kinds, for messages after "expected".
const FORMS: &str = "tap:ifname=NAME, macvtap:ifname=NAME, af-xdp:ifname=NAME, switch:NAME[,uplink=SPEC], reflect or \
                     null[:rx=BYTES]";

/// `--datapath`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DatapathSpec {
    /// A tap.
    Tap {
        /// The interface.
        port: Port,
        /// Frames from the guest enter the kernel by NAPI.
        napi: bool,
        /// The system calls for frames.
        engine: Engine,
        /// Whether frames of one flow from the guest are joined.
        gro: Gro,
    },
    /// A macvtap.
    Macvtap {
        /// The interface.
        port: Port,
        /// The interface below, if the macvtap is to be made.
        over: Option<Over>,
        /// Whether frames of one flow from the guest are joined.
        gro: Gro,
    },
    /// AF_XDP sockets on the queues of an interface.
    AfXdp {
        /// Its name.
        ifname: String,
        /// How the sockets are set up.
        options: Options,
    },
    /// A switch, with other guests of this daemon.
    Switch {
        /// Its name.
        name: String,
        /// The datapath that connects it to other networks.
        uplink: Option<Box<DatapathSpec>>,
    },
    /// Back to the guest.
    Reflect,
    /// To and from nowhere.
    Null {
        /// Length of the frames that are generated, bytes; 0 for none.
        receive: usize,
    },
}

/// An interface, or an open descriptor of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Port {
    /// By its name.
    Name(String),
    /// Handed over under this number.
    Descriptor(RawFd),
}

impl Port {
    /// The interface's name, unless a descriptor was handed over.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Name(name) => Some(name),
            Self::Descriptor(_) => None,
        }
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(f, "ifname={name}"),
            Self::Descriptor(fd) => write!(f, "fd={fd}"),
        }
    }
}

/// The system calls by which frames go to a tap and come from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// `readv` and `writev`, one for each frame.
    Readv,
    /// io_uring, one for each burst.
    Uring,
}

impl DatapathSpec {
    /// The descriptor, if it was handed over. A switch has none, but its uplink may have one.
    pub const fn descriptor(&self) -> Option<RawFd> {
        match self {
            Self::Tap { port: Port::Descriptor(fd), .. }
            | Self::Macvtap { port: Port::Descriptor(fd), .. } => Some(*fd),
            _ => None,
        }
    }
}

impl FromStr for DatapathSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (kind, rest) = match text.split_once(':') {
            Some((kind, rest)) => (kind, Some(rest)),
            None => (text, None),
        };
        if kind == "switch" {
            return switch(text, rest.unwrap_or_default());
        }
        let mut fields = Fields::new(text, rest)?;
        let spec = match kind {
            "tap" => tap(&mut fields)?,
            "macvtap" => macvtap(&mut fields)?,
            "af-xdp" => {
                Self::AfXdp { ifname: fields.ifname()?, options: af_xdp_options(&mut fields)? }
            }
            "reflect" => Self::Reflect,
            "null" => Self::Null { receive: receive(&mut fields)? },
            _ => return Err(format!("expected {FORMS}, found '{text}'")),
        };
        fields.end()?;
        Ok(spec)
    }
}

fn tap(fields: &mut Fields<'_>) -> Result<DatapathSpec, String> {
    let port = fields.port()?;
    let napi = match fields.take("napi") {
        None | Some("off") => false,
        Some("on") => true,
        Some(other) => return Err(format!("expected napi=on or off, found '{other}'")),
    };
    if napi && matches!(port, Port::Descriptor(_)) {
        return Err("napi=on is for a tap that the daemon opens; leave it out with fd=".into());
    }
    let engine = match fields.take("engine") {
        None | Some("readv") => Engine::Readv,
        Some("uring") => Engine::Uring,
        Some(other) => return Err(format!("expected engine=readv or uring, found '{other}'")),
    };
    Ok(DatapathSpec::Tap { port, napi, engine, gro: gro(fields)? })
}

fn gro(fields: &mut Fields<'_>) -> Result<Gro, String> {
    fields.one_of("gro", &[Gro::On, Gro::Off])
}

fn macvtap(fields: &mut Fields<'_>) -> Result<DatapathSpec, String> {
    let port = fields.port()?;
    let lower = fields.take("over").map(str::to_owned);
    let mode = fields.take("mode").map(str::parse).transpose()?;
    let over = match (lower, mode) {
        (Some(_), _) if matches!(port, Port::Descriptor(_)) => {
            return Err(
                "over= is for a macvtap that the daemon makes; leave it out with fd=".into()
            );
        }
        (Some(lower), mode) => Some(Over { lower, mode: mode.unwrap_or_default() }),
        (None, Some(_)) => {
            return Err("mode= is for a macvtap that the daemon makes: over=NAME is missing".into());
        }
        (None, None) => None,
    };
    Ok(DatapathSpec::Macvtap { port, over, gro: gro(fields)? })
}

/// `NAME[,uplink=SPEC]`. The uplink comes last, because it contains commas.
fn switch(text: &str, rest: &str) -> Result<DatapathSpec, String> {
    let (name, uplink) = match rest.split_once(',') {
        Some((name, uplink)) => (name, Some(uplink)),
        None => (rest, None),
    };
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || !name.chars().all(fits) {
        return Err(format!("expected switch:NAME[,uplink=SPEC], found '{text}'"));
    }
    let uplink = uplink.map(|uplink| {
        let uplink = uplink.strip_prefix("uplink=").ok_or_else(|| {
            format!("expected uplink=SPEC after the switch's name, found '{uplink}' in '{text}'")
        })?;
        match uplink.parse()? {
            DatapathSpec::Switch { .. } | DatapathSpec::Reflect => {
                Err(format!("expected a tap, macvtap, AF_XDP or null as uplink, found '{uplink}'"))
            }
            DatapathSpec::AfXdp { options, .. } if options.umem == UmemOwner::Guest => {
                Err(format!("expected an uplink without umem=guest, since it serves several guests, found '{uplink}'"))
            }
            spec => Ok(Box::new(spec)),
        }
    });
    Ok(DatapathSpec::Switch { name: name.to_owned(), uplink: uplink.transpose()? })
}

fn af_xdp_options(fields: &mut Fields<'_>) -> Result<Options, String> {
    const MODES: [XdpMode; 3] = [XdpMode::Auto, XdpMode::Native, XdpMode::Generic];
    const CHOICES: [Choice; 3] = [Choice::Auto, Choice::On, Choice::Off];
    // The former name of the key, accepted until version 1.0.
    fields.rename("merge", "gro")?;
    Ok(Options {
        mode: fields.one_of("mode", &MODES)?,
        zero_copy: fields.one_of("zerocopy", &CHOICES)?,
        need_wakeup: fields.one_of("need-wakeup", &CHOICES)?,
        busy_poll: fields.one_of("busy-poll", &CHOICES)?,
        umem: fields.one_of("umem", &[UmemOwner::Host, UmemOwner::Guest])?,
        gro: gro(fields)?,
        stamps: true,
    })
}

fn receive(fields: &mut Fields<'_>) -> Result<usize, String> {
    let Some(bytes) = fields.take("rx") else { return Ok(0) };
    let range = datapath::null::FRAME_LEN_MIN..=FRAME_LEN_MAX;
    bytes.parse().ok().filter(|bytes| range.contains(bytes)).ok_or_else(|| {
        let (least, most) = (range.start(), range.end());
        format!("expected null:rx=BYTES from {least} to {most}, found '{}'", fields.text)
    })
}

impl fmt::Display for DatapathSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tap { port, napi, engine, gro } => {
                let napi = if *napi { ",napi=on" } else { "" };
                let engine = if *engine == Engine::Uring { ",engine=uring" } else { "" };
                write!(f, "tap:{port}{napi}{engine}")?;
                write_unless_default(f, "gro", gro)
            }
            Self::Macvtap { port, over, gro } => {
                write!(f, "macvtap:{port}")?;
                if let Some(Over { lower, mode }) = over {
                    write!(f, ",over={lower},mode={mode}")?;
                }
                write_unless_default(f, "gro", gro)
            }
            Self::AfXdp { ifname, options } => {
                write!(f, "af-xdp:ifname={ifname}")?;
                let Options { mode, zero_copy, need_wakeup, busy_poll, umem, gro, .. } = options;
                write_unless_default(f, "mode", mode)?;
                write_unless_default(f, "zerocopy", zero_copy)?;
                write_unless_default(f, "need-wakeup", need_wakeup)?;
                write_unless_default(f, "busy-poll", busy_poll)?;
                write_unless_default(f, "umem", umem)?;
                write_unless_default(f, "gro", gro)
            }
            Self::Switch { name, uplink: None } => write!(f, "switch:{name}"),
            Self::Switch { name, uplink: Some(uplink) } => {
                write!(f, "switch:{name},uplink={uplink}")
            }
            Self::Reflect => write!(f, "reflect"),
            Self::Null { receive: 0 } => write!(f, "null"),
            Self::Null { receive } => write!(f, "null:rx={receive}"),
        }
    }
}

fn write_unless_default<T: fmt::Display + Default + PartialEq>(
    f: &mut fmt::Formatter<'_>,
    key: &str,
    value: &T,
) -> fmt::Result {
    if *value == T::default() { Ok(()) } else { write!(f, ",{key}={value}") }
}

/// `--fault`: a fault to plant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultSpec {
    /// A delay in a stage.
    Delay(Delay),
    /// A panic of the worker.
    Crash(Crash),
    /// Lost frames, or errors of the datapath.
    Wire(Planted),
}

impl FromStr for FaultSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if Planted::is_meant_by(text) {
            text.parse().map(Self::Wire)
        } else if text.starts_with("delay:") {
            text.parse().map(Self::Delay)
        } else if text.starts_with("panic:") {
            text.parse().map(Self::Crash)
        } else {
            Err(format!(
                "expected delay:STAGE=USEC, drop=P, error:ERRNO or panic:tx|rx, found '{text}'"
            ))
        }
    }
}

/// The part after the colon: keys with their values. Each is taken once.
struct Fields<'t> {
    /// The whole text, for messages.
    text: &'t str,
    pairs: Vec<(&'t str, &'t str)>,
    /// The keys that were asked for.
    known: Vec<&'static str>,
}

impl<'t> Fields<'t> {
    fn new(text: &'t str, rest: Option<&'t str>) -> Result<Self, String> {
        let mut pairs = Vec::new();
        for part in rest.into_iter().flat_map(|rest| rest.split(',')) {
            let pair = part.split_once('=').filter(|(key, value)| {
                !key.is_empty() && !value.is_empty() && pairs.iter().all(|(known, _)| known != key)
            });
            pairs.push(pair.ok_or_else(|| {
                format!("expected KEY=VALUE, each key once, found '{part}' in '{text}'")
            })?);
        }
        Ok(Self { text, pairs, known: Vec::new() })
    }

    /// The value of `key`, if it is there.
    fn take(&mut self, key: &'static str) -> Option<&'t str> {
        self.known.push(key);
        let at = self.pairs.iter().position(|(known, _)| *known == key)?;
        Some(self.pairs.remove(at).1)
    }

    /// Reads the key `former` as `key`.
    fn rename(&mut self, former: &str, key: &'static str) -> Result<(), String> {
        let has_key = self.pairs.iter().any(|(known, _)| *known == key);
        match self.pairs.iter_mut().find(|(known, _)| *known == former) {
            Some(_) if has_key => Err(format!(
                "{key} and {former} are one key; expected only {key}, found '{}'",
                self.text
            )),
            Some((known, _)) => {
                *known = key;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// The interface's name, or the descriptor.
    fn port(&mut self) -> Result<Port, String> {
        let found = self.text;
        match (self.take("ifname"), self.take("fd")) {
            (Some(name), None) => Ok(Port::Name(name.into())),
            (None, Some(fd)) => {
                let fd = fd.parse().ok().filter(|fd| *fd >= 3);
                fd.map(Port::Descriptor)
                    .ok_or_else(|| format!("expected fd=N from 3 on, found '{found}'"))
            }
            _ => Err(format!("expected ifname=NAME or fd=N, found '{found}'")),
        }
    }

    /// The interface's name.
    fn ifname(&mut self) -> Result<String, String> {
        let name = self.take("ifname").map(str::to_owned);
        name.ok_or_else(|| format!("expected ifname=NAME, found '{}'", self.text))
    }

    /// The one of `values` that `key` names as it is displayed; the default, if `key` is not there.
    fn one_of<T: Copy + Default + fmt::Display>(
        &mut self,
        key: &'static str,
        values: &[T],
    ) -> Result<T, String> {
        let Some(text) = self.take(key) else { return Ok(T::default()) };
        values.iter().copied().find(|value| value.to_string() == text).ok_or_else(|| {
            let values: Vec<_> = values.iter().map(T::to_string).collect();
            format!("expected {key}={}, found '{}'", values.join("|"), self.text)
        })
    }

    /// Whether every key was taken.
    fn end(&self) -> Result<(), String> {
        match (self.pairs.first(), self.known.as_slice()) {
            (None, _) => Ok(()),
            (Some((key, _)), []) => {
                Err(format!("expected nothing after the kind, found '{key}' in '{}'", self.text))
            }
            (Some((key, _)), known) => {
                let known = known.join(", ");
                Err(format!("expected the keys {known}, found '{key}' in '{}'", self.text))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datapaths_are_read_as_they_are_written() {
        for text in [
            "tap:ifname=tap0",
            "tap:ifname=tap0,napi=on,engine=uring",
            "tap:fd=5",
            "tap:ifname=tap0,engine=uring,gro=off",
            "macvtap:ifname=mv0",
            "macvtap:ifname=mv0,over=eth0,mode=vepa,gro=off",
            "macvtap:ifname=mv0,over=eth0,mode=vepa",
            "macvtap:fd=3",
            "af-xdp:ifname=eth0",
            "af-xdp:ifname=eth0,mode=generic,zerocopy=off,need-wakeup=on,busy-poll=on,umem=guest",
            "af-xdp:ifname=eth0,gro=off",
            "switch:lan",
            "switch:lan,uplink=af-xdp:ifname=eth0,mode=native",
            "switch:lan,uplink=macvtap:ifname=mv0,over=eth0,mode=passthru",
            "switch:lan,uplink=tap:fd=5,engine=uring",
            "reflect",
            "null",
            "null:rx=64",
        ] {
            assert_eq!(text.parse::<DatapathSpec>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn the_former_name_of_gro_is_accepted() {
        let spec = "af-xdp:ifname=eth0,merge=off".parse::<DatapathSpec>().unwrap();
        assert_eq!(spec.to_string(), "af-xdp:ifname=eth0,gro=off");
    }

    #[test]
    fn what_is_no_datapath_says_what_would_be_one() {
        for (wrong, expected) in [
            ("", FORMS),
            ("wire", FORMS),
            ("tap", "ifname=NAME"),
            ("tap:", "KEY=VALUE"),
            ("tap:ifname=", "KEY=VALUE"),
            ("tap:ifname=a,ifname=b", "each key once"),
            ("tap:ifname=a,name=x", "the keys ifname, fd, napi, engine, gro"),
            ("tap:ifname=a,fd=5", "ifname=NAME or fd=N"),
            ("tap:fd=2", "from 3 on"),
            ("tap:ifname=a,napi=yes", "napi=on or off"),
            ("tap:fd=5,napi=on", "that the daemon opens"),
            ("tap:ifname=a,engine=fast", "engine=readv or uring"),
            ("macvtap", "ifname=NAME or fd=N"),
            ("macvtap:ifname=a,mode=vepa", "over=NAME is missing"),
            ("macvtap:ifname=a,over=b,mode=router", "expected mode=bridge"),
            ("macvtap:fd=5,over=b", "leave it out with fd="),
            ("af-xdp:ifname=a,mode=fast", "mode=auto|native|generic"),
            (
                "af-xdp:ifname=a,copy=on",
                "the keys ifname, mode, zerocopy, need-wakeup, busy-poll, umem, gro",
            ),
            ("af-xdp:ifname=a,gro=auto", "gro=on|off"),
            ("af-xdp:ifname=a,merge=auto", "gro=on|off"),
            ("af-xdp:ifname=a,merge=off,gro=off", "gro and merge"),
            ("switch", "switch:NAME"),
            ("switch:", "switch:NAME"),
            ("switch:a/b", "switch:NAME"),
            ("switch:lan,x=y", "uplink=SPEC"),
            ("switch:lan,uplink=tap", "ifname=NAME"),
            ("switch:lan,uplink=switch:wan", "as uplink"),
            ("switch:lan,uplink=af-xdp:ifname=a,umem=guest", "without umem=guest"),
            ("reflect:x=y", "nothing after the kind"),
            ("null:rx=1", "from 14 to"),
        ] {
            let error = wrong.parse::<DatapathSpec>().unwrap_err();
            assert!(error.contains(expected), "{wrong}: {error}");
        }
    }
}
