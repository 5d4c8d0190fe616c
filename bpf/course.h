/* Host routing: where a packet comes from and goes to, and sending it there. */
#ifndef HOTPLANE_COURSE_H
#define HOTPLANE_COURSE_H

#include "direct.h"
#include "send.h"
#include "skb.h"
#include "rewrite_skb.h"

/* Where a packet comes from and goes to. */
struct course {
    struct pod *from; /* the pod that sent it; 0 = it comes from outside */
    struct pod *to;   /* the pod that gets it; 0 = it leaves the node */
    int routed;       /* it has a hop less afterwards; 0 = it is switched by a bridge */
    int device;       /* that routes see it come in by */
};

enum host_limits {
    GO_ON = -2, /* not for here: tc.c handles the packet */
    FOUND_NS = 10000000,
};

/* Whether a pod of this node sends or gets the packet. The barrier keeps the compiler from adding up pointers. */
INLINE int concerns_pod(const struct course *course) {
    if (course->from)
        return 1;
    barrier();
    return course->to != 0;
}

/* Whether a packet comes from where its source address says, by a device that host routing is on for. */
INLINE int comes_right(const struct __sk_buff *skb, const struct packet *packet, struct course *course) {
    __u32 ifindex = skb->ifindex;
    struct device *device;

    course->routed = 1;
    if (course->from) {
        course->device = course->from->routed;
        if (course->from->ifindex != ifindex)
            return 0;
        if (likely(same_mac(packet->mac, course->from->gateway)))
            return 1;
        course->routed = 0;
        return course->to && (course->from->flags & course->to->flags & POD_BRIDGED) &&
               course->from->routed == course->to->routed && same_mac(packet->mac, course->to->mac);
    }
    device = map_lookup(MAP(devices), &ifindex);
    if (!device || skb->pkt_type || !(device->flags & DEVICE_HOST_ROUTING) ||
        !(device->flags & (DEVICE_UPLINK | DEVICE_OVERLAY)))
        return 0;
    course->device = device->ifindex;
    return 1;
}

/* Whether routes lead back to a source from outside by the device that it came in by. Asked where a flow begins and
 * where its packets come in by another device than before. */
INLINE int source_is_there(struct __sk_buff *skb, const struct packet *packet, const struct course *course) {
    struct bpf_fib_lookup fib;

    if (is_martian(&packet->tuple.source) || is_loopback(&packet->tuple.source))
        return 0;
    return route_found(find_route(skb, packet, &packet->tuple.destination, &packet->tuple.source, course->device, 0, 0,
                                  &fib)) &&
           fib.ifindex == course->device;
}

/* Whether routes lead to the pod by its device. They are asked once in FOUND_NS. */
INLINE int pod_is_there(struct __sk_buff *skb, const struct packet *packet, const struct address *destination,
                        const struct course *course, __u64 now) {
    struct pod *to = course->to;
    struct bpf_fib_lookup fib;

    if (!course->routed || (likely(to->found_from == course->device) && now - to->found_ns < FOUND_NS))
        return 1;
    if (!route_found(find_route(skb, packet, &packet->tuple.source, destination, course->device, 0, 0, &fib)) ||
        fib.ifindex != to->routed)
        return 0;
    to->found_from = course->device;
    to->found_ns = now;
    return 1;
}

INLINE void write_macs(void *data, const void *macs) {
    const __u16 *from = macs;
    __u16 *to = data;

    to[0] = from[0];
    to[1] = from[1];
    to[2] = from[2];
    to[3] = from[3];
    to[4] = from[4];
    to[5] = from[5];
}

/* Link-layer addresses (destination, then source) and one hop less, if `hop`. Returns 0, or -1. */
INLINE int write_headers(struct __sk_buff *skb, const struct packet *packet, const void *macs, int hop) {
    void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
    __u8 hops = packet->hops - 1;

    if (data + sizeof(struct ethhdr) + sizeof(struct iphdr) > end)
        return -1;
    write_macs(data, macs);
    if (!hop)
        return 0;
    if (packet->ipv4) {
        lower_ttl(data + sizeof(struct ethhdr));
        return 0;
    }
    return bpf_skb_store_bytes(skb, sizeof(struct ethhdr) + 7, &hops, 1, BPF_F_RECOMPUTE_CSUM) ? -1 : 0;
}

