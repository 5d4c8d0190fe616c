/* XDP on uplinks, before the kernel allocates a socket buffer. It translates and redirects flows with SNAT: packets to
 * remote backends and their replies. Everything else goes unchanged to tc on the same device, which uses the same flow
 * tables: packets of a local backend need tc at egress anyway, and translating a GRO packet there once is cheaper than
 * translating each of its segments here; fragments and ICMP errors are rare.
 *
 * NO_XDP_TX is for veth, whose driver does not wake the other end after XDP_TX unless that has an XDP program too;
 * frames would lie there until something else is sent. It does after a redirect.
 *
 * ONLY_GENERAL is for tests: everything by the general code, without the short way of established.h.
 *
 * When XDP has chosen a backend but cannot send the packet on (the neighbour's address is not known, say), it stores
 * the flow all the same: choosing again in tc would favour backends that XDP cannot serve. */
#include "parse.h"

#include "established.h"

enum hop_limits {
    HOP_NS = 100000000, /* how long a next hop is cached: a FIB look-up costs as much as all the rest */
    HOP_PROBE = 31,     /* mask: of so many looks one is left to tc, since only the stack's own use of a neighbour entry
                           makes it ask whether the neighbour is still there */
};

/* Look up the next hop of a flow in the FIB and cache it in the entry. Meanwhile another CPU sees no valid next hop,
 * or, if it started before, at worst sends one packet to the old one. */
INLINE enum reason refresh_hop(struct xdp_md *context, const struct packet *packet, struct translation *entry,
                               __u64 now) {
    int first = !entry->hop_until_ns;
    struct bpf_fib_lookup fib;
    long result;

    if (!first && !(bpf_get_prandom_u32() & HOP_PROBE))
        return REASON_LEFT_TO_TC;
    entry->hop_until_ns = 0;
    barrier();
    result = find_route(context, packet, &entry->source, &entry->destination, context->ingress_ifindex, packet->size, 0,
                        &fib);
    if (result == BPF_FIB_LKUP_RET_FRAG_NEEDED)
        return REASON_MTU;
    if (result != BPF_FIB_LKUP_RET_SUCCESS)
        return REASON_FIB_MISS;
    if (fib.ifindex != context->ingress_ifindex && !(device_flags(fib.ifindex) & DEVICE_XDP_TARGET))
        fib.ifindex = 0;
    entry->hop_ifindex = fib.ifindex;
    entry->hop_mtu = fib.tot_len; /* the route's MTU by now */
    __builtin_memcpy(entry->hop_source, fib.smac, sizeof(fib.smac));
    __builtin_memcpy(entry->hop_destination, fib.dmac, sizeof(fib.dmac));
    note_changes(packet, entry);
    barrier();
    entry->hop_until_ns = now + HOP_NS;
    return REASON_NONE;
}

/* Return why XDP cannot redirect a translated packet; REASON_NONE: the entry has the next hop. */
INLINE enum reason find_next_hop(struct xdp_md *context, const struct packet *packet, struct translation *entry,
                                 __u64 now) {
    if (packet->hops <= 1)
        return REASON_TTL;
    if (unlikely((__s64)(entry->hop_until_ns - now) <= 0)) {
        enum reason refusal = refresh_hop(context, packet, entry, now);

        if (refusal != REASON_NONE)
            return refusal;
    }
    if (unlikely(!entry->hop_ifindex))
        return REASON_LEFT_TO_TC;
    if (unlikely(packet->size > entry->hop_mtu))
        return REASON_MTU;
    if (likely(entry->hop_ifindex == context->ingress_ifindex))
        return same_mac(packet->mac, entry->hop_source) ? REASON_NONE : REASON_NOT_FOR_US;
    return addressed_to_device(packet, context->ingress_ifindex) ? REASON_NONE : REASON_NOT_FOR_US;
}

INLINE int send(__u32 to, __u32 ifindex) {
#ifndef NO_XDP_TX
    if (to == ifindex)
        return XDP_TX;
#endif
    return bpf_redirect(to, 0);
}

