//! Compiles the BPF programs that stamp spans in the host kernel.

use std::env;
use std::path::PathBuf;

use libbpf_cargo::SkeletonBuilder;

const SOURCE: &str = "bpf/stages.bpf.c";

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo says where output goes"));
    // Where Debian keeps `asm/types.h`, which the kernel's headers include.
    let arch = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    let headers = format!("-I/usr/include/{arch}-linux-gnu");
    println!("cargo:rerun-if-changed={SOURCE}");
    SkeletonBuilder::new()
        .source(SOURCE)
        .obj(out.join("stages.bpf.o"))
        // Atomic operations that return what was there need version 3 of the instructions (kernel 5.12).
        .clang_args([headers.as_str(), "-Wall", "-Werror", "-mcpu=v3"])
        .build()
        .unwrap_or_else(|error| {
            panic!("{SOURCE} does not compile; expected clang and the libbpf headers (qemu-scripts/setup): {error:#}")
        });
}