/* Hand a packet to its pod. `hop`: its hop limit is still to be lowered. */
INLINE int into_pod(struct __sk_buff *skb, const struct packet *packet, const struct course *course, int hop) {
    __u32 ifindex = course->to->ifindex;

    if (course->routed && write_headers(skb, packet, course->to->mac, hop))
        return TC_ACT_SHOT;
    if (unlikely(skb->pkt_type != 0))
        bpf_skb_change_type(skb, 0); /* at a bridge's port, another host's */
    count(HOOK_TC_INGRESS, REASON_INTO_POD);
    return bpf_redirect_peer(ifindex, 0);
}

/* The way out of the node. 0 = the stack is to handle the packet. */
INLINE int find_way_out(struct __sk_buff *skb, const struct packet *packet, const struct address *source,
                        const struct address *destination, const struct course *course, struct next_hop *hop) {
    __u32 flags;
    long result = find_route(skb, packet, source, destination, course->device, packet_size(skb, packet), 0, &hop->fib);

    if (result != BPF_FIB_LKUP_RET_SUCCESS && result != BPF_FIB_LKUP_RET_NO_NEIGH)
        return 0;
    hop->neighbour_known = result == BPF_FIB_LKUP_RET_SUCCESS;
    flags = device_flags(hop->fib.ifindex);
    return (flags & DEVICE_HOST_ROUTING) && (flags & (DEVICE_UPLINK | DEVICE_OVERLAY)) && !(flags & DEVICE_RAW_IP);
}

INLINE int out_of_node(struct __sk_buff *skb, const struct packet *packet, const struct next_hop *hop, int lower) {
    __u8 macs[12];

    __builtin_memcpy(macs, hop->fib.dmac, 6);
    __builtin_memcpy(macs + 6, hop->fib.smac, 6);
    if (write_headers(skb, packet, macs, lower))
        return TC_ACT_SHOT;
    count(HOOK_TC_INGRESS, REASON_OUT_OF_NODE);
    if (!hop->neighbour_known || !(bpf_get_prandom_u32() & NEIGHBOUR_PROBE))
        return send_by_neighbour(skb, hop);
    return bpf_redirect(hop->fib.ifindex, 0);
}

/* Whether the packet may be sent on at all: the stack answers what may not. */
INLINE int can_go(struct __sk_buff *skb, const struct packet *packet, const struct course *course) {
    if (course->routed && packet->hops <= 1)
        return 0;
    return !course->to || packet_size(skb, packet) <= course->to->mtu;
}

/* Update a flow by a packet that goes past the stack. `turned`: see direct_key(). A connection that ended leaves
 * nothing behind: late segments go by the stack, as do those of connections from before. */
INLINE void note_direct(const struct tuple *key, struct direct_flow *flow, __u32 tcp_flags, int turned, __u64 now) {
    __u32 flags = flow->flags, fins = DIRECT_FIN_LOW | DIRECT_FIN_HIGH;

    if (flow->last_ns != now)
        flow->last_ns = now;
    if (key->protocol != IPPROTO_TCP) {
        flags |= turned ? DIRECT_FROM_HIGH : DIRECT_FROM_LOW;
        if (unlikely(!(flags & DIRECT_OPEN)) && (flags & DIRECT_FROM_HIGH) && (flags & DIRECT_FROM_LOW) &&
            (__s32)(coarse_time(now) - flow->begun) >= UDP_STREAM_AFTER)
            flags |= DIRECT_OPEN;
    } else if (unlikely(tcp_flags & TCP_RST) || unlikely(!(tcp_flags & TCP_FIN) && (flags & fins) == fins)) {
        map_delete(MAP(direct_tcp), key);
        return;
    } else {
        if (tcp_flags & TCP_FIN)
            flags |= turned ? DIRECT_FIN_HIGH : DIRECT_FIN_LOW;
        if (!(tcp_flags & TCP_SYN))
            flags |= DIRECT_OPEN;
    }
    if (unlikely(flags != flow->flags))
        flow->flags = flags;
}

/* Remember a direction's way, for quick(). A bridge's ports are not for that. */
INLINE void remember_hop(struct direct_hop *hop, __u32 from, const struct pod *to, __u32 generation, int summed) {
    if (to->flags & POD_BRIDGED)
        return;
    hop->from = from;
    hop->to = to->ifindex;
    hop->mtu = to->mtu < 0xffff ? to->mtu : 0xffff;
    hop->summed = summed;
    __builtin_memcpy(hop->mac, to->mac, 6);
    __builtin_memcpy(hop->gateway, to->gateway, 6);
    hop->generation = generation;
}

#endif
