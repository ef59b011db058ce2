//! Why KVM left a guest: the names of exits, and what to do about those that take long.

use burst_trace::{KvmExit, KvmIsa};

/// Of a reason on VMX: the other bits are flags (`VMX_EXIT_REASON_FLAGS` in `arch/x86/include/uapi/asm/vmx.h`).
const BASIC: u32 = 0xffff;

/// The exit's name as `perf kvm stat` shows it, with its instruction set: `EPT_VIOLATION (VMX)`.
#[must_use]
pub fn kvm_exit(exit: KvmExit) -> String {
    let KvmExit { isa, reason } = exit;
    match (name(exit), isa) {
        (Some(name), Some(KvmIsa::Vmx)) => format!("{name} (VMX)"),
        (Some(name), Some(KvmIsa::Svm)) => format!("{name} (SVM)"),
        (_, Some(KvmIsa::Vmx)) => format!("{} (VMX)", reason & BASIC),
        (_, Some(KvmIsa::Svm)) => format!("{reason:#x} (SVM)"),
        (_, None) => reason.to_string(),
    }
}

fn name(exit: KvmExit) -> Option<&'static str> {
    let (table, reason) = match exit.isa? {
        KvmIsa::Vmx => (&VMX[..], exit.reason & BASIC),
        KvmIsa::Svm => (&SVM[..], exit.reason),
    };
    table.iter().find(|(number, _)| *number == reason).map(|(_, name)| *name)
}

/// What to do about an exit that takes long. `cpu`: where it was.
pub(super) fn advice(exit: KvmExit, cpu: u16) -> String {
    let counted = "`perf kvm stat live` counts the exits of a guest and their time";
    match name(exit).unwrap_or_default() {
        "EXTERNAL_INTERRUPT" | "interrupt" | "nmi" => format!(
            "an interrupt of the host came to CPU {cpu}: keep interrupts and timers off the virtual CPUs' CPUs (echo N > \
             /proc/irq/N/smp_affinity_list; isolcpus={cpu} nohz_full={cpu} on the kernel's command line); {counted}"
        ),
        "EPT_VIOLATION" | "npf" | "PML_FULL" => format!(
            "the guest touched memory that the host had not mapped for it, or a device that is emulated: keep its memory resident \
             (QEMU: -overcommit mem-lock=on, prealloc=on or huge pages), and let no migration or dirty log run; {counted}"
        ),
        "IO_INSTRUCTION" | "io" | "EPT_MISCONFIG" | "vmgexit_mmio_read" | "vmgexit_mmio_write" => {
            format!(
                "the guest used an emulated device: find it (trace-cmd record -e kvm:kvm_mmio -e kvm:kvm_pio), and replace it with a \
             virtio device (with ioeventfd=on), or leave it out; {counted}"
            )
        }
        "MSR_WRITE" | "MSR_READ" | "msr" | "APIC_WRITE" | "APIC_ACCESS" | "PREEMPTION_TIMER"
        | "EOI_INDUCED" => format!(
            "the guest's timer or its interrupt controller was emulated: give the guest fewer timers (nohz_full and isolcpus on \
             its kernel's command line), and the host the hardware's help (kvm_intel.enable_apicv=1, kvm_amd.avic=1); {counted}"
        ),
        "PAUSE_INSTRUCTION" | "pause" => format!(
            "a virtual CPU waited for another one, which did not run: give each virtual CPU a CPU of its own (virsh vcpupin); \
             {counted}"
        ),
        "HLT" | "hlt" | "idle-halt" => format!(
            "KVM took its time to run the guest after a halt: let it wait longer without a sleep (echo 200000 > \
             /sys/module/kvm/parameters/halt_poll_ns), or the guest not halt (idle=poll or cpuidle_haltpoll there); {counted}"
        ),
        _ => format!("look at what the guest does there: {counted}"),
    }
}

