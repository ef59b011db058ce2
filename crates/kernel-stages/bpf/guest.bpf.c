// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
// Stamps the way of a received probe through this kernel, from the device's interrupt to the thread that receives it, on BTF
// tracepoints. In the order of time, all on one CPU except the last:
//
// irq_handler_entry      the device's hard interrupt begins
// softirq_raise          its handler raises the network softirq; interrupts that do not are forgotten (irq_handler_exit)
// softirq_entry          the softirq begins, in which NAPI polls the driver (softirq_exit: until here)
// netif_receive_skb      the driver passes the packet to the stack; its payload says which probe it is
// sched_waking           the stack wakes up the thread that waits at the socket
// sched_switch           that thread runs
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <stdbool.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

// Only those fields of the kernel's types that are read here. Their offsets are found when the programs are loaded.
struct task_struct {
	int pid;
} __attribute__((preserve_access_index));

struct irqaction;

struct sk_buff {
	unsigned int len;
	// Of that, bytes that are not at `data`.
	unsigned int data_len;
	__u16 protocol;
	// At the network header.
	unsigned char *data;
} __attribute__((preserve_access_index));

// NET_RX_SOFTIRQ in the kernel's include/linux/interrupt.h.
#define NET_RX 3
// The fragment's offset and "more fragments" in an IPv4 header (RFC 791).
#define FRAGMENT 0x3fff
// "RSCP": the first word of a probe (`burst_trace::Probe`).
#define MAGIC 0x52534350

// The thread that receives the probes.
struct reader {
	__u32 thread;
	// Their UDP port.
	__u32 port;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct reader);
} readers SEC(".maps");

// Identifies a probe.
struct probe {
	__u64 sequence;
	__u32 run;
	// Whether there is one.
	__u32 is_there;
};

// CLOCK_MONOTONIC, ns; 0: not seen.
struct stamps {
	__u64 interrupt;
	__u64 softirq;
	__u64 woken;
	__u64 running;
};

// Those that came last. The reader takes them soon after.
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct probe);
	__type(value, struct stamps);
} probes SEC(".maps");

struct cpu {
	// Of the hard interrupt that is being handled; 0 for none.
	__u64 interrupt;
	// Of the first one that raised the network softirq, which has not begun yet.
	__u64 raised;
	// Of the network softirq that runs, and of the interrupt that raised it; 0 for none.
	__u64 softirq;
	__u64 softirq_interrupt;
	// The probe that is in the stack.
	struct probe probe;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct cpu);
} cpus SEC(".maps");

// The probe for which the reader was woken up. The thread runs after its wake-up, so there is one writer at a time.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct probe);
} awaited SEC(".maps");

static const __u32 first = 0;

SEC("tp_btf/irq_handler_entry")
int BPF_PROG(interrupt_begins, int irq, struct irqaction *action)
{
	struct cpu *cpu = bpf_map_lookup_elem(&cpus, &first);

	if (cpu)
		cpu->interrupt = bpf_ktime_get_ns();
	return 0;
}

SEC("tp_btf/irq_handler_exit")
int BPF_PROG(interrupt_ends, int irq, struct irqaction *action, int result)
{
	struct cpu *cpu = bpf_map_lookup_elem(&cpus, &first);

	if (cpu)
		cpu->interrupt = 0;
	return 0;
}

SEC("tp_btf/softirq_raise")
int BPF_PROG(softirq_raised, unsigned int number)
{
	struct cpu *cpu;

	if (number != NET_RX)
		return 0;
	cpu = bpf_map_lookup_elem(&cpus, &first);
	if (cpu && !cpu->raised)
		cpu->raised = cpu->interrupt;
	return 0;
}

SEC("tp_btf/softirq_entry")
int BPF_PROG(softirq_begins, unsigned int number)
{
	struct cpu *cpu;

	if (number != NET_RX)
		return 0;
	cpu = bpf_map_lookup_elem(&cpus, &first);
	if (!cpu)
		return 0;
	cpu->softirq = bpf_ktime_get_ns();
	cpu->softirq_interrupt = cpu->raised;
	cpu->raised = 0;
	return 0;
}

SEC("tp_btf/softirq_exit")
int BPF_PROG(softirq_ends, unsigned int number)
{
	struct cpu *cpu;

	if (number != NET_RX)
		return 0;
	cpu = bpf_map_lookup_elem(&cpus, &first);
	if (!cpu)
		return 0;
	cpu->softirq = 0;
	cpu->softirq_interrupt = 0;
	cpu->probe.is_there = 0;
	return 0;
}

