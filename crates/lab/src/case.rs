//! A row of the lab: a variant, as it is or with a change.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::variant::{Variant, VariantError, has_option};

/// Parts a change from the variant in a case's name. No variant's name has it.
const WITH: char = '+';

/// How a case differs from its variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The XDP program prints a message for each frame, with `bpf_printk`, and a process reads the messages.
    Printk,
    /// ringscoped records nothing.
    Untraced,
    /// Nothing: the same case a second time, to be compared with itself.
    Again,
}

impl Change {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Printk, Self::Untraced, Self::Again];

    /// Its name in the name of a case.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Printk => "printk",
            Self::Untraced => "untraced",
            Self::Again => "again",
        }
    }

    /// The variant's option that makes it, and the option's value.
    const fn option(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Printk => Some(("printk", "read")),
            Self::Untraced => Some(("trace", "off")),
            Self::Again => None,
        }
    }

    const fn title(self) -> &'static str {
        match self {
            Self::Printk => "with bpf_printk in the XDP program, and a reader of the messages",
            Self::Untraced => "with tracing off",
            Self::Again => "a second time",
        }
    }

    /// Whether a variant has what is changed.
    ///
    /// # Errors
    /// If the variant's script cannot be asked.
    pub fn suits(self, variant: &str) -> Result<bool, VariantError> {
        self.option().map_or(Ok(true), |(option, _)| has_option(variant, option))
    }
}

/// A row: what is built, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Case {
    name: String,
    title: String,
    #[serde(default)]
    options: BTreeMap<String, String>,
}

/// A name that is none of a case.
#[derive(Debug, thiserror::Error)]
pub enum CaseError {
    /// There is no such variant.
    #[error("expected names of `ringscope lab list`, found {found}; there are {known}")]
    Variant {
        /// The name.
        found: String,
        /// The variants.
        known: String,
    },
    /// There is no such change.
    #[error("expected one of {known} after the + in {0}", known = Change::ALL.map(Change::name).join(", "))]
    Change(String),
    /// The variant has nothing to be changed in this way.
    #[error(
        "{found}: the variant {variant} has no option `{option}`, which `qemu-scripts/variant help {variant}` would list",
        option = .change.option().map_or("", |it| it.0)
    )]
    Unsuited {
        /// The name.
        found: String,
        /// The variant.
        variant: String,
        /// The change.
        change: Change,
    },
    /// The scripts cannot be asked.
    #[error(transparent)]
    Script(#[from] VariantError),
}

impl Case {
    /// The variant as it is.
    #[must_use]
    pub fn of(variant: &Variant) -> Self {
        let Variant { name, title } = variant.clone();
        Self { name, title, options: BTreeMap::new() }
    }

    /// The case of this name, as in `tap-bridge` or `tap-xdp+printk`.
    ///
    /// # Errors
    /// If `all` has no such variant, or the variant cannot be changed in this way.
    pub fn parse(name: &str, all: &[Variant]) -> Result<Self, CaseError> {
        let variant = all.iter().find(|it| it.name == variant_of(name));
        let variant = variant.ok_or_else(|| CaseError::Variant {
            found: name.into(),
            known: all.iter().map(|it| it.name.as_str()).collect::<Vec<_>>().join(", "),
        })?;
        let mut case = Self::of(variant);
        for word in name.split(WITH).skip(1) {
            let change = Change::ALL.into_iter().find(|it| it.name() == word);
            let change = change.ok_or_else(|| CaseError::Change(name.into()))?;
            if !change.suits(&variant.name)? {
                let variant = variant.name.clone();
                return Err(CaseError::Unsuited { found: name.into(), variant, change });
            }
            case = case.with(change);
        }
        Ok(case)
    }

    /// The case with one more change.
    #[must_use]
    pub fn with(mut self, change: Change) -> Self {
        self.name = format!("{}{WITH}{}", self.name, change.name());
        self.title = format!("{}, {}", self.title, change.title());
        let option = change.option().map(|(name, value)| (name.into(), value.into()));
        self.options.extend(option);
        self
    }

    /// Its name in tables, and that of its directory: the variant's, and the changes.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it is, in a few words.
    #[must_use]
    pub fn title(&self) -> &str {
        &self.title
    }

    /// The variant's name.
    #[must_use]
    pub fn variant(&self) -> &str {
        variant_of(&self.name)
    }

    /// Whether it is a variant with a change.
    #[must_use]
    pub fn is_changed(&self) -> bool {
        self.name != self.variant()
    }

    /// The variant's options that make the changes.
    #[must_use]
    pub const fn options(&self) -> &BTreeMap<String, String> {
        &self.options
    }
}

/// The variant in a case's name.
#[must_use]
pub fn variant_of(case: &str) -> &str {
    case.split_once(WITH).map_or(case, |(variant, _)| variant)
}

/// Whether a case's name has this change.
#[must_use]
pub fn has(case: &str, change: Change) -> bool {
    case.split(WITH).skip(1).any(|it| it == change.name())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::variant::all;

    #[test]
    fn a_case_is_its_variant_with_changes() {
        let all = all().unwrap();
        let plain = Case::parse("tap-xdp", &all).unwrap();
        assert_eq!((plain.name(), plain.variant()), ("tap-xdp", "tap-xdp"));
        assert!(plain.options().is_empty());
        let both = Case::parse("tap-xdp+printk+untraced", &all).unwrap();
        assert_eq!((both.name(), both.variant()), ("tap-xdp+printk+untraced", "tap-xdp"));
        let options = both.options().iter().map(|(name, value)| format!("{name}={value}"));
        assert_eq!(options.collect::<Vec<_>>(), ["printk=read", "trace=off"]);
        assert!(has(both.name(), Change::Untraced) && !has(plain.name(), Change::Untraced));
        assert!(both.title().starts_with(plain.title()), "{}", both.title());
        assert_eq!(plain.with(Change::Again).name(), "tap-xdp+again");
    }

    #[test]
    fn what_cannot_be_built_is_refused() {
        let all = all().unwrap();
        for (name, said) in [
            ("tap-brigde", "there are host-host, "),
            ("tap-brigde+printk", "found tap-brigde+printk"),
            ("tap-bridge+printk", "tap-bridge has no option `printk`"),
            ("host-host+untraced", "host-host has no option `trace`"),
            ("tap-xdp+loud", "one of printk, untraced, again"),
            ("tap-xdp+", "one of printk"),
        ] {
            let error = Case::parse(name, &all).unwrap_err().to_string();
            assert!(error.contains(said), "{name}: {error}");
        }
    }
}