/// `EXIT_REASON_*` of `arch/x86/include/uapi/asm/vmx.h`.
const VMX: [(u32, &str); 65] = [
    (0, "EXCEPTION_NMI"),
    (1, "EXTERNAL_INTERRUPT"),
    (2, "TRIPLE_FAULT"),
    (3, "INIT_SIGNAL"),
    (4, "SIPI_SIGNAL"),
    (7, "INTERRUPT_WINDOW"),
    (8, "NMI_WINDOW"),
    (9, "TASK_SWITCH"),
    (10, "CPUID"),
    (12, "HLT"),
    (13, "INVD"),
    (14, "INVLPG"),
    (15, "RDPMC"),
    (16, "RDTSC"),
    (18, "VMCALL"),
    (19, "VMCLEAR"),
    (20, "VMLAUNCH"),
    (21, "VMPTRLD"),
    (22, "VMPTRST"),
    (23, "VMREAD"),
    (24, "VMRESUME"),
    (25, "VMWRITE"),
    (26, "VMOFF"),
    (27, "VMON"),
    (28, "CR_ACCESS"),
    (29, "DR_ACCESS"),
    (30, "IO_INSTRUCTION"),
    (31, "MSR_READ"),
    (32, "MSR_WRITE"),
    (33, "INVALID_STATE"),
    (34, "MSR_LOAD_FAIL"),
    (36, "MWAIT_INSTRUCTION"),
    (37, "MONITOR_TRAP_FLAG"),
    (39, "MONITOR_INSTRUCTION"),
    (40, "PAUSE_INSTRUCTION"),
    (41, "MCE_DURING_VMENTRY"),
    (43, "TPR_BELOW_THRESHOLD"),
    (44, "APIC_ACCESS"),
    (45, "EOI_INDUCED"),
    (46, "GDTR_IDTR"),
    (47, "LDTR_TR"),
    (48, "EPT_VIOLATION"),
    (49, "EPT_MISCONFIG"),
    (50, "INVEPT"),
    (51, "RDTSCP"),
    (52, "PREEMPTION_TIMER"),
    (53, "INVVPID"),
    (54, "WBINVD"),
    (55, "XSETBV"),
    (56, "APIC_WRITE"),
    (57, "RDRAND"),
    (58, "INVPCID"),
    (59, "VMFUNC"),
    (60, "ENCLS"),
    (61, "RDSEED"),
    (62, "PML_FULL"),
    (63, "XSAVES"),
    (64, "XRSTORS"),
    (67, "UMWAIT"),
    (68, "TPAUSE"),
    (74, "BUS_LOCK"),
    (75, "NOTIFY"),
    (77, "TDCALL"),
    (84, "MSR_READ_IMM"),
    (85, "MSR_WRITE_IMM"),
];

