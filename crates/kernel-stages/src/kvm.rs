//! KVM's tracepoints: whether this kernel has them, and where the fields are that the programs read.
//!
//! The kernel's versions put the fields of `kvm_exit` in different places. A tracepoint's file `format` says where they are
//! (Documentation/trace/events.rst, "Event formats").

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

/// The directory of KVM's tracepoints, where libbpf looks for them.
const TRACEPOINTS: &str = "sys/kernel/tracing/events/kvm";
/// What a kernel with KVM has, as a module or not.
const MODULE: &str = "sys/module/kvm";
/// The map of [`Fields`] in the programs.
pub const FIELDS: &str = ".rodata.kvm";

/// `struct kvm_fields` of the programs: offsets and sizes in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fields {
    /// Of `kvm_exit`: why the guest was left.
    pub exit_reason: Field,
    /// Of `kvm_exit`: the instruction set by which guests run.
    pub isa: Field,
    /// Of `kvm_vcpu_wakeup`: the length of the halt.
    pub ns: Field,
}

/// A field of a tracepoint's record, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// From the record's beginning.
    pub offset: u32,
    /// Its own.
    pub size: u32,
}

impl Fields {
    /// Those of the kernel whose files are below `root`.
    ///
    /// # Errors
    /// The reason why exits of KVM cannot be seen, in words.
    pub fn find(root: &Path) -> Result<Self, String> {
        let exit = format(root, "kvm_exit")?;
        format(root, "kvm_entry")?;
        let wakeup = format(root, "kvm_vcpu_wakeup")?;
        Ok(Self {
            exit_reason: field(&exit, "kvm_exit", "exit_reason", &[4, 8])?,
            isa: field(&exit, "kvm_exit", "isa", &[4])?,
            ns: field(&wakeup, "kvm_vcpu_wakeup", "ns", &[8])?,
        })
    }

    /// As the programs read it.
    pub fn bytes(&self) -> [u8; 16] {
        let Self { exit_reason, isa, ns } = self;
        let mut bytes = [0; 16];
        let words = [exit_reason.offset, exit_reason.size, isa.offset, ns.offset];
        for (bytes, word) in bytes.chunks_exact_mut(4).zip(words) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }
}

/// The format of a tracepoint of KVM.
fn format(root: &Path, name: &str) -> Result<String, String> {
    let path = Path::new(TRACEPOINTS).join(name).join("format");
    match fs::read_to_string(root.join(&path)) {
        Ok(format) => Ok(format),
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(format!("/{} cannot be read: {error}", path.display()))
        }
        Err(_) if root.join(MODULE).exists() => Err(format!(
            "no tracepoint kvm:{name} is found: mount -t tracefs tracefs /sys/kernel/tracing"
        )),
        Err(_) => Err(format!("this kernel has no KVM (no tracepoint kvm:{name})")),
    }
}

/// A field of the tracepoint `of` with one of these sizes.
fn field(format: &str, of: &str, name: &str, sizes: &[u32]) -> Result<Field, String> {
    let found = format.lines().filter_map(parse).find(|(found, _)| *found == name);
    match found {
        Some((_, field)) if sizes.contains(&field.size) => Ok(field),
        Some((_, field)) => Err(format!(
            "kvm:{of} of this kernel has a field {name} of {} bytes, which is not known here",
            field.size
        )),
        None => Err(format!("kvm:{of} of this kernel has no field {name}")),
    }
}

/// A line such as `field:unsigned int exit_reason; offset:8; size:4; signed:0;`, with tabs between its parts.
fn parse(line: &str) -> Option<(&str, Field)> {
    let mut parts = line.trim().split(';').map(str::trim);
    let name = parts.next()?.strip_prefix("field:")?.split_whitespace().next_back()?;
    let number = |part: Option<&str>, key| part?.strip_prefix(key)?.parse().ok();
    let offset = number(parts.next(), "offset:")?;
    let size = number(parts.next(), "size:")?;
    Some((name, Field { offset, size }))
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    /// The first fields of every record.
    const COMMON: &str = "format:\n\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\t\
                          field:int common_pid;\toffset:4;\tsize:4;\tsigned:1;\n\n\t";
    /// Of Linux 6.18 on x86-64, in parts.
    const EXIT: &str = "field:unsigned int exit_reason;\toffset:8;\tsize:4;\tsigned:0;\n\t\
                        field:unsigned long guest_rip;\toffset:16;\tsize:8;\tsigned:0;\n\t\
                        field:u32 isa;\toffset:24;\tsize:4;\tsigned:0;\n";
    const ENTRY: &str = "field:unsigned int vcpu_id;\toffset:8;\tsize:4;\tsigned:0;\n";
    const WAKEUP: &str = "field:__u64 ns;\toffset:8;\tsize:8;\tsigned:0;\n";

    /// A kernel with these files in its directory of KVM's tracepoints.
    fn kernel(exit: &str) -> TempDir {
        let root = TempDir::new().unwrap();
        for (name, fields) in
            [("kvm_exit", exit), ("kvm_entry", ENTRY), ("kvm_vcpu_wakeup", WAKEUP)]
        {
            let directory = root.path().join(TRACEPOINTS).join(name);
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join("format"), format!("name: {name}\n{COMMON}{fields}")).unwrap();
        }
        root
    }

    fn found(exit: &str) -> Result<[u32; 4], String> {
        let fields = Fields::find(kernel(exit).path())?;
        let word = |at: usize| u32::from_ne_bytes(fields.bytes()[at..at + 4].try_into().unwrap());
        Ok([0, 4, 8, 12].map(word))
    }

    #[test]
    fn fields_are_found_where_the_kernel_has_them() {
        assert_eq!(found(EXIT), Ok([8, 4, 24, 8]));
        let wide = EXIT.replace(
            "unsigned int exit_reason;\toffset:8;\tsize:4",
            "u64 exit_reason;\toffset:32;\tsize:8",
        );
        assert_eq!(found(&wide), Ok([32, 8, 24, 8]));
    }

    #[test]
    fn what_another_kernel_has_is_said() {
        // Of aarch64.
        let arm = "field:int ret;\toffset:8;\tsize:4;\tsigned:1;\n\tfield:unsigned int esr_ec;\toffset:12;\tsize:4;\tsigned:0;\n";
        assert_eq!(found(arm), Err("kvm:kvm_exit of this kernel has no field exit_reason".into()));
        let short = found(&EXIT.replace("isa;\toffset:24;\tsize:4", "isa;\toffset:24;\tsize:1"));
        assert!(short.unwrap_err().contains("a field isa of 1 bytes"));
        for broken in ["", "field:", "field:u32 isa;\toffset:x;\tsize:4;", "\u{0}\n;;;"] {
            assert!(found(broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn a_kernel_without_kvm_is_told_from_one_without_tracefs() {
        let root = TempDir::new().unwrap();
        let found = || Fields::find(root.path()).unwrap_err();
        assert_eq!(found(), "this kernel has no KVM (no tracepoint kvm:kvm_exit)");
        fs::create_dir_all(root.path().join(MODULE)).unwrap();
        assert!(found().contains("mount -t tracefs"));
    }
}
