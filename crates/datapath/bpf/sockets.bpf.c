// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
// Runs for every frame that an interface receives: stamps it, and hands it to the AF_XDP socket of its queue.
// A queue without a socket leaves its frames to the host's own stack.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

// The AF_XDP sockets by receive queue. As many as a device may have queues; set before loading.
struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} sockets SEC(".maps");

// What stands right before the frame's first byte. `arrival.rs` reads it: the two must agree.
struct arrival {
	// CLOCK_MONOTONIC, ns.
	__u64 time_ns;
	__u64 magic;
};

#define ARRIVAL_MAGIC 0x6c61766972726172ull

// Whether to stamp; set before loading.
const volatile int stamps = 1;

SEC("xdp.frags")
int to_sockets(struct xdp_md *ctx)
{
	// Devices without room for metadata refuse; their frames go unstamped.
	if (stamps && !bpf_xdp_adjust_meta(ctx, -(int)sizeof(struct arrival))) {
		struct arrival *arrival = (void *)(long)ctx->data_meta;

		if ((void *)(arrival + 1) <= (void *)(long)ctx->data) {
			arrival->time_ns = bpf_ktime_get_ns();
			arrival->magic = ARRIVAL_MAGIC;
		}
	}
	return bpf_redirect_map(&sockets, ctx->rx_queue_index, XDP_PASS);
}

// The kernel's own list of licences has no other name for one that is compatible with its own.
char LICENSE[] SEC("license") = "Dual BSD/GPL";
