// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
// What once cost two months: a debug message in the XDP program of the interface at the far end. Here it is a few of them, so
// that it shows on any machine.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("xdp")
int chatty(struct xdp_md *ctx)
{
	int n;

	for (n = 0; n < MESSAGES; n++)
		bpf_printk("a frame of %d bytes", (int)(ctx->data_end - ctx->data));
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
