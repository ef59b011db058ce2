// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
// Interruptions: times in which a followed thread did not run although it could or should have, and why. A thread that
// waits for work (a worker in epoll_wait, a front end's thread in ppoll) is not interrupted.
#pragma once

// The numbers of `InterruptionCause` in burst-trace, after INTERRUPTION.
#define INTERRUPTION 0x100
enum cause {
	PREEMPTED = 1,
	THROTTLED = 2,
	STOPPED = 3,
	BLOCKED = 4,
	PAGE_FAULT = 5,
	INTERRUPT = 6,
	SOFTIRQ = 7,
	HYPERVISOR = 8,
	PRINTK = 9,
	KVM_EXIT = 10,
};

// Shorter ones are not told, ns.
#define SHORTEST 2000
// Of stolen time, which the kernel only sums up, ns.
#define STOLEN_SHORTEST 20000
// A softirq that begins this soon after an interrupt's end is the interrupt's. Others are the thread's own work, as when a
// frame that a worker sends is received on the other side of a tap. ns.
#define SOON 5000
// Of messages in quick succession, one in this time is told, ns. Programs can print faster than anybody reads.
#define PRINTED_APART 20000

struct interruption {
	// CLOCK_MONOTONIC, ns.
	__u64 start;
	__u64 end;
	// INTERRUPTION + cause.
	__u32 kind;
	// The number of the worker or of the front end.
	__u32 about;
	__u32 subject;
	__u32 thread;
	// What the cause says more: the number of a system call, an interrupt or a softirq; stolen time, ns; an exit of KVM.
	__u32 detail;
	__u32 cpu;
	// The culprit.
	__u32 process;
	__u32 culprit;
	__u32 policy;
	__u32 priority;
	char command[16];
};

// A thread that ran on a CPU, and when. What took less than LONG in between does not end it.
struct stint {
	__u64 start;
	__u64 end;
	__u32 process;
	__u32 thread;
	__u32 policy;
	__u32 priority;
	char command[16];
};

// Shorter stints are not kept, ns.
#define LONG 50000
// Stints that are kept, a power of two.
#define STINTS 8

// Softirqs on a CPU that follow each other within LONG, whatever thread stands there: they belong to no thread.
struct service {
	__u64 start;
	__u64 end;
	// How much of that time they took, ns.
	__u64 took;
	// The number of the latest.
	__u64 softirq;
};

// Services that are kept, a power of two.
#define SERVICES 8
// Longest time of a service, ns: in a flood that goes on, another one begins then.
#define SERVICE_LONGEST 100000000

// What a CPU does.
struct cpu {
	// When its thread began to run.
	__u64 since;
	// How long the thread before that ran.
	__u64 before;
	// The last stints, in a circle, and the number of the latest.
	struct stint stints[STINTS];
	__u64 latest;
	// The followed thread that runs on it, if one does.
	struct process of;
	__u32 thread;
	__u32 unused;
	// When the current interrupt or softirq of interest began; 0 without one.
	__u64 interrupt;
	__u64 softirq;
	// When the last interrupt, or softirq after it, ended; 0 if that was long ago.
	__u64 interrupted;
	// The last services, in a circle, and the number of the latest.
	struct service services[SERVICES];
	__u64 last_service;
	// Stolen time that is accounted for, and when that was.
	__u64 stolen;
	__u64 stolen_at;
	// The latest theft of some length, which lay within this time.
	__u64 theft_start;
	__u64 theft_end;
	__u64 theft;
	// When its thread's latest message was told; 0 without one.
	__u64 printed;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct cpu);
} cpus SEC(".maps");

static __always_inline struct cpu *this_cpu(void)
{
	__u32 first = 0;

	return bpf_map_lookup_elem(&cpus, &first);
}

static __always_inline struct interruption *begin_telling(void)
{
	struct interruption *it = bpf_ringbuf_reserve(&events, sizeof(*it), 0);

	if (!it) {
		__u32 first = 0;
		__u64 *count = bpf_map_lookup_elem(&lost, &first);

		if (count)
			__sync_fetch_and_add(count, 1);
	}
	return it;
}

