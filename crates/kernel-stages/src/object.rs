//! What the loading of every compiled object has in common.

use libbpf_rs::ErrorKind;
use rustix::process::geteuid;

/// A compiled object, with the alignment that an ELF file needs.
#[repr(align(8))]
pub struct Aligned<T: ?Sized>(pub T);

/// Has the messages of libbpf logged, and not printed.
pub fn log_messages() {
    libbpf_rs::set_print(Some((libbpf_rs::PrintLevel::Debug, |_, message| {
        log::debug!("{}", message.trim_end());
    })));
}

/// Whether the kernel refused programs because this process lacks the permission. For root this is no lack of permission: the
/// verifier returns the same error for programs that it does not understand.
pub fn is_not_allowed(error: &libbpf_rs::Error) -> bool {
    error.kind() == ErrorKind::PermissionDenied && !geteuid().is_root()
}

/// Why programs do not run, in words.
pub fn refusal(error: &libbpf_rs::Error) -> String {
    format!("this kernel refuses the programs: {error}")
}

/// Inode of the initial PID namespace (`PROC_PID_INIT_INO` in the kernel's `include/linux/proc_ns.h`).
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";

/// Whether thread ids here differ from those that programs in the kernel see.
pub fn is_in_own_pid_namespace() -> bool {
    let namespace = std::fs::read_link("/proc/self/ns/pid");
    namespace.is_ok_and(|name| name.as_os_str() != FIRST_PID_NAMESPACE)
}
