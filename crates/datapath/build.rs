//! Compiles the BPF program that the AF_XDP datapath loads.

fn main() {
    bpf_object::compile("bpf/sockets.bpf.c", &[]);
}
