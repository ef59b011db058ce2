//! The boot of the host, for files that are worth nothing after it.

use std::fs;

/// Where the kernel has it.
const PATH: &str = "/proc/sys/kernel/random/boot_id";

/// The identity of the host's boot; `None` if it cannot be read.
#[must_use]
pub fn boot_id() -> Option<[u64; 2]> {
    let text = fs::read_to_string(PATH).ok()?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let number = u128::from_str_radix(&digits, 16).ok()?;
    Some([(number >> 64) as u64, (number & u128::from(u64::MAX)) as u64])
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_is_the_same_as_long_as_the_host_runs() {
        let boot = super::boot_id();
        assert!(boot.is_some_and(|boot| boot != [0, 0]));
        assert_eq!(boot, super::boot_id());
    }
}
