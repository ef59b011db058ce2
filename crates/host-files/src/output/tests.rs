use std::os::unix::fs::{PermissionsExt as _, symlink};

use rustix::fs::{CWD, FileType, Mode, makedev, mkfifoat, mknodat};
use tempfile::TempDir;

use super::*;

const MARK: [u8; 8] = *b"RINGSCP1";

fn open(path: &Path, inputs: &[FileId]) -> io::Result<Output> {
    Output::open(path, Guard { inputs, mark: MARK })
}

fn write(path: &Path) -> io::Result<()> {
    let mut output = open(path, &[])?;
    output.write_all(b"new")?;
    output.keep()
}

fn names(directory: &TempDir) -> Vec<String> {
    let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let mut names: Vec<_> = directory.path().read_dir().unwrap().map(name).collect();
    names.sort();
    names
}

#[test]
fn a_file_is_replaced_whole_at_the_end_and_left_alone_without_one() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("out");
    fs::write(&path, "old").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let mut output = open(&path, &[]).unwrap();
    output.write_all(b"half").unwrap();
    assert_eq!(names(&directory), ["out", "out.part"]);
    drop(output);
    assert_eq!((names(&directory), fs::read(&path).unwrap()), (vec!["out".into()], b"old".into()));
    write(&path).unwrap();
    assert_eq!((names(&directory), fs::read(&path).unwrap()), (vec!["out".into()], b"new".into()));
    assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o640, "the permissions stay");
}

#[test]
fn what_a_killed_run_left_stays() {
    let directory = TempDir::new().unwrap();
    fs::write(directory.path().join("out.part"), "left").unwrap();
    symlink("/nowhere", directory.path().join("out.2.part")).unwrap();
    write(&directory.path().join("out")).unwrap();
    assert_eq!(names(&directory), ["out", "out.2.part", "out.part"]);
    assert_eq!(fs::read(directory.path().join("out.part")).unwrap(), b"left");
}

#[test]
fn a_link_is_followed_to_its_file_and_refused_without_one() {
    let directory = TempDir::new().unwrap();
    let (path, link) = (directory.path().join("out"), directory.path().join("link"));
    symlink("out", &link).unwrap();
    let error = write(&link).unwrap_err().to_string();
    assert!(error.contains("a link to nothing"), "{error}");
    fs::write(&path, "old").unwrap();
    write(&link).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new");
    assert!(link.is_symlink());
}

#[test]
fn an_input_and_a_recorder_are_refused_by_whatever_name() {
    let directory = TempDir::new().unwrap();
    let path = |name| directory.path().join(name);
    fs::write(path("in"), "old").unwrap();
    fs::hard_link(path("in"), path("hard")).unwrap();
    symlink("in", path("soft")).unwrap();
    let inputs = [FileId::of_path(&path("in")).unwrap()];
    for name in ["in", "hard", "soft"] {
        let error = open(&path(name), &inputs).unwrap_err().to_string();
        assert_eq!(error, "it is one of the inputs");
    }
    fs::write(path("vm0.trace"), [&MARK[..], &[0; 100]].concat()).unwrap();
    let error = write(&path("vm0.trace")).unwrap_err().to_string();
    assert!(error.contains("a flight recorder"), "{error}");
}

#[test]
fn a_device_and_a_fifo_are_written_into_and_stay() {
    let directory = TempDir::new().unwrap();
    let (null, fifo) = (directory.path().join("null"), directory.path().join("fifo"));
    mkfifoat(CWD, &fifo, Mode::RWXU).unwrap();
    // Opened for reading and writing, so that no open waits for the other end.
    let mut reader = OpenOptions::new().read(true).write(true).open(&fifo).unwrap();
    write(&fifo).unwrap();
    let mut came = [0; 3];
    reader.read_exact(&mut came).unwrap();
    assert_eq!(&came, b"new");
    // Only root may create a device.
    if mknodat(CWD, &null, FileType::CharacterDevice, Mode::RWXU, makedev(1, 3)).is_ok() {
        write(&null).unwrap();
        assert!(null.metadata().unwrap().file_type().is_char_device());
    }
    assert!(fifo.metadata().unwrap().file_type().is_fifo());
}

#[test]
fn what_cannot_be_written_is_said_at_the_start() {
    let directory = TempDir::new().unwrap();
    let error = write(directory.path()).unwrap_err().to_string();
    assert_eq!(error, "it is a directory");
    let missing = write(&directory.path().join("no/out")).unwrap_err();
    assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    let socket = directory.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    assert_eq!(write(&socket).unwrap_err().to_string(), "it is a socket");
}

#[test]
fn what_is_rewritten_in_place_is_no_recorder_either() {
    let directory = TempDir::new().unwrap();
    let (path, trace) = (directory.path().join("stamps"), directory.path().join("vm0.trace"));
    let guard = Guard { inputs: &[], mark: MARK };
    fs::write(&path, "older and longer").unwrap();
    rewrite(&path, guard).unwrap().write_all(b"new").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new");
    fs::write(&trace, [&MARK[..], &[0; 100]].concat()).unwrap();
    assert!(rewrite(&trace, guard).is_err());
    assert_eq!(trace.metadata().unwrap().len(), 108);
}
