//! The file of a capture, which is opened here and handed to the daemon, and which frames are wanted.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;

use host_files::Output;
use serde_json::{Value, json};

use crate::output::guard;

/// File mode: readable for the owner only.
const MODE: u32 = 0o600;

/// Why no capture begins.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The words after `capture on`.
    #[error(
        "expected capture on FILE [size=100MB] [filter='udp port 319'], or capture off, found '{0}'"
    )]
    Words(String),
    /// The file.
    #[error("cannot write {path}: {source}; choose another file")]
    File {
        /// Its path.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// There is no compiler.
    #[error(
        "filter= is compiled by tcpdump, which cannot be run: {0}; install tcpdump, or leave filter= out"
    )]
    NoCompiler(io::Error),
    /// The expression is none.
    #[error("expected filter= with an expression of pcap-filter(7), found '{expression}': {said}")]
    Expression {
        /// The expression.
        expression: String,
        /// What tcpdump says.
        said: String,
    },
}

/// A capture that shall begin.
#[derive(Debug)]
pub struct Wanted {
    path: PathBuf,
    /// It gets its name when the daemon writes to it.
    output: Output,
    size: Option<String>,
    filter: Option<Vec<[u32; 4]>>,
}

/// The capture that `words` ask for; `None` when one shall end.
///
/// # Errors
/// When the words are others, or the file cannot be made.
pub fn wanted(words: &[String]) -> Result<Option<Wanted>, CaptureError> {
    let wrong = || CaptureError::Words(words.join(" "));
    let (path, options) = match words {
        [word] if word == "off" => return Ok(None),
        [word, path, options @ ..] if word == "on" => (PathBuf::from(path), options),
        _ => return Err(wrong()),
    };
    let (mut size, mut expression) = (None, None);
    for option in options {
        match option.split_once('=') {
            Some(("size", _)) if size.is_none() => size = Some(option.clone()),
            Some(("filter", text)) if expression.is_none() => expression = Some(text),
            _ => return Err(wrong()),
        }
    }
    let filter = expression.map(compile).transpose()?;
    let refused = |source| CaptureError::File { path: path.clone(), source };
    let output = Output::open(&path, guard(&[])).map_err(refused)?;
    if output.part().is_none() {
        let why = "it is standard output, or no regular file";
        return Err(refused(io::Error::other(why)));
    }
    output.file().set_permissions(Permissions::from_mode(MODE)).map_err(refused)?;
    let path = std::path::absolute(&path).map_err(refused)?;
    Ok(Some(Wanted { path, output, size, filter }))
}

impl Wanted {
    /// The file.
    pub const fn file(&self) -> &File {
        self.output.file()
    }

    /// Adds the keys of a capture to `request`.
    pub fn describe(&self, request: &mut Value) {
        let words = ["on"].into_iter().chain(self.size.as_deref());
        request["value"] = words.collect::<Vec<_>>().join(" ").into();
        request["file"] = self.path.display().to_string().into();
        if let Some(filter) = &self.filter {
            request["filter"] = json!(filter);
        }
    }

    /// The daemon writes to the file, which gets its name.
    ///
    /// # Errors
    /// When it cannot get it.
    pub fn keep(self) -> Result<(), CaptureError> {
        let Self { path, output, .. } = self;
        output.keep().map_err(|source| CaptureError::File { path, source })
    }
}

/// A program of classic BPF: code, jt, jf and k of each instruction, as `tcpdump -ddd` prints them after their number.
fn compile(expression: &str) -> Result<Vec<[u32; 4]>, CaptureError> {
    let mut tcpdump = Command::new("tcpdump");
    let output = tcpdump.args(["-y", "EN10MB", "-ddd", "--", expression]).output();
    let output = output.map_err(CaptureError::NoCompiler)?;
    let wrong = |said: &str| CaptureError::Expression {
        expression: expression.into(),
        said: said.trim().trim_start_matches("tcpdump: ").into(),
    };
    if !output.status.success() {
        return Err(wrong(&String::from_utf8_lossy(&output.stderr)));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let instruction = |line: &str| {
        let numbers = line.split_whitespace().map(|number| number.parse::<u32>().ok());
        numbers.collect::<Option<Vec<_>>>()?.try_into().ok()
    };
    let program: Option<Vec<[u32; 4]>> = text.lines().skip(1).map(instruction).collect();
    program.ok_or_else(|| wrong("tcpdump printed no program"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_capture() {
        let words = |text: &str| text.split(' ').map(String::from).collect::<Vec<_>>();
        assert!(wanted(&words("off")).unwrap().is_none());
        for text in ["", "on", "off x", "x.pcapng", "on x size=1MB size=2MB", "on x snap=9"] {
            let error = wanted(&words(text)).unwrap_err().to_string();
            assert!(error.contains("expected capture on FILE"), "{error}");
            assert!(!PathBuf::from("x").exists());
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a b.pcapng");
        let mut words = words("on FILE size=20MB");
        words[1] = path.display().to_string();
        let capture = wanted(&words).unwrap().unwrap();
        let mut request = json!({});
        capture.describe(&mut request);
        assert_eq!(request, json!({"value": "on size=20MB", "file": words[1]}));
        assert!(!path.exists());
        capture.keep().unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, MODE);
    }
}