struct payload {
	__be16 from;
	__be16 to;
	__be16 bytes;
	__be16 sum;
	__be32 magic;
	__be32 run;
	// A number of 64 bits: the compiler must not align it.
	__be32 sequence[2];
};

struct tag {
	__be16 control;
	__be16 protocol;
};

// The offset of UDP behind the network header; 0 if this is something else.
static __always_inline __u32 udp_at(struct sk_buff *skb, unsigned char *data)
{
	__u16 protocol = skb->protocol;
	__u32 at = 0;

	if (protocol == bpf_htons(ETH_P_8021Q)) {
		struct tag tag;

		if (bpf_probe_read_kernel(&tag, sizeof(tag), data))
			return 0;
		protocol = tag.protocol;
		at = sizeof(tag);
	}
	if (protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr ip;

		if (bpf_probe_read_kernel(&ip, sizeof(ip), data + at))
			return 0;
		if (ip.protocol != IPPROTO_UDP || (ip.frag_off & bpf_htons(FRAGMENT)))
			return 0;
		return at + ip.ihl * 4;
	}
	if (protocol == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr ip;

		if (bpf_probe_read_kernel(&ip, sizeof(ip), data + at) || ip.nexthdr != IPPROTO_UDP)
			return 0;
		return at + sizeof(ip);
	}
	return 0;
}

static __always_inline bool read_probe(struct sk_buff *skb, __u32 port, struct probe *probe)
{
	unsigned char *data = skb->data;
	__u32 at = udp_at(skb, data);
	struct payload payload;

	// Only bytes at `data` can be read. A driver has at least the headers there, and of packets as short as probes everything.
	if (!at || at + sizeof(payload) > skb->len - skb->data_len)
		return false;
	if (bpf_probe_read_kernel(&payload, sizeof(payload), data + at))
		return false;
	if (payload.to != bpf_htons(port) || payload.magic != bpf_htonl(MAGIC))
		return false;
	probe->run = bpf_ntohl(payload.run);
	probe->sequence = (__u64)bpf_ntohl(payload.sequence[0]) << 32 | bpf_ntohl(payload.sequence[1]);
	probe->is_there = 1;
	return true;
}

SEC("tp_btf/netif_receive_skb")
int BPF_PROG(receiving, struct sk_buff *skb)
{
	struct reader *reader = bpf_map_lookup_elem(&readers, &first);
	struct cpu *cpu = bpf_map_lookup_elem(&cpus, &first);
	struct stamps stamps = {};
	struct probe probe = {};

	if (!reader || !cpu)
		return 0;
	cpu->probe.is_there = 0;
	if (!reader->port || !read_probe(skb, reader->port, &probe))
		return 0;
	stamps.interrupt = cpu->softirq_interrupt;
	stamps.softirq = cpu->softirq;
	// A VLAN device or a bridge passes it to the stack again: its first reception counts.
	bpf_map_update_elem(&probes, &probe, &stamps, BPF_NOEXIST);
	cpu->probe = probe;
	return 0;
}

SEC("tp_btf/sched_waking")
int BPF_PROG(waking, struct task_struct *p)
{
	struct cpu *cpu = bpf_map_lookup_elem(&cpus, &first);
	struct reader *reader = bpf_map_lookup_elem(&readers, &first);
	struct stamps *stamps;
	struct probe probe;

	if (!cpu || !cpu->probe.is_there || !reader || reader->thread != (__u32)p->pid)
		return 0;
	probe = cpu->probe;
	stamps = bpf_map_lookup_elem(&probes, &probe);
	if (!stamps || stamps->woken)
		return 0;
	stamps->woken = bpf_ktime_get_ns();
	bpf_map_update_elem(&awaited, &first, &probe, BPF_ANY);
	return 0;
}

SEC("tp_btf/sched_switch")
int BPF_PROG(switching, bool preempt, struct task_struct *prev, struct task_struct *next)
{
	struct reader *reader = bpf_map_lookup_elem(&readers, &first);
	struct stamps *stamps;
	struct probe *probe;

	if (!reader || !reader->thread || reader->thread != (__u32)next->pid)
		return 0;
	probe = bpf_map_lookup_elem(&awaited, &first);
	if (!probe || !probe->is_there)
		return 0;
	stamps = bpf_map_lookup_elem(&probes, probe);
	if (stamps && !stamps->running)
		stamps->running = bpf_ktime_get_ns();
	probe->is_there = 0;
	return 0;
}

// In the kernel's list of licences, no other name stands for one that is compatible with the kernel's own.
char LICENSE[] SEC("license") = "Dual BSD/GPL";