/// `SVM_EXIT_*` and `SVM_VMGEXIT_*` of `arch/x86/include/uapi/asm/svm.h`, by their names in `kvm:kvm_exit`.
const SVM: [(u32, &str); 110] = [
    (0x000, "read_cr0"),
    (0x002, "read_cr2"),
    (0x003, "read_cr3"),
    (0x004, "read_cr4"),
    (0x008, "read_cr8"),
    (0x010, "write_cr0"),
    (0x012, "write_cr2"),
    (0x013, "write_cr3"),
    (0x014, "write_cr4"),
    (0x018, "write_cr8"),
    (0x020, "read_dr0"),
    (0x021, "read_dr1"),
    (0x022, "read_dr2"),
    (0x023, "read_dr3"),
    (0x024, "read_dr4"),
    (0x025, "read_dr5"),
    (0x026, "read_dr6"),
    (0x027, "read_dr7"),
    (0x030, "write_dr0"),
    (0x031, "write_dr1"),
    (0x032, "write_dr2"),
    (0x033, "write_dr3"),
    (0x034, "write_dr4"),
    (0x035, "write_dr5"),
    (0x036, "write_dr6"),
    (0x037, "write_dr7"),
    (0x040, "DE excp"),
    (0x041, "DB excp"),
    (0x043, "BP excp"),
    (0x044, "OF excp"),
    (0x045, "BR excp"),
    (0x046, "UD excp"),
    (0x047, "NM excp"),
    (0x048, "DF excp"),
    (0x04a, "TS excp"),
    (0x04b, "NP excp"),
    (0x04c, "SS excp"),
    (0x04d, "GP excp"),
    (0x04e, "PF excp"),
    (0x050, "MF excp"),
    (0x051, "AC excp"),
    (0x052, "MC excp"),
    (0x053, "XF excp"),
    (0x060, "interrupt"),
    (0x061, "nmi"),
    (0x062, "smi"),
    (0x063, "init"),
    (0x064, "vintr"),
    (0x065, "cr0_sel_write"),
    (0x066, "read_idtr"),
    (0x067, "read_gdtr"),
    (0x068, "read_ldtr"),
    (0x069, "read_rt"),
    (0x06a, "write_idtr"),
    (0x06b, "write_gdtr"),
    (0x06c, "write_ldtr"),
    (0x06d, "write_rt"),
    (0x06e, "rdtsc"),
    (0x06f, "rdpmc"),
    (0x070, "pushf"),
    (0x071, "popf"),
    (0x072, "cpuid"),
    (0x073, "rsm"),
    (0x074, "iret"),
    (0x075, "swint"),
    (0x076, "invd"),
    (0x077, "pause"),
    (0x078, "hlt"),
    (0x079, "invlpg"),
    (0x07a, "invlpga"),
    (0x07b, "io"),
    (0x07c, "msr"),
    (0x07d, "task_switch"),
    (0x07e, "ferr_freeze"),
    (0x07f, "shutdown"),
    (0x080, "vmrun"),
    (0x081, "hypercall"),
    (0x082, "vmload"),
    (0x083, "vmsave"),
    (0x084, "stgi"),
    (0x085, "clgi"),
    (0x086, "skinit"),
    (0x087, "rdtscp"),
    (0x088, "icebp"),
    (0x089, "wbinvd"),
    (0x08a, "monitor"),
    (0x08b, "mwait"),
    (0x08d, "xsetbv"),
    (0x08f, "write_efer_trap"),
    (0x090, "write_cr0_trap"),
    (0x094, "write_cr4_trap"),
    (0x098, "write_cr8_trap"),
    (0x0a2, "invpcid"),
    (0x0a5, "buslock"),
    (0x0a6, "idle-halt"),
    (0x400, "npf"),
    (0x401, "avic_incomplete_ipi"),
    (0x402, "avic_unaccelerated_access"),
    (0x403, "vmgexit"),
    (0x8000_0001, "vmgexit_mmio_read"),
    (0x8000_0002, "vmgexit_mmio_write"),
    (0x8000_0003, "vmgexit_nmi_complete"),
    (0x8000_0004, "vmgexit_ap_hlt_loop"),
    (0x8000_0005, "vmgexit_ap_jump_table"),
    (0x8000_0010, "vmgexit_page_state_change"),
    (0x8000_0011, "vmgexit_guest_request"),
    (0x8000_0012, "vmgexit_ext_guest_request"),
    (0x8000_0013, "vmgexit_ap_creation"),
    (0x8000_fffd, "vmgexit_hypervisor_feature"),
    (0xffff_ffff, "invalid_guest_state"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_have_the_names_that_the_kernel_gives_them() {
        for (isa, reason, expected) in [
            (Some(KvmIsa::Vmx), 48, "EPT_VIOLATION (VMX)"),
            (Some(KvmIsa::Vmx), 0x8000_0021, "INVALID_STATE (VMX)"),
            (Some(KvmIsa::Vmx), 999, "999 (VMX)"),
            (Some(KvmIsa::Svm), 0x78, "hlt (SVM)"),
            (Some(KvmIsa::Svm), u32::MAX, "invalid_guest_state (SVM)"),
            (Some(KvmIsa::Svm), 0x8000_0001, "vmgexit_mmio_read (SVM)"),
            (Some(KvmIsa::Svm), 0x500, "0x500 (SVM)"),
            (None, 7, "7"),
        ] {
            assert_eq!(kvm_exit(KvmExit { isa, reason }), expected);
        }
    }

    #[test]
    fn both_instruction_sets_get_the_same_advice() {
        let of = |isa, reason| advice(KvmExit { isa: Some(isa), reason }, 3);
        for (vmx, svm, part) in [
            (1, 0x60, "isolcpus=3"),
            (48, 0x400, "mem-lock=on"),
            (30, 0x7b, "kvm:kvm_pio"),
            (32, 0x7c, "avic=1"),
            (40, 0x77, "vcpupin"),
            (12, 0x78, "halt_poll_ns"),
        ] {
            assert_eq!(of(KvmIsa::Vmx, vmx), of(KvmIsa::Svm, svm));
            assert!(of(KvmIsa::Vmx, vmx).contains(part), "{part}");
        }
    }
}
