// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
// Spans of a packet's way in the host kernel, on tracepoints with types (BTF). Two groups, loaded apart:
//
//   sched  a worker's thread was woken up, until it runs; a thread of a front end was woken up by a worker, which called
//          its guest, until it runs
//   net    a frame came in by a device, until it was handed to a tap; or was taken from a tap by the worker's own
//          write, until another device's driver got it
#include <linux/bpf.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

// Of the kernel's own types only what is read here; where it lies is found out when this is loaded.
struct task_struct {
	int pid;
	int tgid;
	unsigned int __state;
} __attribute__((preserve_access_index));

struct net_device {
	int ifindex;
} __attribute__((preserve_access_index));

struct sk_buff {
	struct net_device *dev;
	// The device that it was last received by; 0 when it was never received, or is another frame since then.
	int skb_iif;
} __attribute__((preserve_access_index));

// `KernelStage` in burst-trace.
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

// A frame on its way.
struct sight {
	// The frame; 0 for none.
	__u64 skb;
	__u64 time;
	__u32 origin;
	__u32 worker;
	// The device that last received it.
	__u32 ifindex;
	__u32 unused;
};

// In a rush not every frame of a device is followed: so many in each of the kernel's ticks,
#define A_TICK 16
// and of those behind them one in so many, a power of two.
#define ONE_IN 64

// One slot a frame, by its address. A frame that comes where another one is that was dropped somewhere takes its place.
#define SLOTS 4096
static struct sight slots[SLOTS];

// How many frames a device has brought in the present tick. Two CPUs that bring some at once may count one less.
struct pace {
	__u64 tick;
	__u64 count;
};

// Devices whose indices differ by a multiple of this share one.
#define PACES 64
static struct pace paces[PACES];

// include/linux/sched.h: __TASK_STOPPED, __TASK_TRACED.
#define HELD (0x4 | 0x8)

// Threads of workers by their id.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, __u32);
} workers SEC(".maps");

// When a worker was woken up that does not run yet.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, __u64);
} woken SEC(".maps");

// Front ends by the process's id: their numbers.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, __u32);
} front_ends SEC(".maps");

// A thread of a front end's that was woken up by a worker and does not run yet.
struct call {
	__u64 time;
	__u32 front_end;
	__u32 unused;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, struct call);
} called SEC(".maps");

// The workers' taps by interface index: their numbers.
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

// Events that found no room.
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

SEC("tp_btf/sched_waking")
int BPF_PROG(waking, struct task_struct *p)
{
	__u32 tid = p->pid, tgid = p->tgid, waker;
	__u32 *front_end;

	// The first of several counts, of either kind.
	if (bpf_map_lookup_elem(&workers, &tid)) {
		__u64 now = bpf_ktime_get_ns();

		bpf_map_update_elem(&woken, &tid, &now, BPF_NOEXIST);
		return 0;
	}
	front_end = bpf_map_lookup_elem(&front_ends, &tgid);
	if (!front_end)
		return 0;
	waker = (__u32)bpf_get_current_pid_tgid();
	if (bpf_map_lookup_elem(&workers, &waker)) {
		struct call call = {
			.time = bpf_ktime_get_ns(),
			.front_end = *front_end,
		};

		bpf_map_update_elem(&called, &tid, &call, BPF_NOEXIST);
	}
	return 0;
}

SEC("tp_btf/sched_switch")
int BPF_PROG(switching, bool preempt, struct task_struct *prev, struct task_struct *next)
{
	__u32 tid = prev->pid;
	struct call *call;
	__u32 *worker;
	__u64 *start;

	// Nothing wakes up a thread that is held by a signal or a debugger: it is kept waiting from here on.
	if ((prev->__state & HELD) && bpf_map_lookup_elem(&workers, &tid)) {
		__u64 now = bpf_ktime_get_ns();

		bpf_map_update_elem(&woken, &tid, &now, BPF_ANY);
	}
	tid = next->pid;
	call = bpf_map_lookup_elem(&called, &tid);
	if (call) {
		tell(INJECT, call->front_end, call->time, bpf_ktime_get_ns());
		bpf_map_delete_elem(&called, &tid);
	}
	worker = bpf_map_lookup_elem(&workers, &tid);
	if (!worker)
		return 0;
	start = bpf_map_lookup_elem(&woken, &tid);
	if (start) {
		tell(WAKEUP, *worker, *start, bpf_ktime_get_ns());
		bpf_map_delete_elem(&woken, &tid);
	}
	return 0;
}

// A number for a frame: the verifier lets an address be told apart from others only as a distance from one of our own.
static __always_inline __u64 key_of(struct sk_buff *skb)
{
	__u64 key = (__u64)skb - (__u64)slots;

	barrier_var(key);
	return key;
}

static __always_inline struct sight *slot_of(__u64 key)
{
	// The first bits are those of the allocator's alignment.
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
		// One that a bridge hands up, or a VLAN: the first time counts.
		if (skb->skb_iif && slot->ifindex == (__u32)skb->skb_iif) {
			slot->ifindex = ifindex;
			return 0;
		}
		// Another frame was there.
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
	// Only now it is that frame's, for any other CPU too.
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
	// Memory of a frame that went elsewhere may be another frame's by now.
	if (sight.ifindex != (__u32)skb->skb_iif)
		return 0;
	ifindex = dev->ifindex;
	tap = bpf_map_lookup_elem(&taps, &ifindex);
	if ((sight.origin == FROM_DEVICE) != !!tap)
		return 0;
	// Whoever takes it out of the slot has copied what belongs to it.
	if (__sync_val_compare_and_swap(&slot->skb, key, 0) != key)
		return 0;
	if (tap)
		tell(HOST_RX, *tap, sight.time, bpf_ktime_get_ns());
	else
		tell(HOST_TX, sight.worker, sight.time, bpf_ktime_get_ns());
	return 0;
}

// The kernel's own list of licences has no other name for one that is compatible with its own.
char LICENSE[] SEC("license") = "Dual BSD/GPL";
