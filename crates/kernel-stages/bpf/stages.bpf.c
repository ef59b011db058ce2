// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
// Measures spans of a packet's path in the host kernel, on BTF tracepoints. Two groups, loaded separately:
//
// sched: from the wake-up of a worker's thread until it runs; from the wake-up of a front end's thread by a worker that
// signals its guest, until that thread runs. And interruptions (`interruptions.bpf.h`): times in which a thread that
// packets wait for did not run, and why.
// net: from a frame's reception by a device until it is handed to a tap; from a frame's reception by a tap, in the
// worker's own write, until another device's driver gets it.
#include <linux/bpf.h>
#include <stdbool.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

// Only those fields of the kernel's types that are read here. Their offsets are found when the programs are loaded.
struct rq {
	// The hypervisor's count of stolen time, as it was when this CPU last looked at its clock. It does so each time that it
	// chooses a thread, and in each tick (`update_rq_clock_task` in kernel/sched/core.c).
	__u64 prev_steal_time_rq;
} __attribute__((preserve_access_index));

struct cfs_rq {
	int throttle_count;
	struct rq *rq;
} __attribute__((preserve_access_index));

struct sched_entity {
	struct cfs_rq *cfs_rq;
} __attribute__((preserve_access_index));

struct task_struct {
	int pid;
	int tgid;
	unsigned int flags;
	unsigned int __state;
	unsigned long jobctl;
	char comm[16];
	unsigned int policy;
	unsigned int rt_priority;
	int static_prio;
	// Since Linux 6.18: its group has used up its quota.
	bool throttled;
	// Before that, its group's queue says so.
	struct sched_entity se;
} __attribute__((preserve_access_index));

struct net_device {
	int ifindex;
} __attribute__((preserve_access_index));

struct sk_buff {
	struct net_device *dev;
	// The device that last received it; 0 if none did, or if the memory has become another frame since.
	int skb_iif;
} __attribute__((preserve_access_index));

// The numbers of `KernelStage` in burst-trace.
enum stage {
	WAKEUP = 1,
	HOST_TX = 2,
	HOST_RX = 3,
	INJECT = 4,
};

// Where a frame was first seen.
enum origin {
	FROM_WORKER = 1,
	FROM_DEVICE = 2,
};

struct event {
	// CLOCK_MONOTONIC, ns.
	__u64 start;
	__u64 end;
	__u32 stage;
	// The number of the worker, of the tap, or of the front end.
	__u32 about;
};

// A frame that is followed.
struct sight {
	// The frame's key (`key_of`); 0 for none.
	__u64 skb;
	__u64 time;
	__u32 origin;
	__u32 worker;
	// The device that last received it.
	__u32 ifindex;
	__u32 unused;
};

// Under load frames are sampled. Per device, this many frames are followed first in each kernel tick,
#define A_TICK 16
// then one in this many, a power of two.
#define ONE_IN 64

// One slot per frame, chosen by its address. A frame that was dropped somewhere keeps its slot until another frame
// takes that slot.
#define SLOTS 4096
static struct sight slots[SLOTS];

// Number of frames that a device received in the current tick. Two CPUs that count at once may count one too few.
struct pace {
	__u64 tick;
	__u64 count;
};

// Devices whose indices differ by a multiple of this share one entry.
#define PACES 64
static struct pace paces[PACES];

// include/linux/sched.h: __TASK_STOPPED, __TASK_TRACED, TASK_FROZEN.
#define FROZEN 0x8000
#define HELD (0x4 | 0x8 | FROZEN)

// The workers' taps: from interface index to number.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, __u32);
} taps SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 18);
} events SEC(".maps");

// Number of events that found no room in `events`.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} lost SEC(".maps");

static __always_inline void tell(__u32 stage, __u32 about, __u64 start, __u64 end)
{
	struct event *event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);

	if (!event) {
		__u32 first = 0;
		__u64 *count = bpf_map_lookup_elem(&lost, &first);

		if (count)
			__sync_fetch_and_add(count, 1);
		return;
	}
	event->start = start;
	event->end = end;
	event->stage = stage;
	event->about = about;
	bpf_ringbuf_submit(event, 0);
}

#include "threads.bpf.h"
#include "interruptions.bpf.h"

SEC("tp_btf/sched_waking")
int BPF_PROG(waking, struct task_struct *p)
{
	struct thread *thread = followed(p);
	__u32 waker;
	__u64 now;

	if (!thread)
		return 0;
	now = bpf_ktime_get_ns();
	// The earliest one counts, be it a wake-up here or a stop in `switching`.
	if (!thread->woken)
		thread->woken = now;
	if (thread->of.subject != FRONT_END || thread->called)
		return 0;
	waker = (__u32)bpf_get_current_pid_tgid();
	if (bpf_map_lookup_elem(&workers, &waker))
		thread->called = now;
	return 0;
}