// An interruption of the thread that runs on this CPU, by `command` of at most 16 bytes.
static __always_inline void tell_here(struct cpu *cpu, __u32 cause, __u32 detail, __u64 start, __u64 end,
				      const char *command)
{
	struct interruption *it = begin_telling();

	if (!it)
		return;
	__builtin_memset(it, 0, sizeof(*it));
	it->start = start;
	it->end = end;
	it->kind = INTERRUPTION + cause;
	it->about = cpu->of.number;
	it->subject = cpu->of.subject;
	it->thread = cpu->thread;
	it->detail = detail;
	it->cpu = bpf_get_smp_processor_id();
	if (command)
		bpf_probe_read_kernel_str(it->command, sizeof(it->command), command);
	bpf_ringbuf_submit(it, 0);
}

#include "kvm.bpf.h"

// What the hypervisor has taken from this CPU, ns. `running`: the thread that runs on it; the CPU's queue is found by it.
static __always_inline __u64 stolen_so_far(struct task_struct *running)
{
	if (!bpf_core_field_exists(struct sched_entity, cfs_rq) || !bpf_core_field_exists(struct cfs_rq, rq) ||
	    !bpf_core_field_exists(struct rq, prev_steal_time_rq))
		return 0;
	return running->se.cfs_rq->rq->prev_steal_time_rq;
}

// Tells what the hypervisor took since this CPU last accounted for it. It is the loss of the followed thread that ran or that runs
// now, if there is one.
static __always_inline void account_stolen(struct cpu *cpu, __u64 now, struct thread *thread, struct task_struct *running)
{
	__u64 stolen = stolen_so_far(running), before = cpu->stolen, since = cpu->stolen_at;

	cpu->stolen = stolen;
	cpu->stolen_at = now;
	if (!since || stolen < before + STOLEN_SHORTEST)
		return;
	stolen -= before;
	if (stolen > 0xffffffff)
		stolen = 0xffffffff;
	cpu->theft_start = since;
	cpu->theft_end = now;
	cpu->theft = stolen;
	if (!thread)
		return;
	cpu->of = thread->of;
	cpu->thread = thread->id;
	tell_here(cpu, HYPERVISOR, stolen, since, now, 0);
}

// `next` runs on this CPU from now on. `to`: its entry, if it is followed.
static __always_inline void runs(struct cpu *cpu, struct thread *to, struct task_struct *next)
{
	struct process nobody = {};

	cpu->of = to ? to->of : nobody;
	cpu->thread = next->pid;
	cpu->interrupt = 0;
	cpu->softirq = 0;
	cpu->printed = 0;
}

// 1 to 99 in a real-time class, otherwise the nice value plus 20.
static __always_inline __u32 priority_of(struct task_struct *task)
{
	return task->rt_priority ?: (__u32)(task->static_prio - 100);
}

// `prev` ran on this CPU until now.
static __always_inline void ran(struct cpu *cpu, __u64 now, struct task_struct *prev)
{
	struct stint *stint;
	__u64 start = cpu->since;

	cpu->since = now;
	cpu->before = now - start;
	if (!start || !prev->pid || now - start < LONG)
		return;
	stint = &cpu->stints[cpu->latest & (STINTS - 1)];
	if (stint->thread == prev->pid && start < stint->end + LONG) {
		stint->end = now;
		return;
	}
	cpu->latest++;
	stint = &cpu->stints[cpu->latest & (STINTS - 1)];
	stint->start = start;
	stint->end = now;
	stint->process = prev->tgid;
	stint->thread = prev->pid;
	stint->policy = prev->policy;
	stint->priority = priority_of(prev);
	bpf_probe_read_kernel(stint->command, sizeof(stint->command), prev->comm);
}

