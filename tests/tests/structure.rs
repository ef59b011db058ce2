//! The shape of the workspace: which crate may use which, circles of modules, the length of files, and where `unsafe` is.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// The crates that each crate may use, in the order in which a packet meets them: a crate uses only crates above it. The
/// commit that adds an edge says why the layers need it.
const EDGES: &[(&str, &[&str])] = &[
    ("bpf-object", &[]),
    // What each thread gives up: all that start threads use it.
    ("confine", &[]),
    ("file-mapping", &[]),
    // Every crate that opens files of the host uses it, connects to a socket or asks who is at its other end.
    ("host-files", &[]),
    // The daemon makes and watches macvtaps, `ringscope doctor` looks at interfaces: both ask the kernel by netlink.
    ("host-links", &[]),
    ("log-limit", &[]),
    // Calls to a front end's files, made in processes of their own: workers' descriptors are closed there, the control
    // plane has pipes written there, and the daemon's executable is such a process.
    ("foreign-files", &["host-files"]),
    // Guest memory and recorders are files that other processes may shorten.
    ("guest-memory", &["file-mapping"]),
    // A mapped file of the daemon's own.
    ("ring-journal", &["file-mapping", "host-files"]),
    // The engines write each burst's position between the stores that show it to the driver.
    ("virtqueue", &["guest-memory", "ring-journal"]),
    ("burst-trace", &["file-mapping", "host-files"]),
    // Captures and reports write the same blocks and comments.
    ("pcapng", &["burst-trace"]),
    // It measures stages of the recorder's list.
    ("kernel-stages", &["burst-trace"]),
    // Every drop has a cause of the recorder's list.
    ("virtio-net", &["guest-memory", "virtqueue", "burst-trace"]),
    // A guest that disables a ring makes AF_XDP log its counters; which chunks are free is in a mapped file.
    (
        "datapath",
        &[
            "file-mapping",
            "confine",
            "host-files",
            "host-links",
            "guest-memory",
            "virtio-net",
            "burst-trace",
            "pcapng",
            "log-limit",
        ],
    ),
    // Log lines that a guest or its front end causes are limited, here and in the next two.
    (
        "worker",
        &[
            "confine",
            "guest-memory",
            "virtqueue",
            "virtio-net",
            "burst-trace",
            "log-limit",
            "foreign-files",
            "ring-journal",
            "datapath",
        ],
    ),
    (
        "vhost-control",
        &[
            "host-files",
            "confine",
            "guest-memory",
            "ring-journal",
            "virtqueue",
            "virtio-net",
            "log-limit",
            "foreign-files",
            "worker",
        ],
    ),
    // It reads recorders.
    ("metrics", &["host-files", "burst-trace", "confine"]),
    (
        "ringscoped",
        &[
            "host-files",
            "confine",
            "ring-journal",
            "virtio-net",
            "burst-trace",
            "log-limit",
            "foreign-files",
            "kernel-stages",
            "datapath",
            "worker",
            "vhost-control",
            "metrics",
        ],
    ),
    // It names features.
    ("report", &["virtio-net", "burst-trace", "pcapng"]),
    // It stamps probe packets as the recorder does, maps a page that host and guest share, and has a guest's kernel stamp how it
    // receives probes. It is shipped in guests, so it uses no more than it needs.
    ("agent", &["file-mapping", "host-files", "host-links", "burst-trace", "kernel-stages"]),
    // It starts guests, and talks to the agent in them. It joins the probes of each variant with ringscoped's recording.
    ("lab", &["burst-trace", "report", "agent"]),
    // `record` can measure the kernel; outputs are opened by kind; a file that is shortened while it is read is reported.
    (
        "ringscope",
        &[
            "file-mapping",
            "host-files",
            "host-links",
            "burst-trace",
            "kernel-stages",
            "report",
            "agent",
            "lab",
        ],
    ),
    ("frontend", &["guest-memory", "virtqueue", "virtio-net"]),
    ("ringscope-tests", &["burst-trace", "report", "agent", "lab", "frontend"]),
];

