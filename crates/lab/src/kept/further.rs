//! A run that was cut off, and a further one that completes it.

use std::fs;
use std::path::Path;

use super::{Kept, KeptError, Manifest};

impl Kept {
    /// The variants that a run has left over if it was cut off: neither all their figures nor a reason why not.
    #[must_use]
    pub fn unfinished(&self, manifest: &Manifest) -> Vec<String> {
        let is_done = |name: &str, (load, talker)| {
            self.measured(manifest, name, load, talker).len() == manifest.repeats
                || self.obstacle(manifest, name, load, talker).is_some()
                || manifest.talker_troubles.iter().any(|it| it.variant == name)
        };
        let left = manifest.variants.iter().filter(|it| {
            it.trouble.is_none()
                && !manifest.settings().all(|setting| is_done(it.case.name(), setting))
        });
        left.map(|it| it.case.name().to_owned()).collect()
    }

    /// Takes over what a further run of some of the variants has found out, of which `other` is the directory. That is removed.
    ///
    /// # Errors
    /// If a file cannot be moved, or the manifest cannot be written.
    pub fn absorb(&self, manifest: &mut Manifest, other: &Path) -> Result<(), KeptError> {
        let theirs = match Self::open(other) {
            Ok((_, theirs)) => theirs.variants,
            // It ended before it began.
            Err(_) => Vec::new(),
        };
        for tried in theirs {
            let name = tried.case.name();
            let (from, to) = (other.join(name), self.dir.join(name));
            if from.exists() {
                let error = |source| KeptError::Io { path: to.clone(), source };
                if to.exists() {
                    fs::remove_dir_all(&to).map_err(error)?;
                }
                fs::rename(&from, &to).map_err(error)?;
            }
            if let Some(ours) = manifest.variants.iter_mut().find(|it| it.case.name() == name) {
                ours.trouble = tried.trouble;
            }
        }
        let error = |source| KeptError::Io { path: other.into(), source };
        fs::remove_dir_all(other).map_err(error)?;
        self.write(manifest)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{PROOF, Tried};
    use super::*;
    use crate::case::Case;
    use crate::fixture::manifest;
    use crate::variant::Variant;

    #[test]
    fn a_run_that_was_cut_off_is_completed_by_another_one() {
        let tried = |name: &str, trouble: Option<&str>| {
            let case = Case::of(&Variant { name: name.into(), title: String::new() });
            Tried { case, trouble: trouble.map(Into::into) }
        };
        let measure = |kept: &Kept, manifest: &Manifest, name: &str| {
            for (load, talker) in manifest.settings() {
                let directory = kept.measurement(name, 0, load, talker);
                fs::create_dir_all(&directory).unwrap();
                fs::write(directory.join(PROOF), kept.dir().to_str().unwrap()).unwrap();
            }
        };
        let dir = tempfile::tempdir().unwrap();
        let [first, second] = ["1", "2"].map(|it| Kept::create(&dir.path().join(it)).unwrap());
        let variants = ["a", "b", "c", "d"].map(|name| tried(name, None)).to_vec();
        let mut manifest = Manifest { variants, repeats: 1, ..manifest() };
        assert_eq!(first.unfinished(&manifest), ["a", "b", "c", "d"]);
        measure(&first, &manifest, "a");
        manifest.variants[1].trouble = Some("no card".into());
        // What was begun.
        fs::create_dir_all(first.build("c", 0)).unwrap();
        assert_eq!(first.unfinished(&manifest), ["c", "d"]);

        let variants = vec![tried("c", None), tried("d", Some("no driver"))];
        let theirs = Manifest { variants, ..manifest.clone() };
        measure(&second, &theirs, "c");
        second.write(&theirs).unwrap();
        first.absorb(&mut manifest, second.dir()).unwrap();
        assert!(first.unfinished(&manifest).is_empty());
        let (first, read) = Kept::open(first.dir()).unwrap();
        let troubles: Vec<_> = read.variants.iter().map(|it| it.trouble.as_deref()).collect();
        assert_eq!(troubles, [None, Some("no card"), None, Some("no driver")]);
        let (load, talker) = read.settings().next().unwrap();
        assert_eq!(first.measured(&read, "c", load, talker).len(), 1);
        assert!(!second.dir().exists());
    }
}
