// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
// Sends every frame that its interface receives out of another interface, the one with the number TO_IFINDEX, and counts
// it. Built by the variant tap-xdp, once for each direction. With PRINTK it also writes a debug message for each frame.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

// Frames redirected. The queues of an interface run on several CPUs.
__u64 frames;

SEC("xdp")
int redirect(struct xdp_md *ctx)
{
	__sync_fetch_and_add(&frames, 1);
#ifdef PRINTK
	bpf_printk("a frame of %d bytes", (int)(ctx->data_end - ctx->data));
#endif
	return bpf_redirect(TO_IFINDEX, 0);
}

// bpf_printk is for programs under a licence that the kernel accepts.
char LICENSE[] SEC("license") = "Dual BSD/GPL";
