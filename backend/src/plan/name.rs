//! A guest's name, which its recorder's files have.

use std::path::Path;

use super::error::PlanError;

/// Longest name: the names of a recorder's files have it and some 20 bytes more, and a file system takes 255 (`NAME_MAX`).
const NAME_BYTES_MAX: usize = 230;

/// The name that was given, or that of the socket.
pub fn name(given: Option<String>, socket: Option<&Path>) -> Result<String, PlanError> {
    let stem = || socket?.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let name = given.or_else(stem).ok_or(PlanError::NoName)?;
    if name.len() > NAME_BYTES_MAX {
        return Err(PlanError::LongName { found: name.len(), max: NAME_BYTES_MAX });
    }
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.starts_with('.') || !name.chars().all(fits) {
        return Err(PlanError::BadName(name));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_leaves_room_for_the_names_of_its_files() {
        let name = |length| name(Some("n".repeat(length)), None);
        assert_eq!(name(NAME_BYTES_MAX).unwrap().len(), NAME_BYTES_MAX);
        let error = name(300).unwrap_err();
        assert_eq!(error, PlanError::LongName { found: 300, max: NAME_BYTES_MAX });
        assert!(error.to_string().contains("at most 230 bytes, found 300"), "{error}");
    }
}
