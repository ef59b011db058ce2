// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
// Runs for every frame that an interface receives: stamps it, and hands it to the AF_XDP socket of its queue.
// A queue without a socket leaves its frames to the host's own stack, as they came.
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

// The AF_XDP sockets by receive queue. A device may get more queues while the program is on it.
struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, __u32);
} sockets SEC(".maps");

// Number of sockets in the map above.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} served SEC(".maps");

// Number of frames that came on a queue without a socket while another queue had one.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} unserved SEC(".maps");

// What stands right before the frame's first byte. `arrival.rs` reads it: the two must agree.
struct arrival {
	// CLOCK_MONOTONIC, ns.
	__u64 time_ns;
	__u64 magic;
};

#define ARRIVAL_MAGIC 0x6c61766972726172ull

// Whether to stamp; set before loading.
const volatile int stamps = 1;

// The tag that the device removed from the frame (kernel Documentation/networking/xdp-rx-metadata.rst).
extern int bpf_xdp_metadata_rx_vlan_tag(const struct xdp_md *ctx, __be16 *protocol, __u16 *tci) __weak __ksym;

static __always_inline int leave_to_host(void)
{
	__u32 key = 0, *sockets_there = bpf_map_lookup_elem(&served, &key);
	__u64 *count = bpf_map_lookup_elem(&unserved, &key);

	if (sockets_there && *sockets_there && count)
		__sync_fetch_and_add(count, 1);
	return XDP_PASS;
}

static __always_inline int has_socket(struct xdp_md *ctx)
{
	__u32 queue = ctx->rx_queue_index;

	return bpf_map_lookup_elem(&sockets, &queue) != 0;
}

static __always_inline int redirect(struct xdp_md *ctx)
{
	// Devices without room for metadata refuse; their frames go unstamped.
	if (stamps && !bpf_xdp_adjust_meta(ctx, -(int)sizeof(struct arrival))) {
		struct arrival *arrival = (void *)(long)ctx->data_meta;

		if ((void *)(arrival + 1) <= (void *)(long)ctx->data) {
			arrival->time_ns = bpf_ktime_get_ns();
			arrival->magic = ARRIVAL_MAGIC;
		}
	}
	long action = bpf_redirect_map(&sockets, ctx->rx_queue_index, XDP_PASS);

	return action == XDP_PASS ? leave_to_host() : action;
}

// Returns 0 if the tag is in the frame again.
static __always_inline int put_tag_back(struct xdp_md *ctx, __be16 protocol, __u16 tci)
{
	struct tagged {
		__u8 addresses[12];
		__be16 protocol;
		__be16 tci;
	} *frame;

	if (bpf_xdp_adjust_head(ctx, -4))
		return -1;
	frame = (void *)(long)ctx->data;
	if ((void *)(frame + 1) > (void *)(long)ctx->data_end)
		return -1;
	__builtin_memmove(frame->addresses, (__u8 *)frame + 4, sizeof(frame->addresses));
	frame->protocol = protocol;
	frame->tci = bpf_htons(tci);
	return 0;
}

SEC("xdp.frags")
int to_sockets(struct xdp_md *ctx)
{
	return redirect(ctx);
}

// The same, for a device that reports the VLAN tags which it removes.
SEC("xdp.frags")
int to_sockets_tags(struct xdp_md *ctx)
{
	__be16 protocol;
	__u16 tci;

	// The host's own stack has the tag beside the frame.
	if (!bpf_xdp_metadata_rx_vlan_tag(ctx, &protocol, &tci) &&
	    (!has_socket(ctx) || put_tag_back(ctx, protocol, tci)))
		return leave_to_host();
	return redirect(ctx);
}

// The kernel's own list of licences has no other name for one that is compatible with its own.
char LICENSE[] SEC("license") = "Dual BSD/GPL";
