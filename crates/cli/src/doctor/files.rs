//! Facts that the kernel reports in files: sysfs and procfs.

use std::path::PathBuf;
use std::str::FromStr;

/// The files below a root directory: `/`, or another one in tests.
#[derive(Clone, Debug)]
pub struct Files {
    root: PathBuf,
}

impl Files {
    /// The files of this host.
    pub fn of_this_host() -> Self {
        Self { root: "/".into() }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// A file's text without surrounding white space; `None` if it cannot be read.
    pub fn text(&self, path: &str) -> Option<String> {
        let bytes = std::fs::read(self.path(path)).ok()?;
        Some(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    /// A file's text, parsed.
    pub fn parse<T: FromStr>(&self, path: &str) -> Option<T> {
        self.text(path)?.parse().ok()
    }

    /// The names in a directory that begin with `prefix`, sorted; `None` if there is no such directory.
    pub fn names(&self, directory: &str, prefix: &str) -> Option<Vec<String>> {
        let entries = std::fs::read_dir(self.path(directory)).ok()?;
        let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        let mut names: Vec<_> = names.filter(|name| name.starts_with(prefix)).collect();
        names.sort();
        Some(names)
    }

    /// The last name of a symbolic link's target.
    pub fn link_name(&self, path: &str) -> Option<String> {
        let target = std::fs::read_link(self.path(path)).ok()?;
        Some(target.file_name()?.to_string_lossy().into_owned())
    }

    /// Whether there is a file of this name.
    pub fn exists(&self, path: &str) -> bool {
        self.path(path).exists()
    }
}

#[cfg(test)]
pub mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;

    /// Files of a host that does not exist.
    pub struct Pretended {
        directory: TempDir,
    }

    impl Pretended {
        pub fn new(files: &[(&str, &str)]) -> Self {
            let pretended = Self { directory: TempDir::new().unwrap() };
            for (path, text) in files {
                let path = pretended.files().path(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            pretended
        }

        pub fn link(self, path: &str, target: &str) -> Self {
            let path = self.files().path(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            symlink(target, path).unwrap();
            self
        }

        pub fn files(&self) -> Files {
            Files { root: self.directory.path().into() }
        }
    }

    #[test]
    fn a_missing_file_is_none() {
        let pretended = Pretended::new(&[("/sys/a", "7\n"), ("/sys/b", "x")]);
        let pretended = pretended.link("/sys/driver", "../../bus/drivers/ixgbe");
        let files = pretended.files();
        assert_eq!((files.parse("/sys/a"), files.parse::<u32>("/sys/b")), (Some(7), None));
        assert_eq!(files.text("/sys/none"), None);
        assert_eq!(files.names("/sys", "a").unwrap(), ["a"]);
        assert_eq!(files.names("/none", ""), None);
        assert_eq!(files.link_name("/sys/driver").unwrap(), "ixgbe");
        assert_eq!(files.link_name("/sys/a"), None);
        assert!(files.exists("/sys/a") && !files.exists("/none"));
    }
}
