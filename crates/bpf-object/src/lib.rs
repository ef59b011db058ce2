//! Compiles BPF programs in build scripts, by one call of clang.
//!
//! `libbpf-cargo` does the same, but it is built from forty crates and a second libbpf, for each profile.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Compiles `source`, a path from the crate's directory, to an object file in `OUT_DIR`: `NAME.bpf.c` to `NAME.bpf.o`.
/// `options` are further options of clang. Call it from a build script of a crate that depends on `libbpf-sys`, whose
/// headers are used.
///
/// # Panics
/// If it does not compile; the message has clang's own.
pub fn compile(source: &str, options: &[&str]) {
    let object = PathBuf::from(variable("OUT_DIR"))
        .join(Path::new(source).with_extension("o").file_name().expect("a file's name"));
    let arch = variable("CARGO_CFG_TARGET_ARCH");
    // `links` and `include` of libbpf-sys.
    let libbpf = variable("DEP_BPF_INCLUDE");
    println!("cargo:rerun-if-changed={source}");
    let output = Command::new("clang")
        // BTF is made from debug information.
        .args(["-target", "bpf", "-O2", "-g", "-fno-stack-protector", "-Wall", "-Werror"])
        // BTF and debug information name their sources. The object is the same wherever it is built.
        .args(["-fdebug-compilation-dir=.", &format!("-ffile-prefix-map={libbpf}=libbpf")])
        .arg(format!("-I{libbpf}"))
        // Where Debian keeps `asm/types.h`, which the kernel's headers include.
        .arg(format!("-I/usr/include/{arch}-linux-gnu"))
        .arg(format!("-D__TARGET_ARCH_{}", kernel_arch(&arch)))
        .args(options)
        .args(["-c", source, "-o"])
        .arg(object)
        .output();
    let found = match output {
        Ok(output) if output.status.success() => return,
        Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
        Err(error) => format!("clang: {error}"),
    };
    panic!("{source} does not compile; expected clang (qemu-scripts/setup installs it): {found}");
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|error| panic!("expected {name} of cargo: {error}"))
}

/// The kernel's name of an architecture of Rust (`__TARGET_ARCH_` in libbpf's `bpf_tracing.h`).
fn kernel_arch(arch: &str) -> &str {
    match arch {
        "x86_64" => "x86",
        "aarch64" => "arm64",
        "riscv64" => "riscv",
        "s390x" => "s390",
        other => other,
    }
}
