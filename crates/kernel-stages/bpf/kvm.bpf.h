// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
// Exits of KVM: times in which a thread of the front end, a virtual CPU, was outside its guest: in KVM's code or in the front
// end's own. Classic tracepoints, because KVM is often a module without type information.
//
// The time from kvm:kvm_exit to kvm:kvm_entry is an interruption of the guest, with two exceptions.
// - A halt is the guest's own rest: it has nothing to do. It begins with an exit for HLT, or when the thread goes to sleep in
//   KVM_RUN, and it ends with kvm:kvm_vcpu_wakeup, which says how long it took. From then on KVM keeps the guest from running.
// - What is told with another cause is left out: the thread waits for a CPU, or its CPU serves an interrupt.
// So one exit may be told in several parts. Each has the exit's reason.
#pragma once

// Where the fields are in the tracepoints' records, bytes: they differ between versions of the kernel, which describes them
// in the tracepoints' format files.
struct kvm_fields {
	// Of kvm:kvm_exit. The reason has 4 or 8 bytes, the instruction set has 4.
	__u32 exit_reason;
	__u32 exit_reason_size;
	__u32 isa;
	// Of kvm:kvm_vcpu_wakeup: the length of the halt, ns, 8 bytes.
	__u32 ns;
};

// Set before the programs are loaded.
const volatile struct kvm_fields kvm_fields SEC(".rodata.kvm") = {};

// A virtual CPU.
struct vcpu {
	// Since when it is outside its guest, as far as that is not told yet; 0 in the guest and in a halt.
	__u64 outside;
	// The last exit (`exit_of`).
	__u32 exit;
	__u32 unused;
};

// By thread id.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, struct vcpu);
} vcpus SEC(".maps");

// arch/x86/kvm/trace.h: KVM_ISA_VMX, KVM_ISA_SVM.
#define VMX 1
#define SVM 2
// arch/x86/include/uapi/asm/vmx.h: EXIT_REASON_HLT; svm.h: SVM_EXIT_HLT, SVM_EXIT_IDLE_HLT.
#define VMX_HLT 12
#define SVM_HLT 0x78
#define SVM_IDLE_HLT 0xa6
// Of a reason on VMX: the reason itself, and whether the entry failed. The other bits are flags.
#define VMX_REASON 0x8000ffff

// An exit in one number, `detail` of its interruption: the instruction set in the highest byte; then the highest bit of the
// reason, which has 32 bits; then its lowest 23 bits. No two reasons of an instruction set have the same.
#define EXIT(isa, reason) ((isa) << 24 | ((reason) >> 31 & 1) << 23 | ((reason) & 0x7fffff))

// The exit in a record of kvm:kvm_exit.
static __always_inline __u32 exit_of(void *record)
{
	__u64 wide = 0;
	__u32 reason = 0, isa = 0;

	if (kvm_fields.exit_reason_size == sizeof(wide)) {
		bpf_probe_read_kernel(&wide, sizeof(wide), record + kvm_fields.exit_reason);
		reason = wide;
	} else {
		bpf_probe_read_kernel(&reason, sizeof(reason), record + kvm_fields.exit_reason);
	}
	bpf_probe_read_kernel(&isa, sizeof(isa), record + kvm_fields.isa);
	if (isa == VMX)
		reason &= VMX_REASON;
	return EXIT(isa, reason);
}

static __always_inline bool is_halt(__u32 exit)
{
	return exit == EXIT(VMX, VMX_HLT) || exit == EXIT(SVM, SVM_HLT) || exit == EXIT(SVM, SVM_IDLE_HLT);
}

// The virtual CPU that runs on this CPU, if one does.
static __always_inline struct vcpu *vcpu_on(struct cpu *cpu)
{
	if (cpu->of.subject != FRONT_END)
		return 0;
	return bpf_map_lookup_elem(&vcpus, &cpu->thread);
}

// Tells the time outside the guest until `until`. If there is more, it begins at `next`, otherwise that is 0.
static __always_inline void tell_outside(struct cpu *cpu, struct vcpu *vcpu, __u64 until, __u64 next)
{
	if (vcpu->outside && until >= vcpu->outside + SHORTEST)
		tell_here(cpu, KVM_EXIT, vcpu->exit, vcpu->outside, until, 0);
	vcpu->outside = next;
}

// The thread on this CPU has lost the time from `start` to `end` to another cause.
static __always_inline void leave_out(struct cpu *cpu, __u64 start, __u64 end)
{
	struct vcpu *vcpu = vcpu_on(cpu);

	if (vcpu && vcpu->outside)
		tell_outside(cpu, vcpu, start, end);
}

// include/linux/sched.h: TASK_INTERRUPTIBLE, TASK_DEAD.
#define INTERRUPTIBLE 0x1
#define DEAD 0x80
// ioctl, by which a front end asks for KVM_RUN.
#if defined(__TARGET_ARCH_x86)
#define IOCTL 16
#else
#define IOCTL 29
#endif

// A thread of the front end goes to sleep in the system call `call`.
static __always_inline void sleeps(struct task_struct *thread, long call)
{
	__u32 tid = thread->pid;
	struct vcpu *vcpu;

	if (!(thread->__state & INTERRUPTIBLE) || call != IOCTL)
		return;
	vcpu = bpf_map_lookup_elem(&vcpus, &tid);
	if (vcpu)
		vcpu->outside = 0;
}

SEC("tracepoint/kvm/kvm_exit")
int leaving_guest(void *record)
{
	struct cpu *cpu = this_cpu();
	struct vcpu new = {}, *vcpu;

	if (!cpu || cpu->of.subject != FRONT_END)
		return 0;
	new.exit = exit_of(record);
	if (!is_halt(new.exit))
		new.outside = bpf_ktime_get_ns();
	vcpu = vcpu_on(cpu);
	if (vcpu)
		*vcpu = new;
	else
		bpf_map_update_elem(&vcpus, &cpu->thread, &new, BPF_ANY);
	return 0;
}

SEC("tracepoint/kvm/kvm_entry")
int entering_guest(void *record)
{
	struct cpu *cpu = this_cpu();
	struct vcpu *vcpu = cpu ? vcpu_on(cpu) : 0;

	if (vcpu && vcpu->outside)
		tell_outside(cpu, vcpu, bpf_ktime_get_ns(), 0);
	return 0;
}

SEC("tracepoint/kvm/kvm_vcpu_wakeup")
int ending_halt(void *record)
{
	struct cpu *cpu = this_cpu();
	struct vcpu *vcpu = cpu ? vcpu_on(cpu) : 0;
	__u64 now, halted = 0;

	if (!vcpu)
		return 0;
	now = bpf_ktime_get_ns();
	bpf_probe_read_kernel(&halted, sizeof(halted), record + kvm_fields.ns);
	tell_outside(cpu, vcpu, now - halted, now);
	return 0;
}