// A softirq ran on this CPU.
static __always_inline void served(struct cpu *cpu, __u32 number, __u64 start, __u64 end)
{
	struct service *service = &cpu->services[cpu->last_service & (SERVICES - 1)];

	if (start < service->end + LONG && start < service->start + SERVICE_LONGEST) {
		service->end = end;
		service->took += end - start;
		service->softirq = number;
		return;
	}
	// What took less than anybody is blamed for makes room.
	if (service->took > SHORTEST) {
		cpu->last_service++;
		service = &cpu->services[cpu->last_service & (SERVICES - 1)];
	}
	service->start = start;
	service->end = end;
	service->took = end - start;
	service->softirq = number;
}

// How much of a time softirqs took of this CPU, ns, and the number of the one that stands for them: of the service that took most.
// A service that began before is taken to have gone on evenly.
static __always_inline __u64 taken_by_softirqs(struct cpu *cpu, __u64 start, __u64 end, __u32 *softirq)
{
	__u64 sum = 0, most = 0;
	int n;

	for (n = 0; n < SERVICES; n++) {
		struct service *service = &cpu->services[n];
		__u64 from = service->start > start ? service->start : start;
		__u64 to = service->end < end ? service->end : end;
		__u64 took = service->took, length = service->end - service->start;

		if (to <= from)
			continue;
		if (to - from < length)
			took = took * (to - from) / length;
		sum += took;
		if (took > most) {
			most = took;
			*softirq = service->softirq;
		}
	}
	return sum;
}

// Nobody is blamed by name.
static __always_inline void blame_cause(struct interruption *it, __u32 cause, __u32 detail)
{
	it->kind = INTERRUPTION + cause;
	it->detail = detail;
	it->process = 0;
	it->culprit = 0;
	it->policy = 0;
	it->priority = 0;
	__builtin_memset(it->command, 0, sizeof(it->command));
}

// Blames the stint on this CPU that took most of a wait, if that is more than `least`: others may have run before or after it.
static __always_inline void blame_longest(struct interruption *it, struct cpu *cpu, __u64 least)
{
	struct stint *longest = 0;
	__u64 from = 0, to = 0;
	__u32 softirq = 0;
	int n;

	for (n = 0; n < STINTS; n++) {
		struct stint *stint = &cpu->stints[n];
		__u64 start = stint->start > it->start ? stint->start : it->start;
		__u64 end = stint->end < it->end ? stint->end : it->end;

		if (end > start && end - start > least) {
			longest = stint;
			least = end - start;
			from = start;
			to = end;
		}
	}
	if (!longest)
		return;
	if (taken_by_softirqs(cpu, from, to, &softirq) > (to - from) / 2) {
		blame_cause(it, SOFTIRQ, softirq);
		return;
	}
	it->process = longest->process;
	it->culprit = longest->thread;
	it->policy = longest->policy;
	it->priority = longest->priority;
	__builtin_memcpy(it->command, longest->command, sizeof(it->command));
}

// A wait for a thread that had this CPU is the hypervisor's or a softirq's, if that took most of it away from that thread.
// Returns whether it is.
static __always_inline bool blame_what_ran_on_top(struct interruption *it, struct cpu *cpu)
{
	__u64 wait = it->end - it->start, stolen = cpu->theft_end > it->start ? cpu->theft : 0;
	__u64 earlier = it->start > cpu->theft_start ? it->start - cpu->theft_start : 0, taken;
	__u32 softirq = 0;

	// What is counted may have been stolen before the wait, as far as there was time for it.
	stolen = stolen > earlier ? stolen - earlier : 0;
	if (stolen > wait / 2) {
		blame_cause(it, HYPERVISOR, stolen < wait ? stolen : wait);
		return true;
	}
	taken = taken_by_softirqs(cpu, it->start, it->end, &softirq);
	if (taken <= SHORTEST || taken <= wait / 2)
		return false;
	blame_cause(it, SOFTIRQ, softirq);
	return true;
}

static __always_inline bool is_throttled(struct task_struct *task)
{
	if (bpf_core_field_exists(task->throttled))
		return task->throttled;
	if (bpf_core_field_exists(task->se.cfs_rq))
		return task->se.cfs_rq->throttle_count > 0;
	return false;
}

