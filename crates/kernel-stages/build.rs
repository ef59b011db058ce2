//! Compiles the BPF programs that stamp spans in the kernel: of the host, and of a guest.

fn main() {
    println!("cargo:rerun-if-changed=bpf/interruptions.bpf.h");
    println!("cargo:rerun-if-changed=bpf/kvm.bpf.h");
    println!("cargo:rerun-if-changed=bpf/threads.bpf.h");
    // Atomic operations that return what was there need version 3 of the instructions (kernel 5.12).
    bpf_object::compile("bpf/stages.bpf.c", &["-mcpu=v3"]);
    bpf_object::compile("bpf/guest.bpf.c", &[]);
}
