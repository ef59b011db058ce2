//! The user that the daemon runs as.
//!
//! The user is changed before anything is opened or started, so that all files of the daemon are that user's from the start. The
//! capabilities that set-up needs are kept over the change, and given up as by root.

use std::fmt;
use std::str::FromStr;

use caps::{CapSet, Capability, CapsHashSet};
use nix::unistd::{Gid, Group, Uid, User, getgrouplist, setgroups, setresgid, setresuid};

/// `--user NAME[:GROUP]`: names or numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    user: String,
    group: Option<String>,
}

/// Why the daemon cannot run as a user.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// There is no such user.
    #[error("there is no user '{0}'")]
    NoUser(String),
    /// There is no such group.
    #[error("there is no group '{0}'")]
    NoGroup(String),
    /// A number without a name has no group of its own.
    #[error("user {0} has no name, so its group must be given: --user {0}:GROUP")]
    NeedsGroup(u32),
    /// The privilege is missing.
    #[error(
        "only root, or a process with CAP_SETUID and CAP_SETGID, can change user or group: {0}"
    )]
    Refused(String),
}

impl FromStr for Account {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        if user.is_empty() || group == Some("") {
            return Err(format!("expected NAME or NAME:GROUP, found '{text}'"));
        }
        Ok(Self { user: user.into(), group: group.map(Into::into) })
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.user)?;
        self.group.iter().try_for_each(|group| write!(f, ":{group}"))
    }
}

/// The group with this name or number.
///
/// # Errors
/// When there is none.
pub fn group(name: &str) -> Result<u32, AccountError> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let found = Group::from_name(name).ok().flatten();
    found.map(|group| group.gid.as_raw()).ok_or_else(|| AccountError::NoGroup(name.into()))
}

/// The user with this name or number.
///
/// # Errors
/// When there is none.
pub fn user(name: &str) -> Result<u32, AccountError> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let found = User::from_name(name).ok().flatten();
    found.map(|user| user.uid.as_raw()).ok_or_else(|| AccountError::NoUser(name.into()))
}

impl Account {
    /// Becomes this user, with its groups. `group`: whose files it makes instead of its own group's. Keeps the capabilities, for
    /// set-up. Must be called before any thread is started.
    ///
    /// # Errors
    /// See [`AccountError`].
    pub fn become_it(&self, group: Option<u32>) -> Result<(), AccountError> {
        let uid = Uid::from_raw(user(&self.user)?);
        let known = User::from_uid(uid).ok().flatten();
        let own = match (&self.group, &known) {
            (Some(name), _) => Gid::from_raw(self::group(name)?),
            (None, Some(known)) => known.gid,
            (None, None) => return Err(AccountError::NeedsGroup(uid.as_raw())),
        };
        let name = known.and_then(|known| std::ffi::CString::new(known.name).ok());
        // A user without a name is in no other group.
        let groups = name.and_then(|name| getgrouplist(&name, own).ok());
        let gid = group.map_or(own, Gid::from_raw);
        let refused = |error: &dyn fmt::Display| AccountError::Refused(error.to_string());
        let before = caps::read(None, CapSet::Permitted).map_err(|error| refused(&error))?;
        caps::securebits::set_keepcaps(true).map_err(|error| refused(&error))?;
        setgroups(&groups.unwrap_or_else(|| vec![own])).map_err(|error| refused(&error))?;
        setresgid(gid, gid, gid).map_err(|error| refused(&error))?;
        setresuid(uid, uid, uid).map_err(|error| refused(&error))?;
        let none = [Capability::CAP_SETUID, Capability::CAP_SETGID];
        let kept: CapsHashSet = before.into_iter().filter(|it| !none.contains(it)).collect();
        caps::set(None, CapSet::Effective, &kept).map_err(|error| refused(&error))?;
        caps::set(None, CapSet::Permitted, &kept).map_err(|error| refused(&error))?;
        caps::securebits::set_keepcaps(false).map_err(|error| refused(&error))
    }
}

/// From now on this process makes its files as ones of `group`. Must be called before any thread is started.
///
/// # Errors
/// When it may not: it is neither root, nor has CAP_SETGID.
pub fn take_group(group: u32) -> Result<(), AccountError> {
    let gid = Gid::from_raw(group);
    setresgid(gid, gid, gid).map_err(|error| AccountError::Refused(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_a_user_and_perhaps_a_group() {
        let account = |text: &str| text.parse::<Account>();
        for text in ["vm", "vm:kvm", "107", "107:36"] {
            assert_eq!(account(text).unwrap().to_string(), text);
        }
        for wrong in ["", ":", ":kvm", "vm:"] {
            assert!(account(wrong).unwrap_err().starts_with("expected NAME"), "{wrong}");
        }
    }

    #[test]
    fn names_and_numbers_are_found() {
        assert_eq!((user("root").unwrap(), group("root").unwrap()), (0, 0));
        assert_eq!((user("4711").unwrap(), group("4712").unwrap()), (4711, 4712));
        let missing = "no-such-name-here";
        assert_eq!(user(missing).unwrap_err().to_string(), "there is no user 'no-such-name-here'");
        assert_eq!(
            group(missing).unwrap_err().to_string(),
            "there is no group 'no-such-name-here'"
        );
        let nameless = Account { user: "4711".into(), group: None };
        assert!(nameless.become_it(None).unwrap_err().to_string().contains("--user 4711:GROUP"));
    }
}