// The registers with which a thread entered the kernel, by architecture.
struct pt_regs___x86 {
	unsigned long orig_ax;
} __attribute__((preserve_access_index));

struct pt_regs___arm64 {
	int syscallno;
} __attribute__((preserve_access_index));

// The system call in which a thread is; below 0 in none, as in a page fault.
static __always_inline long system_call(struct task_struct *task)
{
	void *regs = (void *)bpf_task_pt_regs(task);

	if (bpf_core_field_exists(((struct pt_regs___x86 *)regs)->orig_ax))
		return ((struct pt_regs___x86 *)regs)->orig_ax;
	if (bpf_core_field_exists(((struct pt_regs___arm64 *)regs)->syscallno))
		return ((struct pt_regs___arm64 *)regs)->syscallno;
	return 0;
}

// How a worker waits for work: epoll_wait, epoll_pwait, epoll_pwait2 (arch/x86/entry/syscalls/syscall_64.tbl,
// include/uapi/asm-generic/unistd.h).
static __always_inline bool is_rest(long call)
{
#if defined(__TARGET_ARCH_x86)
	return call == 232 || call == 281 || call == 441;
#else
	return call == 22 || call == 441;
#endif
}

// sched_yield, by which a worker without work gives its CPU to others.
#if defined(__TARGET_ARCH_x86)
#define YIELD 24
#else
#define YIELD 124
#endif

// include/linux/sched/jobctl.h: JOBCTL_TRAP_FREEZE. include/linux/sched.h: TASK_UNINTERRUPTIBLE.
#define TRAP_FREEZE (1UL << 23)
#define UNINTERRUPTIBLE 0x2

// Why a thread leaves its CPU in the system call `call`; 0 for reasons that are no interruption.
static __always_inline __u32 cause_of(__u32 subject, struct task_struct *prev, bool preempt, long call, __u32 *detail)
{
	__u32 state = prev->__state;

	*detail = 0;
	if (preempt || !state)
		return is_throttled(prev) ? THROTTLED : PREEMPTED;
	if (state & HELD) {
		*detail = !!(state & FROZEN);
		return STOPPED;
	}
	if (prev->jobctl & TRAP_FREEZE) {
		*detail = 1;
		return STOPPED;
	}
	if (subject == WORKER) {
		if (call < 0)
			return PAGE_FAULT;
		*detail = call;
		return is_rest(call) ? 0 : BLOCKED;
	}
	return (state & UNINTERRUPTIBLE) && call < 0 ? PAGE_FAULT : 0;
}

// A followed thread stops running: `next` runs in its place.
static __always_inline void leaves(__u64 now, struct thread *from, struct task_struct *prev, struct task_struct *next,
				   bool preempt)
{
	struct absence *it = &from->absence;
	__u32 state = prev->__state, tid = prev->pid;
	long call = system_call(prev);

	if (state & DEAD) {
		bpf_map_delete_elem(&vcpus, &tid);
		bpf_map_delete_elem(&threads, &tid);
		return;
	}
	// A wake-up that found it running. One that is younger may be for the sleep that begins now.
	if (from->woken && from->woken + SOON < now)
		from->woken = 0;
	// While a signal or a debugger stops a thread, nothing wakes it up. So its wait begins here.
	if (from->of.subject == WORKER && state & HELD)
		from->woken = now;
	it->cause = cause_of(from->of.subject, prev, preempt, call, &it->detail);
	if (!it->cause) {
		if (from->of.subject == FRONT_END)
			sleeps(prev, call);
		return;
	}
	it->time = now;
	it->cpu = bpf_get_smp_processor_id();
	it->least = SHORTEST;
	// Nothing else can run: its group must have been held back.
	if (it->cause == PREEMPTED && !next->pid)
		it->cause = THROTTLED;
	if (it->cause != PREEMPTED)
		return;
	// A thread that gives way has nothing to do just then.
	if (!preempt && call == YIELD)
		it->least = LONG;
	it->process = next->tgid;
	it->culprit = next->pid;
	it->policy = next->policy;
	it->priority = priority_of(next);
	bpf_probe_read_kernel(it->command, sizeof(it->command), next->comm);
}