/* Translate and redirect. Returns the verdict; if that is not to redirect, packet->reason says why. */
INLINE int translate(struct xdp_md *context, const struct arrival *arrival, struct packet *packet,
                     struct translation *entry) {
    enum reason found = packet->reason;
    struct ethhdr *ethernet;
    void *data, *end;

    if (!(entry->flags & FLOW_SNAT)) {
        packet->reason = REASON_LEFT_TO_TC;
        return XDP_PASS;
    }
    packet->reason = find_next_hop(context, packet, entry, arrival->now);
    if (packet->reason != REASON_NONE)
        return XDP_PASS;
    packet->reason = found;
    data = (void *)(long)context->data;
    end = (void *)(long)context->data_end;
    ethernet = data;
    if ((void *)(ethernet + 1) > end || rewrite_packet(data, end, packet, entry, 1)) {
        packet->reason = REASON_REWRITE_FAILED;
        return XDP_DROP;
    }
    __builtin_memcpy(ethernet->h_dest, entry->hop_destination, sizeof(ethernet->h_dest));
    __builtin_memcpy(ethernet->h_source, entry->hop_source, sizeof(ethernet->h_source));
    packet->translated = 1;
    return send(entry->hop_ifindex, arrival->ifindex);
}

INLINE int unfinished_packet(void *data, void *end, const struct packet *packet) {
    __be16 *check =
        data + (packet->l4 & L4_OFFSETS) + (packet->protocol == IPPROTO_TCP ? (int)TCP_CHECK : (int)UDP_CHECK);

    return (void *)(check + 1) <= end &&
           unfinished(&packet->tuple, packet->ipv4, packet->size - (packet->l4 - packet->l3), *check);
}

/* See established.h. Returns the verdict, or XDP_ABORTED for a packet that needs the general path. `missing`: it
 * has no flow. */
INLINE int forward_established(struct xdp_md *context, __u32 ifindex, __u64 now, int *missing) {
    void *data = (void *)(long)context->data, *end = (void *)(long)context->data_end;
    struct translation *entry;
    struct fast_path_packet packet;

    if (!fast_path_parse(data, end, &packet))
        return XDP_ABORTED;
#ifdef NO_XDP_TX
    if (unfinished(&packet.key, packet.ipv4, fast_path_payload_length(&packet), *packet.check))
        return XDP_ABORTED;
#endif
    entry = find_flow(&packet.key);
    *missing = !entry;
    if (!entry || !fast_path_usable(ifindex, data, &packet, entry, now) || unlikely(somebody_watches(now)) ||
        !fast_path_track(&packet, entry) || !fast_path_rewrite(data, end, &packet, entry))
        return XDP_ABORTED;
    account(entry, packet.size, now);
    count(HOOK_XDP, entry->flags & FLOW_REPLY ? REASON_REPLY : REASON_FLOW);
    return send(ifindex, ifindex); /* the hop's device, see fast_path_usable() */
}

PROGRAM(xdp_uplink)(struct xdp_md *context) {
    struct arrival arrival = {
        .context = context, .node = this_node(), .hook = HOOK_XDP, .ifindex = context->ingress_ifindex};
    void *data = (void *)(long)context->data, *end = (void *)(long)context->data_end;
    struct scratch *scratch = this_scratch();
    struct translation *entry = 0;
    struct packet *packet;
    int action, missing = 0;
    __u32 service = ~0U;
    enum reason reason;

    if (!scratch || !arrival.node || !(arrival.node->flags & NODE_READY)) {
        count(HOOK_XDP, REASON_NOT_READY);
        return XDP_PASS;
    }
    arrival.now = coarse_now(scratch);
#ifndef ONLY_GENERAL
    action = forward_established(context, arrival.ifindex, arrival.now, &missing);
    if (likely(action != XDP_ABORTED))
        return action;
#endif
    action = XDP_PASS;
    packet = new_packet(scratch);
    packet->no_flow = missing;
    reason = hide_reason(packet, parse(data, end, end - data, 0, packet));
    if (reason == REASON_NONE && (packet->kind != PACKET_WHOLE || packet->tagged))
        reason = REASON_LEFT_TO_TC;
    if (reason == REASON_NONE && (*(__u8 *)packet->mac & 1))
        reason = REASON_NOT_FOR_US; /* a group address */
#ifdef NO_XDP_TX
    if (reason == REASON_NONE && unfinished_packet(data, end, packet))
        reason = REASON_LEFT_TO_TC;
#endif
    if (reason == REASON_NONE)
        reason = track(&arrival, packet, &service, &entry);
    reason = hide_reason(packet, reason);
    if (entry && translates(reason)) {
        service = entry->service;
        action = translate(context, &arrival, packet, entry);
    }
    count(HOOK_XDP, packet->reason);
    emit_packet_event(&arrival, packet, service, packet->translated ? entry : 0);
    if (entry && packet->translated)
        touch(packet, entry, arrival.now);
    return action;
}
