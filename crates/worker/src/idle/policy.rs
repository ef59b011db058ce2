//! When a worker polls, and when it sleeps.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// What a worker does when it finds no work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PollPolicy {
    /// Sleep at once: the guest kicks for every first packet.
    Never,
    /// Poll for this time after the last packet, without kicks. Then sleep, and poll again around the moment that the next
    /// packet is due (`forecast`), for at most this time before and after it.
    Adaptive(Duration),
    /// Never sleep.
    Always,
}

impl PollPolicy {
    /// Polling time of `adaptive` when none is given: as long as KVM polls for a halted vCPU (`halt_poll_ns`,
    /// virt/kvm/kvm_main.c), for the same reason. A guest mostly responds within it, and a sleep would cost both sides a
    /// wake-up.
    pub const ADAPTIVE_DEFAULT: Duration = Duration::from_micros(200);
    const ADAPTIVE_MAX: Duration = Duration::from_secs(1);
}

impl Default for PollPolicy {
    fn default() -> Self {
        Self::Adaptive(Self::ADAPTIVE_DEFAULT)
    }
}

impl FromStr for PollPolicy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || format!("expected never, adaptive, adaptive:USEC or always, found '{text}'");
        match text.split_once(':') {
            None if text == "never" => Ok(Self::Never),
            None if text == "always" => Ok(Self::Always),
            None if text == "adaptive" => Ok(Self::default()),
            Some(("adaptive", number)) => {
                let time = Duration::from_micros(number.parse().map_err(|_| wrong())?);
                if time > Self::ADAPTIVE_MAX {
                    return Err(format!("expected at most 1000000 us of polling, found {number}"));
                }
                Ok(Self::Adaptive(time))
            }
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for PollPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Never => write!(f, "never"),
            Self::Adaptive(time) => write!(f, "adaptive:{}", time.as_micros()),
            Self::Always => write!(f, "always"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_read_as_they_are_written() {
        for text in ["never", "adaptive:7", "always"] {
            assert_eq!(text.parse::<PollPolicy>().unwrap().to_string(), text);
        }
        assert_eq!("adaptive".parse(), Ok(PollPolicy::default()));
        for wrong in ["", "adaptive:", "adaptive:x", "always:5", "adaptive:2000000", "sometimes"] {
            assert!(wrong.parse::<PollPolicy>().is_err(), "{wrong}");
        }
    }
}