/// The same for build scripts, tests, examples and benches.
const DEV_EDGES: &[(&str, &[&str])] = &[
    // Their build scripts compile BPF programs.
    ("kernel-stages", &["bpf-object"]),
    // Also with the feature `driver`, as the next ones: the guest's side of the rings.
    ("datapath", &["bpf-object", "virtqueue"]),
    ("virtqueue", &["virtqueue"]),
    ("virtio-net", &["virtqueue"]),
    ("worker", &["virtqueue"]),
    // With the feature `fixture`: interruptions.
    ("report", &["burst-trace"]),
    ("ringscope", &["burst-trace"]),
    // The same, and the example of a datapath of one's own.
    (
        "ringscope-tests",
        &[
            "kernel-stages",
            "host-files",
            "burst-trace",
            "log-limit",
            "virtio-net",
            "datapath",
            "worker",
            "vhost-control",
        ],
    ),
];

/// The files that may contain `unsafe` blocks: few in each crate, each with the reason at its top.
const UNSAFE_FILES: &[&str] = &[
    "backend/src/sys.rs",
    // The scheduling class of a talker.
    "crates/agent/src/sys.rs",
    "crates/burst-trace/src/clock.rs",
    "crates/burst-trace/src/file.rs",
    "crates/burst-trace/src/sys.rs",
    // Calls that an attacker would make, in a test; a signal handler.
    "crates/confine/src/tries.rs",
    "crates/confine/src/violation.rs",
    // Rings in memory that the kernel shares, and a call that libbpf-rs does not make.
    "crates/datapath/src/af_xdp/program.rs",
    "crates/datapath/src/af_xdp/rings.rs",
    "crates/datapath/src/sys.rs",
    // The kernel reads and writes memory by address until it is done.
    "crates/datapath/src/tap/uring.rs",
    // A signal handler, and mappings that it may change.
    "crates/file-mapping/src/guard.rs",
    "crates/file-mapping/src/mapping.rs",
    "crates/file-mapping/src/signal.rs",
    "crates/file-mapping/tests/torn.rs",
    "crates/foreign-files/src/sys.rs",
    "crates/guest-memory/src/area.rs",
    "crates/guest-memory/src/host.rs",
    "crates/guest-memory/src/memory.rs",
    // Under loom only.
    "crates/guest-memory/src/modelled.rs",
    "crates/guest-memory/src/prefetch.rs",
    "crates/guest-memory/src/slice.rs",
    "crates/guest-memory/src/spare.rs",
    "crates/guest-memory/src/summed_copy.rs",
    "crates/kernel-stages/src/sys.rs",
    "crates/worker/src/sys.rs",
    // Pages of another process that are taken back.
    "tests/src/sys.rs",
];

/// Most lines of a Rust file.
const LINES_MAX: usize = 500;

