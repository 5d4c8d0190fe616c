/* Host routing at the devices where packets come in: what is for a pod of this node goes straight into it, and what
 * leaves the node goes straight to its uplink, past the node's routing and netfilter. Plain packets and those of flows
 * that tc.c opened; everything else is handed to tc.c, with what was parsed of it. Who may go past the stack is an
 * entry of the map `pods`; which flows may, direct.h says. What the stack would have done still happens: it gets
 * packets at the end of their hop limit, and bigger ones than their way takes, to answer them. */
#include "direct.h"
#include "send.h"
#include "skb.h"
#include "rewrite_skb.h"
#include "track.h"

/* Where a packet comes from and goes to. */
struct course {
    struct pod *from; /* the pod that sent it; 0 = it comes from outside */
    struct pod *to;   /* the pod that gets it; 0 = it leaves the node */
    int routed;       /* it has a hop less afterwards; 0 = it is switched by a bridge */
    int device;       /* that routes see it come in by */
};

enum {
    GO_ON = -2, /* not for here: tc.c handles the packet */
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

/* Whether routes lead to the pod by its device. */
INLINE int pod_is_there(struct __sk_buff *skb, const struct packet *packet, const struct address *destination,
                        const struct course *course) {
    struct bpf_fib_lookup fib;

    if (!course->routed)
        return 1;
    return route_found(find_route(skb, packet, &packet->tuple.source, destination, course->device, 0, 0, &fib)) &&
           fib.ifindex == course->to->routed;
}

/* Link-layer addresses (destination, then source) and one hop less, if `hop`. Returns 0, or -1. */
INLINE int write_headers(struct __sk_buff *skb, const struct packet *packet, const void *macs, int hop) {
    void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
    const __u16 *from = macs;
    __u16 *to = data;

    if (data + sizeof(struct ethhdr) + sizeof(struct iphdr) > end)
        return -1;
    to[0] = from[0];
    to[1] = from[1];
    to[2] = from[2];
    to[3] = from[3];
    to[4] = from[4];
    to[5] = from[5];
    if (!hop)
        return 0;
    if (packet->ipv4) {
        lower_ttl(data + sizeof(struct ethhdr));
        return 0;
    } else {
        __u8 hops = packet->hops - 1; /* the device's sum over a received packet covers it */

        return bpf_skb_store_bytes(skb, sizeof(struct ethhdr) + 7, &hops, 1, BPF_F_RECOMPUTE_CSUM) ? -1 : 0;
    }
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
INLINE void note_direct(const struct packet *packet, const struct tuple *key, struct direct_flow *flow, int turned,
                        __u64 now) {
    __u32 flags = flow->flags, fins = DIRECT_FIN_LOW | DIRECT_FIN_HIGH;

    if (flow->last_ns != now)
        flow->last_ns = now;
    if (packet->protocol != IPPROTO_TCP) {
        flags |= turned ? DIRECT_FROM_HIGH : DIRECT_FROM_LOW;
        if (unlikely(!(flags & DIRECT_OPEN)) && (flags & DIRECT_FROM_HIGH) && (flags & DIRECT_FROM_LOW) &&
            (__s32)(coarse_time(now) - flow->begun) >= UDP_STREAM_AFTER)
            flags |= DIRECT_OPEN;
    } else if (unlikely(packet->tcp_flags & TCP_RST) ||
               unlikely(!(packet->tcp_flags & TCP_FIN) && (flags & fins) == fins)) {
        map_delete(MAP(direct_tcp), key);
        return;
    } else {
        if (packet->tcp_flags & TCP_FIN)
            flags |= turned ? DIRECT_FIN_HIGH : DIRECT_FIN_LOW;
        if (!(packet->tcp_flags & TCP_SYN))
            flags |= DIRECT_OPEN;
    }
    if (unlikely(flags != flow->flags))
        flow->flags = flags;
}

/* Whether a flow that begins with this packet may go past the stack. What leaves the node may only go to other pods:
 * the rest of the world must be asked from an address that it can answer to, which the stack puts in. */
INLINE int may_begin(struct __sk_buff *skb, const struct arrival *arrival, const struct packet *packet,
                     const struct course *course) {
    struct frontend_key key = {.address = packet->tuple.destination,
                               .port = packet->tuple.destination_port,
                               .protocol = packet->tuple.protocol};

    if (packet->protocol == IPPROTO_TCP ? !opens_connection(packet)
                                        : (__s64)(host_time(HOST_DISTRUST_UNTIL) - arrival->now) > 0)
        return 0;
    if (course->to) {
        if (!pod_is_there(skb, packet, &packet->tuple.destination, course) ||
            (!course->from && !source_is_there(skb, packet, course)))
            return 0;
    } else if (!(arrival->node->flags & NODE_DETECTS_BY_CIDR) || !in_detector(&packet->tuple.destination)) {
        return 0;
    }
    return !find_frontend(&key);
}

/* A packet that is not translated, of a flow past the stack, or the first of one. */
INLINE int plain(struct __sk_buff *skb, const struct arrival *arrival, struct packet *packet, struct scratch *scratch,
                 struct course *course, struct direct_flow *flow, int turned) {
    struct next_hop hop;

    if (!can_go(skb, packet, course))
        return GO_ON;
    if (!flow || unlikely(packet->tcp_flags & TCP_SYN && !(packet->tcp_flags & TCP_ACK))) {
        if (!may_begin(skb, arrival, packet, course))
            return GO_ON;
    } else if (!course->from && unlikely(flow->ifindex != skb->ifindex)) {
        if (!source_is_there(skb, packet, course))
            return GO_ON;
        flow->ifindex = skb->ifindex;
    }
    if (!course->to && !find_way_out(skb, packet, &packet->tuple.source, &packet->tuple.destination, course, &hop))
        return GO_ON;
    if (!flow) {
        struct direct_flow made = {.last_ns = arrival->now, .begun = coarse_time(arrival->now)};

        if (packet->protocol == IPPROTO_UDP) {
            made.flags = turned ? DIRECT_FROM_HIGH : DIRECT_FROM_LOW;
            end_datagrams(arrival, packet);
        }
        if (!course->from)
            made.ifindex = skb->ifindex;
        if (insert_direct(&scratch->direct_key, &made)) {
            count(HOOK_TC_INGRESS, packet->protocol == IPPROTO_TCP ? REASON_DIRECT_TCP_FULL : REASON_DIRECT_UDP_FULL);
            return GO_ON;
        }
    } else if (unlikely(packet->tcp_flags & TCP_SYN && !(packet->tcp_flags & TCP_ACK))) {
        flow->flags = 0;
        flow->last_ns = arrival->now;
    } else {
        note_direct(packet, &scratch->direct_key, flow, turned, arrival->now);
    }
    return course->to ? into_pod(skb, packet, course, 1) : out_of_node(skb, packet, &hop, 1);
}

/* Classify a packet of a flow that is translated here. REASON_NONE: tc.c handles it. */
INLINE enum reason classify_translated(struct __sk_buff *skb, const struct arrival *arrival, struct packet *packet,
                                       const struct course *course, struct translation *entry, int fresh) {
    enum reason reason;

    if (!course->from && entry->ifindex != arrival->ifindex) {
        if (!source_is_there(skb, packet, course))
            return REASON_NONE;
        if (entry->flags & FLOW_REPLY)
            entry->ifindex = arrival->ifindex;
        else if (!fresh)
            return REASON_NONE;
    } else if (fresh && !course->from && !source_is_there(skb, packet, course)) {
        return REASON_NONE;
    }
    if (fresh)
        return course->to && !pod_is_there(skb, packet, &entry->destination, course) ? REASON_NONE : packet->reason;
    if (entry->flags & FLOW_REPLY)
        return REASON_REPLY;
    reason = follow_entry(arrival, packet, entry);
    return reason == REASON_FLOW ? reason : REASON_NONE;
}

/* A packet of a flow that tc.c translates and that keeps its client's address. Answers that leave the node are
 * translated where they leave. */
INLINE int translated(struct __sk_buff *skb, const struct arrival *arrival, struct packet *packet,
                      struct course *course, struct translation *entry, int fresh) {
    struct next_hop hop;
    enum reason reason;

    if (entry->flags & (FLOW_SNAT | FLOW_FOREIGN | FLOW_LEFT))
        return GO_ON;
    course->to = find_pod(&entry->destination);
    if (!comes_right(skb, packet, course) || !concerns_pod(course) ||
        (course->to && course->to->ifindex == arrival->ifindex) || !can_go(skb, packet, course))
        return GO_ON;
    reason = hide_reason(packet, classify_translated(skb, arrival, packet, course, entry, fresh));
    if (reason == REASON_NONE)
        return GO_ON;
    if (!course->to && !find_way_out(skb, packet, &packet->tuple.source, &entry->destination, course, &hop))
        return GO_ON;
    if (!course->to && (entry->flags & FLOW_REPLY))
        return out_of_node(skb, packet, &hop, 1);
    if (fresh) {
        struct scratch *scratch = this_scratch(); /* of a flow with these ends that went there untranslated */

        if (scratch) {
            other_key(entry, packet->protocol, &scratch->forward_key);
            direct_key(&scratch->forward_key, &scratch->direct_key);
            delete_direct(&scratch->direct_key);
        }
    }
    if (rewrite_skb(skb, packet, entry, course->routed)) {
        packet->reason = REASON_REWRITE_FAILED;
        count(HOOK_TC_INGRESS, REASON_REWRITE_FAILED);
        return TC_ACT_SHOT;
    }
    packet->translated = 1;
    count(HOOK_TC_INGRESS, packet->reason);
    emit_packet_event(arrival, packet, entry->service, entry);
    touch(packet, entry, arrival->now);
    return course->to ? into_pod(skb, packet, course, 0) : out_of_node(skb, packet, &hop, 0);
}

/* Return in `source` the sender of an ICMP error, which may be anybody on the way of the packet that it is about. */
INLINE int read_sender(const struct __sk_buff *skb, const struct packet *packet, struct address *source) {
    void *data = (void *)(long)skb->data + sizeof(struct ethhdr), *end = (void *)(long)skb->data_end;
    struct ipv6hdr *ipv6 = data;
    struct iphdr *ipv4 = data;

    if ((void *)(ipv4 + 1) > end)
        return -1;
    if (packet->ipv4) {
        set_mapped(source, ipv4->saddr);
        return 0;
    }
    if ((void *)(ipv6 + 1) > end)
        return -1;
    copy_ipv6(source, &ipv6->saddr);
    return 0;
}

/* An ICMP error about a flow past the stack: connection tracking would call it invalid. */
INLINE int about_direct(struct __sk_buff *skb, const struct arrival *arrival, struct packet *packet,
                        struct scratch *scratch) {
    struct course course = {.to = find_pod(&packet->tuple.destination)};
    struct direct_flow *flow;
    struct next_hop hop;
    struct address sender;

    direct_key(&packet->tuple, &scratch->direct_key);
    flow = find_direct(&scratch->direct_key);
    if (!flow || (flow->flags & DIRECT_STACK) || read_sender(skb, packet, &sender))
        return GO_ON;
    course.from = find_pod(&sender);
    if (!concerns_pod(&course) || !comes_right(skb, packet, &course) || !can_go(skb, packet, &course))
        return GO_ON;
    if (course.to)
        return into_pod(skb, packet, &course, 1);
    if (!find_way_out(skb, packet, &sender, &packet->tuple.destination, &course, &hop))
        return GO_ON;
    return out_of_node(skb, packet, &hop, 1);
}

INLINE int route(struct __sk_buff *skb, const struct arrival *arrival, struct packet *packet, struct scratch *scratch,
                 int fresh) {
    struct course course = {};
    struct direct_flow *flow;
    struct translation *entry;
    int turned, live;

    live = host_routing_is_on(arrival->now);
    turned = hide_value(scratch, direct_key(&packet->tuple, &scratch->direct_key));
    flow = fresh ? 0 : find_direct(&scratch->direct_key);
    course.from = find_pod(&packet->tuple.source);
    if (flow && (flow->flags & DIRECT_STACK)) {
        flow->last_ns = arrival->now;
        return GO_ON;
    }
    course.to = fresh ? 0 : find_pod(&packet->tuple.destination);
    if (flow) {
        if (live && concerns_pod(&course) && comes_right(skb, packet, &course))
            return plain(skb, arrival, packet, scratch, &course, flow, turned);
        give_to_stack(&scratch->direct_key, flow, arrival->now);
        return GO_ON;
    }
    if (!live)
        return GO_ON;
    entry = find_flow(&packet->tuple);
    if (entry)
        return translated(skb, arrival, packet, &course, entry, fresh);
    if (fresh || !concerns_pod(&course) || !comes_right(skb, packet, &course) ||
        (course.to && course.to->ifindex == arrival->ifindex))
        return GO_ON;
    return plain(skb, arrival, packet, scratch, &course, 0, turned);
}

PROGRAM(tc_host)(struct __sk_buff *skb) {
    struct arrival arrival = {.context = skb, .node = this_node(), .hook = HOOK_TC_INGRESS, .ifindex = skb->ifindex};
    struct scratch *scratch = this_scratch();
    struct packet *packet;
    enum reason reason;
    int fresh, action;

    if (!scratch || !arrival.node || !(arrival.node->flags & NODE_READY)) {
        count(HOOK_TC_INGRESS, REASON_NOT_READY);
        return TC_ACT_UNSPEC;
    }
    packet = (struct packet *)scratch->packet;
    fresh = scratch->handed == HANDED_NEW;
    arrival.now = coarse_now(scratch);
    reason = hide_reason(packet, fresh ? packet->reason : read_packet(skb, packet));
    action = GO_ON;
    if ((fresh || reason == REASON_NONE) && packet->l3 == sizeof(struct ethhdr) && !of_a_vlan(skb, packet) &&
        !skb->vlan_present) {
        if (packet->kind == PACKET_WHOLE)
            action = route(skb, &arrival, packet, scratch, fresh);
        else if (packet->kind == PACKET_ICMP_ERROR && host_routing_is_on(arrival.now))
            action = about_direct(skb, &arrival, packet, scratch);
        if (action != GO_ON) {
            scratch->handed = HANDED_NOTHING;
            return action;
        }
    }
    packet->reason = reason;
    scratch->handed = fresh ? HANDED_BACK : HANDED_PARSED;
    call_program(skb, PROGRAM_SERVICES);
    scratch->handed = HANDED_NOTHING;
    return TC_ACT_UNSPEC;
}