// An interruption of the followed thread `to` that is over.
static __always_inline struct interruption *begin_telling_of(struct thread *to, __u64 start, __u64 end)
{
	struct interruption *it = begin_telling();

	if (!it)
		return 0;
	__builtin_memset(it, 0, sizeof(*it));
	it->start = start;
	it->end = end;
	it->about = to->of.number;
	it->subject = to->of.subject;
	it->thread = to->id;
	return it;
}

// A followed thread runs again. It was ready at `ready`, but had to wait for the thread that ran until now, or for what ran on
// top of that. Returns whether it had.
static __always_inline bool tell_wait(struct cpu *cpu, __u64 ready, __u64 now, struct thread *to, struct task_struct *prev)
{
	struct interruption *it = begin_telling_of(to, ready, now);

	if (!it)
		return false;
	it->cpu = bpf_get_smp_processor_id();
	if (!blame_what_ran_on_top(it, cpu)) {
		// An idle CPU has no thread that runs.
		if (!prev->pid) {
			bpf_ringbuf_discard(it, 0);
			return false;
		}
		it->kind = INTERRUPTION + PREEMPTED;
		it->process = prev->tgid;
		it->culprit = prev->pid;
		it->policy = prev->policy;
		it->priority = priority_of(prev);
		bpf_probe_read_kernel(it->command, sizeof(it->command), prev->comm);
		blame_longest(it, cpu, cpu->before);
	}
	bpf_ringbuf_submit(it, 0);
	return true;
}

// Tells why a followed thread did not run until `ready`.
static __always_inline void tell_absence(struct cpu *cpu, __u64 ready, struct thread *to)
{
	struct absence *absence = &to->absence;
	struct interruption *it = begin_telling_of(to, absence->time, ready);

	if (!it)
		return;
	it->kind = INTERRUPTION + absence->cause;
	it->detail = absence->detail;
	it->cpu = absence->cpu;
	if (absence->cause == PREEMPTED) {
		it->process = absence->process;
		it->culprit = absence->culprit;
		it->policy = absence->policy;
		it->priority = absence->priority;
		__builtin_memcpy(it->command, absence->command, sizeof(it->command));
		if (!blame_what_ran_on_top(it, cpu))
			blame_longest(it, cpu, LONG);
	}
	bpf_ringbuf_submit(it, 0);
}

// A followed thread runs again. It was ready since it was woken up, or all the time if that was before it left.
static __always_inline void comes_back(struct cpu *cpu, __u64 now, struct thread *to, struct task_struct *prev)
{
	struct absence *absence = &to->absence;
	// When the time begins that is told here; 0 if none is.
	__u64 ready = now, told = 0;

	if (to->woken && (!absence->cause || to->woken > absence->time))
		ready = to->woken;
	if (absence->cause) {
		if (ready > absence->time + absence->least) {
			told = absence->time;
			tell_absence(cpu, ready, to);
		}
		absence->cause = 0;
	}
	if (now > ready + SHORTEST && tell_wait(cpu, ready, now, to, prev))
		told = told ?: ready;
	if (told)
		leave_out(cpu, told, now);
}

static __always_inline int interrupt_begins(void)
{
	struct cpu *cpu = this_cpu();

	if (cpu && cpu->of.subject)
		cpu->interrupt = bpf_ktime_get_ns();
	return 0;
}

static __always_inline int interrupt_ends(__u32 number, const char *name)
{
	struct cpu *cpu = this_cpu();
	__u64 now;

	if (!cpu || !cpu->of.subject)
		return 0;
	now = bpf_ktime_get_ns();
	if (cpu->interrupt && now - cpu->interrupt >= SHORTEST) {
		tell_here(cpu, INTERRUPT, number, cpu->interrupt, now, name);
		leave_out(cpu, cpu->interrupt, now);
	}
	cpu->interrupt = 0;
	cpu->interrupted = now;
	return 0;
}