#[test]
fn every_edge_between_crates_is_in_the_table() {
    let packages = packages();
    let members: Vec<&str> = packages.iter().map(name).collect();
    let mut wrong = Vec::new();
    for package in &packages {
        for dependency in package["dependencies"].as_array().unwrap() {
            let (from, to) = (name(package), name(dependency));
            if !members.contains(&to) {
                continue;
            }
            let (table, kind) = match dependency["kind"].as_str() {
                None => (EDGES, "EDGES"),
                Some(_) => (DEV_EDGES, "DEV_EDGES"),
            };
            let allowed = table.iter().find(|(crate_name, _)| *crate_name == from);
            if !allowed.is_some_and(|(_, all)| all.contains(&to)) {
                wrong.push(format!(
                    "{from} uses {to}, which {kind} does not allow: use it from another layer, or add it \
                     to {kind} in tests/tests/structure.rs and say in the commit why"
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_edge_in_the_table_is_used() {
    let packages = packages();
    let files = rust_files();
    let mut wrong = Vec::new();
    for (kind, table) in [("EDGES", EDGES), ("DEV_EDGES", DEV_EDGES)] {
        for (from, to) in
            table.iter().flat_map(|(from, all)| all.iter().map(move |to| (*from, *to)))
        {
            let package = packages.iter().find(|package| name(package) == from).unwrap();
            let manifest = Path::new(package["manifest_path"].as_str().unwrap());
            let directory = manifest.parent().unwrap().strip_prefix(root()).unwrap();
            let is_named = package["dependencies"].as_array().unwrap().iter().any(|dependency| {
                name(dependency) == to && dependency["kind"].is_null() == (kind == "EDGES")
            });
            let path = format!("{}::", to.replace('-', "_"));
            let is_used = files.iter().any(|file| {
                Path::new(file).starts_with(directory)
                    && fs::read_to_string(root().join(file)).unwrap().contains(&path)
            });
            if !is_named || !is_used {
                wrong.push(format!(
                    "{from} does not use {to}: take it out of {kind} in tests/tests/structure.rs and out of \
                     {}/Cargo.toml",
                    directory.display()
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_table_points_one_way_and_has_no_crates_that_are_gone() {
    let packages = packages();
    for (n, (from, all)) in EDGES.iter().enumerate() {
        assert!(packages.iter().any(|package| name(package) == *from), "{from} is no crate");
        let above: Vec<&str> = EDGES[..n].iter().map(|(above, _)| *above).collect();
        for to in *all {
            assert!(above.contains(to), "{from} uses {to}, which does not stand above it in EDGES");
        }
    }
    for package in &packages {
        let listed = EDGES.iter().any(|(from, _)| *from == name(package));
        assert!(listed, "{} is not in EDGES in tests/tests/structure.rs", name(package));
    }
}

#[test]
fn every_crate_has_the_licence_and_the_lints_of_the_workspace() {
    for package in packages() {
        let manifest = package["manifest_path"].as_str().unwrap();
        assert_eq!(package["license"], "Apache-2.0 OR BSD-3-Clause", "license in {manifest}");
        assert_eq!(package["publish"], Value::Array(Vec::new()), "publish in {manifest}");
        let text = fs::read_to_string(manifest).unwrap();
        assert!(text.contains("[lints]\nworkspace = true"), "no workspace lints in {manifest}");
    }
}

#[test]
fn files_are_short_finished_and_unsafe_only_where_it_is_named() {
    // Built from parts, so that the search does not find this file.
    let unfinished = [["TO", "DO"].concat(), ["FIX", "ME"].concat()];
    let unlocked = ["allow", "expect"].map(|level| format!("{level}(unsafe_code"));
    let mut wrong = Vec::new();
    let mut used = Vec::new();
    for path in rust_files() {
        let text = fs::read_to_string(root().join(&path)).unwrap();
        let lines = text.lines().count();
        if lines > LINES_MAX {
            wrong.push(format!("{path}: {lines} lines; split it, at most {LINES_MAX} are allowed"));
        }
        for mark in unfinished.iter().filter(|mark| text.contains(mark.as_str())) {
            wrong.push(format!("{path}: finish it or make it an issue, no {mark} is allowed"));
        }
        // Without white space, so that line breaks do not matter.
        let packed: String = text.split_whitespace().collect();
        if unlocked.iter().any(|attribute| packed.contains(attribute)) {
            if !UNSAFE_FILES.contains(&path.as_str()) {
                wrong.push(format!(
                    "{path}: unsafe code; move it into its crate's module for that, or name the file in \
                     UNSAFE_FILES in tests/tests/structure.rs and say in the commit why"
                ));
            }
            used.push(path);
        }
    }
    for path in UNSAFE_FILES {
        if !used.iter().any(|found| found == path) {
            wrong.push(format!("{path}: no unsafe code; take it out of UNSAFE_FILES"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_modules_of_a_crate_use_each_other_in_a_circle() {
    let mut crates: BTreeMap<String, Modules> = BTreeMap::new();
    for file in rust_files() {
        let Some((directory, path)) = file.split_once("/src/") else { continue };
        let module = path.trim_end_matches(".rs").trim_end_matches("/mod").replace('/', "::");
        let last = module.rsplit("::").next().unwrap();
        if !["lib", "main", "tests"].contains(&last) {
            let text = fs::read_to_string(root().join(&file)).unwrap();
            crates.entry(directory.to_owned()).or_default().insert(module, text);
        }
    }
    let mut wrong = Vec::new();
    for (directory, modules) in &crates {
        let uses: BTreeMap<&str, BTreeSet<&str>> = modules
            .iter()
            .map(|(name, text)| (name.as_str(), used_by(name, text, modules)))
            .collect();
        for name in uses.keys() {
            // Each circle once, from its first module.
            if let Some(circle) = circle_from(name, &uses)
                && circle.iter().all(|other| other >= name)
            {
                wrong.push(format!("{directory}: {} -> {name}", circle.join(" -> ")));
            }
        }
    }
    assert!(wrong.is_empty(), "move what both need to a module of its own:\n{}", wrong.join("\n"));
}

/// The modules of a crate, by path, with their texts.
type Modules = BTreeMap<String, String>;

/// The modules that module `name` uses by a path from the crate or from its parent. What tests use does not count.
fn used_by<'m>(name: &str, text: &str, modules: &'m Modules) -> BTreeSet<&'m str> {
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    let code: Vec<_> = text.lines().map(|line| line.split("//").next().unwrap()).collect();
    let code = code.join("\n");
    let parent = name.rsplit_once("::").map_or("", |(parent, _)| parent);
    let mut used = BTreeSet::new();
    for (word, from) in [("crate::", ""), ("super::", parent)] {
        for (at, _) in code.match_indices(word) {
            let rest = &code[at + word.len()..];
            let is_path = |letter: char| letter.is_alphanumeric() || letter == '_' || letter == ':';
            let (path, rest) = rest.split_at(rest.find(|letter| !is_path(letter)).unwrap_or(0));
            let group = rest.strip_prefix('{').and_then(|rest| rest.split('}').next());
            for item in group.unwrap_or_default().split(',') {
                let item = item.trim().split(|letter| !is_path(letter)).next().unwrap();
                let whole = [from, path.trim_end_matches(':'), item];
                let whole: Vec<_> = whole.iter().filter(|part| !part.is_empty()).copied().collect();
                used.extend(longest_module(&whole.join("::"), modules));
            }
        }
    }
    used.remove(name);
    used
}

/// The module that is the longest part of this path from its beginning.
fn longest_module<'m>(path: &str, modules: &'m Modules) -> Option<&'m str> {
    let mut path = path;
    loop {
        if let Some((name, _)) = modules.get_key_value(path) {
            return Some(name);
        }
        path = path.rsplit_once("::")?.0;
    }
}

/// The shortest way from a module back to it.
fn circle_from<'m>(
    name: &'m str,
    uses: &BTreeMap<&'m str, BTreeSet<&'m str>>,
) -> Option<Vec<&'m str>> {
    let mut ways = VecDeque::from([vec![name]]);
    let mut seen = BTreeSet::new();
    while let Some(way) = ways.pop_front() {
        for next in &uses[way.last().unwrap()] {
            if *next == name {
                return Some(way);
            }
            if seen.insert(*next) {
                ways.push_back([&way[..], &[*next]].concat());
            }
        }
    }
    None
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn packages() -> Vec<Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

fn name(of: &Value) -> &str {
    of["name"].as_str().unwrap()
}

/// Every Rust file of the workspace, by its path from the root.
fn rust_files() -> Vec<String> {
    let mut directories: Vec<PathBuf> =
        ["backend", "crates", "tests"].iter().map(|name| root().join(name)).collect();
    let mut files = Vec::new();
    while let Some(directory) = directories.pop() {
        for entry in directory.read_dir().unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                // A crate outside the workspace has its own target directory.
                if !path.ends_with("target") {
                    directories.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    assert!(!files.is_empty());
    files.sort();
    files
}
