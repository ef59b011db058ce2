//! A fault of a wire, as text.

use std::fmt;
use std::str::FromStr;

use burst_trace::Direction;

/// The forms on the command line.
const FORMS: &str =
    "drop[:tx|rx][=P][,every=N][,seed=N] or error:[tx.|rx.]ERRNO[=P][,every=N][,seed=N]";

/// The errors that can be planted: those that the kernel returns for reads and writes of frames.
const ERRORS: [(&str, i32); 9] = [
    ("EAGAIN", libc::EAGAIN),
    ("EINVAL", libc::EINVAL),
    ("EIO", libc::EIO),
    ("EMSGSIZE", libc::EMSGSIZE),
    ("ENETDOWN", libc::ENETDOWN),
    ("ENOBUFS", libc::ENOBUFS),
    ("ENOMEM", libc::ENOMEM),
    ("ENXIO", libc::ENXIO),
    ("EPERM", libc::EPERM),
];

/// What happens to a frame that is hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hit {
    /// It is lost.
    Drop,
    /// The datapath returns this error. A sent frame meets it when its turn comes. A read gets it before it takes a frame,
    /// and no frame is lost by it.
    Error(i32),
}

/// One fault of a wire: `drop[:tx|rx][=P][,every=N][,seed=N]` or
/// `error:[tx.|rx.]ERRNO[=P][,every=N][,seed=N]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Planted {
    /// What it does.
    pub hit: Hit,
    /// Only in this direction; in both where there is none.
    pub direction: Option<Direction>,
    /// Probability, above 0 and at most 1.
    pub share: f64,
    /// Only one in this many frames.
    pub every: u32,
    /// Seed of the random numbers.
    pub seed: u64,
}

/// A share is a number.
impl Eq for Planted {}

impl Planted {
    /// Whether a text is meant to be one of these, not a delay.
    #[must_use]
    pub fn is_meant_by(text: &str) -> bool {
        let kind = text.split([':', '=', ',']).next();
        matches!(kind, Some("drop" | "error"))
    }

    /// Whether it hits frames of this direction.
    pub(super) fn concerns(&self, direction: Direction) -> bool {
        self.direction.is_none_or(|only| only == direction)
    }
}

impl FromStr for Planted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || format!("expected {FORMS}, found '{text}'");
        let (head, rest) = match text.split_once(',') {
            Some((head, rest)) => (head, Some(rest)),
            None => (text, None),
        };
        let (head, share) = match head.split_once('=') {
            Some((head, share)) => (head, share.parse().map_err(|_| wrong())?),
            None => (head, 1.0),
        };
        if !(share > 0.0 && share <= 1.0) {
            return Err(format!("expected a probability above 0 and at most 1, found '{text}'"));
        }
        let (direction, hit) = match head.split_once(':') {
            None if head == "drop" => (None, Hit::Drop),
            Some(("drop", name)) => (Some(direction(name).ok_or_else(wrong)?), Hit::Drop),
            Some(("error", name)) => {
                let (direction, name) = match name.split_once('.') {
                    Some((prefix, name)) => (Some(direction(prefix).ok_or_else(wrong)?), name),
                    None => (None, name),
                };
                (direction, Hit::Error(errno(name)?))
            }
            _ => return Err(wrong()),
        };
        let mut planted = Self { hit, direction, share, every: 1, seed: 0 };
        for part in rest.into_iter().flat_map(|rest| rest.split(',')) {
            match part.split_once('=') {
                Some(("every", number)) => {
                    let number = number.parse().ok().filter(|&every| every > 0);
                    planted.every = number.ok_or_else(wrong)?;
                }
                Some(("seed", number)) => planted.seed = number.parse().map_err(|_| wrong())?,
                _ => return Err(wrong()),
            }
        }
        Ok(planted)
    }
}

impl fmt::Display for Planted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = self.direction.map(Direction::name);
        match self.hit {
            Hit::Drop => {
                write!(f, "drop")?;
                direction.map_or(Ok(()), |name| write!(f, ":{name}"))?;
            }
            Hit::Error(errno) => {
                write!(f, "error:")?;
                direction.map_or(Ok(()), |name| write!(f, "{name}."))?;
                let known = ERRORS.iter().find(|(_, number)| *number == errno);
                write!(f, "{}", known.map_or("", |(name, _)| name))?;
            }
        }
        write!(f, "={},every={},seed={}", self.share, self.every, self.seed)
    }
}

fn direction(name: &str) -> Option<Direction> {
    [Direction::Tx, Direction::Rx].into_iter().find(|direction| direction.name() == name)
}

fn errno(name: &str) -> Result<i32, String> {
    ERRORS.iter().find(|(known, _)| *known == name).map(|(_, errno)| *errno).ok_or_else(|| {
        let names: Vec<_> = ERRORS.iter().map(|(name, _)| *name).collect();
        format!("expected one of the errors {}, found '{name}'", names.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_read_as_they_are_written() {
        for (text, written) in [
            ("drop", "drop=1,every=1,seed=0"),
            ("drop:tx=0.01", "drop:tx=0.01,every=1,seed=0"),
            ("drop=0.5,every=2,seed=7", "drop=0.5,every=2,seed=7"),
            ("error:ENOBUFS", "error:ENOBUFS=1,every=1,seed=0"),
            ("error:rx.EIO=0.25,seed=9", "error:rx.EIO=0.25,every=1,seed=9"),
        ] {
            let planted: Planted = text.parse().unwrap();
            assert_eq!(planted.to_string(), written);
            assert_eq!(written.parse(), Ok(planted));
            assert!(Planted::is_meant_by(text));
        }
        for (wrong, expected) in [
            ("drop:up=0.5", "expected drop"),
            ("drop=0", "above 0"),
            ("drop=1.5", "above 0"),
            ("drop=x", "expected drop"),
            ("drop=0.5,every=0", "expected drop"),
            ("drop=0.5,often=2", "expected drop"),
            ("error", "expected drop"),
            ("error:EWHAT", "expected one of the errors EAGAIN"),
            ("error:up.EIO", "expected drop"),
        ] {
            let error = wrong.parse::<Planted>().unwrap_err();
            assert!(error.contains(expected), "{wrong}: {error}");
        }
        assert!(!Planted::is_meant_by("delay:egress=5"));
    }
}