SEC("tp_btf/sched_switch")
int BPF_PROG(switching, bool preempt, struct task_struct *prev, struct task_struct *next)
{
	struct cpu *cpu = this_cpu();
	struct thread *from, *to;
	__u64 now, woken;

	if (!cpu)
		return 0;
	// Whose thread it is was found when it began to run, unless its process has been added since.
	from = cpu->of.subject && cpu->thread == (__u32)prev->pid ? known(&cpu->of, prev) : followed(prev);
	to = followed(next);
	now = bpf_ktime_get_ns();
	account_stolen(cpu, now, from ?: to, next);
	ran(cpu, now, prev);
	if (from)
		leaves(now, from, prev, next, preempt);
	runs(cpu, to, next);
	if (!to)
		return 0;
	woken = to->woken;
	comes_back(cpu, now, to, prev);
	if (to->called) {
		tell(INJECT, to->of.number, to->called, now);
		to->called = 0;
	}
	if (woken) {
		if (to->of.subject == WORKER)
			tell(WAKEUP, to->of.number, woken, now);
		to->woken = 0;
	}
	return 0;
}

// Key of a frame. The verifier lets us compare a frame's address only as its distance from an address of our own.
static __always_inline __u64 key_of(struct sk_buff *skb)
{
	__u64 key = (__u64)skb - (__u64)slots;

	barrier_var(key);
	return key;
}

static __always_inline struct sight *slot_of(__u64 key)
{
	// The low bits do not differ between frames: the allocator aligns them.
	return &slots[(key >> 6) % SLOTS];
}

static __always_inline bool is_followed(__u32 ifindex)
{
	struct pace *pace = &paces[ifindex % PACES];
	__u64 tick = bpf_jiffies64();

	if (pace->tick != tick) {
		pace->tick = tick;
		pace->count = 0;
	}
	return pace->count++ < A_TICK || pace->count % ONE_IN == 0;
}

SEC("tp_btf/netif_receive_skb")
int BPF_PROG(receiving, struct sk_buff *skb)
{
	__u32 ifindex = skb->dev->ifindex;
	__u64 key = key_of(skb);
	struct sight *slot = slot_of(key);
	__u32 origin = FROM_DEVICE, from = 0;
	__u64 now;

	if (slot->skb == key) {
		// The same frame, passed up by a bridge or a VLAN device: its first reception counts.
		if (skb->skb_iif && slot->ifindex == (__u32)skb->skb_iif) {
			slot->ifindex = ifindex;
			return 0;
		}
		// The slot holds an earlier frame.
		slot->skb = 0;
	}
	if (!is_followed(ifindex))
		return 0;
	now = bpf_ktime_get_ns();
	if (bpf_map_lookup_elem(&taps, &ifindex)) {
		__u32 tid = (__u32)bpf_get_current_pid_tgid();
		__u32 *worker = bpf_map_lookup_elem(&workers, &tid);

		if (!worker)
			return 0;
		origin = FROM_WORKER;
		from = *worker;
	}
	slot->skb = 0;
	slot->time = now;
	slot->origin = origin;
	slot->worker = from;
	slot->ifindex = ifindex;
	// Written last: only from now on does the slot belong to the frame, on every CPU.
	__sync_lock_test_and_set(&slot->skb, key);
	return 0;
}

SEC("tp_btf/net_dev_start_xmit")
int BPF_PROG(transmitting, struct sk_buff *skb, struct net_device *dev)
{
	__u64 key = key_of(skb);
	struct sight *slot = slot_of(key);
	struct sight sight;
	__u32 ifindex;
	__u32 *tap;

	if (slot->skb != key)
		return 0;
	sight = *slot;
	// If the frame took another path, its memory may hold another frame by now.
	if (sight.ifindex != (__u32)skb->skb_iif)
		return 0;
	ifindex = dev->ifindex;
	tap = bpf_map_lookup_elem(&taps, &ifindex);
	if ((sight.origin == FROM_DEVICE) != !!tap)
		return 0;
	// If the slot still holds the key, the copy above belongs to this frame. Only one CPU can take it out.
	if (__sync_val_compare_and_swap(&slot->skb, key, 0) != key)
		return 0;
	if (tap)
		tell(HOST_RX, *tap, sight.time, bpf_ktime_get_ns());
	else
		tell(HOST_TX, sight.worker, sight.time, bpf_ktime_get_ns());
	return 0;
}

// In the kernel's list of licences, no other name stands for one that is compatible with the kernel's own.
char LICENSE[] SEC("license") = "Dual BSD/GPL";