struct irqaction {
	const char *name;
} __attribute__((preserve_access_index));

SEC("tp_btf/irq_handler_entry")
int BPF_PROG(device_begins)
{
	return interrupt_begins();
}

SEC("tp_btf/irq_handler_exit")
int BPF_PROG(device_ends, int irq, struct irqaction *action)
{
	return interrupt_ends(irq, action->name);
}

SEC("tp_btf/local_timer_entry")
int BPF_PROG(timer_begins)
{
	return interrupt_begins();
}

SEC("tp_btf/local_timer_exit")
int BPF_PROG(timer_ends, int vector)
{
	struct cpu *cpu = this_cpu();

	// A thread that polls leaves its CPU for nobody: the tick accounts for what was stolen from it.
	if (cpu && cpu->of.subject) {
		__u64 now = bpf_ktime_get_ns(), stolen = stolen_so_far(bpf_get_current_task_btf());

		if (cpu->stolen_at && stolen >= cpu->stolen + STOLEN_SHORTEST && stolen - cpu->stolen <= 0xffffffff)
			tell_here(cpu, HYPERVISOR, stolen - cpu->stolen, cpu->stolen_at, now, 0);
		cpu->stolen = stolen;
		cpu->stolen_at = now;
	}
	return interrupt_ends(vector, "LOC");
}

SEC("tp_btf/reschedule_entry")
int BPF_PROG(reschedule_begins)
{
	return interrupt_begins();
}

SEC("tp_btf/reschedule_exit")
int BPF_PROG(reschedule_ends, int vector)
{
	return interrupt_ends(vector, "RES");
}

SEC("tp_btf/call_function_entry")
int BPF_PROG(call_begins)
{
	return interrupt_begins();
}

SEC("tp_btf/call_function_exit")
int BPF_PROG(call_ends, int vector)
{
	return interrupt_ends(vector, "CAL");
}

SEC("tp_btf/call_function_single_entry")
int BPF_PROG(single_call_begins)
{
	return interrupt_begins();
}

SEC("tp_btf/call_function_single_exit")
int BPF_PROG(single_call_ends, int vector)
{
	return interrupt_ends(vector, "CAL");
}

SEC("tp_btf/softirq_entry")
int BPF_PROG(softirq_begins)
{
	struct cpu *cpu = this_cpu();
	__u64 now;

	// Most softirqs of a followed thread are its own work: they come without an interrupt, and cost no look at the clock.
	if (!cpu || (cpu->of.subject && !cpu->interrupted))
		return 0;
	now = bpf_ktime_get_ns();
	if (!cpu->of.subject || now - cpu->interrupted < SOON)
		cpu->softirq = now;
	else
		cpu->interrupted = 0;
	return 0;
}

SEC("tp_btf/softirq_exit")
int BPF_PROG(softirq_ends, unsigned int number)
{
	struct cpu *cpu = this_cpu();
	__u64 now, start;

	if (!cpu || !cpu->softirq)
		return 0;
	now = bpf_ktime_get_ns();
	start = cpu->softirq;
	cpu->softirq = 0;
	served(cpu, number, start, now);
	if (!cpu->of.subject)
		return 0;
	if (now - start >= SHORTEST) {
		tell_here(cpu, SOFTIRQ, number, start, now, 0);
		leave_out(cpu, start, now);
	}
	// The next one may be the interrupt's, too.
	cpu->interrupted = now;
	return 0;
}

SEC("tp_btf/bpf_trace_printk")
int BPF_PROG(printing)
{
	struct cpu *cpu = this_cpu();
	__u64 now;

	if (!cpu || !cpu->of.subject)
		return 0;
	now = bpf_ktime_get_ns();
	if (cpu->printed && now - cpu->printed < PRINTED_APART)
		return 0;
	cpu->printed = now;
	tell_here(cpu, PRINTK, 0, now, now, 0);
	return 0;
}
