// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
// Work for each packet that an interface receives, some tens of microseconds, as an elaborate firewall does.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("xdp")
int burn(struct xdp_md *ctx)
{
	__u32 sum = 0;
	int n;

	for (n = 0; n < 3000; n++)
		sum += bpf_get_prandom_u32();
	return sum == ctx->ingress_ifindex ? XDP_DROP : XDP_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
