// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
// Spans of a packet's way in the host kernel, on tracepoints with types (BTF). Two groups, loaded apart:
//
//   sched  a worker's thread was woken up, until it runs
//   net    a frame came in by a device, until it was handed to a tap; or was taken from a tap by the worker's own
//          write, until another device's driver got it
#include <linux/bpf.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

// Of the kernel's own types only what is read here; where it lies is found out when this is loaded.
struct task_struct {
	int pid;
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
	__u32 worker;
};

struct sight {
	__u64 time;
	__u32 origin;
	__u32 worker;
	// The device that last received it.
	__u32 ifindex;
	__u32 unused;
};

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

// The workers' taps by interface index.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, __u32);
} taps SEC(".maps");

// Frames on their way. One that is dropped somewhere goes when it is the oldest.
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, struct sight);
} seen SEC(".maps");

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

static __always_inline void tell(__u32 stage, __u32 worker, __u64 start, __u64 end)
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
	event->worker = worker;
	bpf_ringbuf_submit(event, 0);
}

SEC("tp_btf/sched_waking")
int BPF_PROG(waking, struct task_struct *p)
{
	__u32 tid = p->pid;

	if (bpf_map_lookup_elem(&workers, &tid)) {
		__u64 now = bpf_ktime_get_ns();

		// The first of several counts.
		bpf_map_update_elem(&woken, &tid, &now, BPF_NOEXIST);
	}
	return 0;
}

SEC("tp_btf/sched_switch")
int BPF_PROG(switching, bool preempt, struct task_struct *prev, struct task_struct *next)
{
	__u32 tid = prev->pid;
	__u32 *worker;
	__u64 *start;

	// Nothing wakes up a thread that is held by a signal or a debugger: it is kept waiting from here on.
	if ((prev->__state & HELD) && bpf_map_lookup_elem(&workers, &tid)) {
		__u64 now = bpf_ktime_get_ns();

		bpf_map_update_elem(&woken, &tid, &now, BPF_ANY);
	}
	tid = next->pid;
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

SEC("tp_btf/netif_receive_skb")
int BPF_PROG(receiving, struct sk_buff *skb)
{
	__u32 ifindex = skb->dev->ifindex;
	__u64 key = (__u64)skb;
	struct sight sight = {
		.time = bpf_ktime_get_ns(),
		.origin = FROM_DEVICE,
		.ifindex = ifindex,
	};

	if (skb->skb_iif) {
		struct sight *before = bpf_map_lookup_elem(&seen, &key);

		// One that a bridge hands up, or a VLAN: the first time counts.
		if (before && before->ifindex == (__u32)skb->skb_iif) {
			before->ifindex = ifindex;
			return 0;
		}
	}
	if (bpf_map_lookup_elem(&taps, &ifindex)) {
		__u32 tid = (__u32)bpf_get_current_pid_tgid();
		__u32 *worker = bpf_map_lookup_elem(&workers, &tid);

		if (!worker)
			return 0;
		sight.origin = FROM_WORKER;
		sight.worker = *worker;
	}
	bpf_map_update_elem(&seen, &key, &sight, BPF_ANY);
	return 0;
}

SEC("tp_btf/net_dev_start_xmit")
int BPF_PROG(transmitting, struct sk_buff *skb, struct net_device *dev)
{
	__u32 ifindex = dev->ifindex;
	__u64 key = (__u64)skb;
	struct sight *sight = bpf_map_lookup_elem(&seen, &key);
	__u32 *tap;

	// Memory of a frame that went elsewhere may be another frame's by now.
	if (!sight || sight->ifindex != (__u32)skb->skb_iif)
		return 0;
	tap = bpf_map_lookup_elem(&taps, &ifindex);
	if (sight->origin == FROM_DEVICE && tap)
		tell(HOST_RX, *tap, sight->time, bpf_ktime_get_ns());
	else if (sight->origin == FROM_WORKER && !tap)
		tell(HOST_TX, sight->worker, sight->time, bpf_ktime_get_ns());
	else
		return 0;
	bpf_map_delete_elem(&seen, &key);
	return 0;
}

// The kernel's own list of licences has no other name for one that is compatible with its own.
char LICENSE[] SEC("license") = "Dual BSD/GPL";
