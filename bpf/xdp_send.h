/* Sending a packet on from XDP: the next hop of its flow, and handing it to the device. */
#ifndef HOTPLANE_XDP_SEND_H
#define HOTPLANE_XDP_SEND_H

#include "established.h"

enum hop_limits {
    HOP_PROBE = 31, /* mask: of so many looks one is left to tc, since only the stack's own use of a neighbour entry
                       makes it ask whether the neighbour is still there */
};

/* Look up a way in the FIB, for a packet of `size` bytes. */
INLINE enum reason look_up_way(struct xdp_md *context, const struct packet *packet, const struct address *from,
                               const struct address *to, __u32 size, struct way *way, __u64 now) {
    struct bpf_fib_lookup fib;
    long result = find_route(context, packet, from, to, context->ingress_ifindex, size, 0, &fib);

    if (result == BPF_FIB_LKUP_RET_FRAG_NEEDED)
        return REASON_MTU;
    if (result != BPF_FIB_LKUP_RET_SUCCESS)
        return REASON_FIB_MISS;
    if (fib.ifindex != context->ingress_ifindex && !(device_flags(fib.ifindex) & DEVICE_XDP_TARGET))
        fib.ifindex = 0;
    way->ifindex = fib.ifindex;
    way->mtu = fib.tot_len; /* the route's MTU by now */
    __builtin_memcpy(way->hop_source, fib.smac, sizeof(fib.smac));
    __builtin_memcpy(way->hop_destination, fib.dmac, sizeof(fib.dmac));
    name_way(way, packet, from, to, context->ingress_ifindex, now);
    return REASON_NONE;
}

/* Find the next hop of a flow, whose packets are sent between these addresses, and cache it in the entry. `size`: of
 * the packet as it is sent. Meanwhile another CPU sees no valid next hop, or, if it started before, at worst sends one
 * packet to the old one. */
INLINE enum reason refresh_hop(struct xdp_md *context, const struct packet *packet, struct translation *entry,
                               const struct address *from, const struct address *to, __u32 size, __u64 now) {
    struct way *way = way_between(from, to);
    int first = !entry->hop_until_ns, known;
    enum reason refusal;

    if (!way)
        return REASON_INCONSISTENT;
    known = leads(way, packet, from, to, context->ingress_ifindex, now);
    if (!known && !first && !(bpf_get_prandom_u32() & HOP_PROBE))
        return REASON_LEFT_TO_TC;
    entry->hop_until_ns = 0;
    barrier();
    if (!known) {
        refusal = look_up_way(context, packet, from, to, size, way, now);
        if (refusal != REASON_NONE)
            return refusal;
    }
    entry->hop_ifindex = way->ifindex;
    entry->hop_mtu = way->mtu;
    copy_macs(entry->hop_destination, way->hop_destination); /* and hop_source behind it */
    note_changes(packet, entry, from, to);
    barrier();
    entry->hop_until_ns = way->until_ns;
    return REASON_NONE;
}

/* Why XDP cannot send a flow's packet on to its next hop, which is looked up first where it is due. `mac`: what the
 * frame was addressed to; `size`: of the packet as it is sent. REASON_NONE: it can, the entry has the next hop. */
INLINE enum reason find_hop(struct xdp_md *context, const struct packet *packet, struct translation *entry,
                            const struct address *from, const struct address *to, const __u16 *mac, __u32 size,
                            __u64 now) {
    if (unlikely((__s64)(entry->hop_until_ns - now) <= 0)) {
        enum reason refusal = refresh_hop(context, packet, entry, from, to, size, now);

        if (refusal != REASON_NONE)
            return refusal;
    }
    if (unlikely(!entry->hop_ifindex))
        return REASON_LEFT_TO_TC;
    if (unlikely(size > entry->hop_mtu))
        return REASON_MTU;
    if (likely(entry->hop_ifindex == context->ingress_ifindex))
        return same_mac(mac, entry->hop_source) ? REASON_NONE : REASON_NOT_FOR_US;
    return addressed_to_device(packet, context->ingress_ifindex) ? REASON_NONE : REASON_NOT_FOR_US;
}

INLINE int send(__u32 to, __u32 ifindex) {
#ifndef NO_XDP_TX
    if (to == ifindex)
        return XDP_TX;
#endif
    return bpf_redirect(to, 0);
}

INLINE int unfinished_packet(void *data, void *end, const struct packet *packet) {
    __be16 *check =
        data + (packet->l4 & L4_OFFSETS) + (packet->protocol == IPPROTO_TCP ? (int)TCP_CHECK : (int)UDP_CHECK);

    return (void *)(check + 1) <= end &&
           unfinished(&packet->tuple, packet->ipv4, packet->size - (packet->l4 - packet->l3), *check);
}

/* Go on in another program; returns only if that is not there. */
INLINE void call_xdp(struct xdp_md *context, __u32 number) {
    ((long (*)(void *, __u64, __u32))BPF_FUNC_tail_call)(context, MAP(xdp_calls), number);
}

#endif
