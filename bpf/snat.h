/* Source ports of this node for flows whose answers must come back here. */
#ifndef HOTPLANE_SNAT_H
#define HOTPLANE_SNAT_H

#include "flow.h"

/* Remove whoever holds the tuple of scratch->reply_key if its flow is over; 1 = removed. 2 = it is this very flow's,
 * from an earlier packet: it may be used again. */
INLINE int displace(const struct node *node, struct scratch *scratch, __u64 now) {
    int pending;
    struct translation *holder = find_flow(&scratch->reply_key, &pending);

    if (!holder)
        return 1;
    if (leads_back(holder, &scratch->reply.destination, scratch->reply.destination_port, &scratch->reply.source,
                   scratch->reply.source_port))
        return 2;
    if (!closed(holder->flags) && !expired(node, &scratch->reply_key, holder, now))
        return 0;
    forget_flow(&scratch->reply_key, holder, &scratch->forward_key);
    return 1;
}

/* A random port of this node under which no answers to anybody else come from this backend. */
INLINE int claim_port(const struct node *node, struct scratch *scratch) {
    int attempt;

#pragma clang loop unroll(disable)
    for (attempt = 0; attempt < SNAT_ATTEMPTS; attempt++) {
        __u32 low = node->snat_port_low;
        __u32 span = (__u32)node->snat_port_high - low + 1;
        __be16 port = to_be16(low + (__u32)(((__u64)bpf_get_prandom_u32() * span) >> 32));

        scratch->forward.source_port = scratch->reply_key.destination_port = port;
        if (claim_reply(scratch))
            return 1;
    }
    return 0;
}

/* Reserve the answers' tuple of scratch->forward for the flow of `key`; with SNAT under a port of this node. When all
 * ports tried were taken, the last one's holder is looked at more closely. `shared`: the tuple was this flow's before.
 * Returns REASON_NONE or why not. */
INLINE enum reason reserve_reply(const struct node *node, const struct tuple *key, struct scratch *scratch, __u64 now,
                                 int *shared) {
    int displaced;

    describe_reply(key, &scratch->forward, scratch);
    if (scratch->forward.flags & FLOW_SNAT ? claim_port(node, scratch) : claim_reply(scratch))
        return REASON_NONE;
    displaced = displace(node, scratch, now);
    *shared = displaced == 2;
    if (displaced == 2 || (displaced && claim_reply(scratch)))
        return REASON_NONE;
    return scratch->forward.flags & FLOW_SNAT ? REASON_SNAT_EXHAUSTED : REASON_TUPLE_TAKEN;
}

#endif
