/* Host routing at the devices where packets come in: what is for a pod of this node goes straight into it, and what
 * leaves the node goes straight to its uplink, past the node's routing and netfilter. Plain packets and those of flows
 * that tc.c opened; everything else is handed to tc.c, with what was parsed of it. Who may go past the stack is an
 * entry of the map `pods`; which flows may, direct.h says. What the stack would have done still happens: it gets
 * packets at the end of their hop limit, and bigger ones than their way takes, to answer them. */
#include "quick.h"
#include "track.h"

/* Whether a flow out of the node may begin: to other pods alone, as the rest of the world must be asked from an address
 * that it can answer to, which the stack puts in. */
INLINE int may_leave(const struct arrival *arrival, const struct packet *packet) {
    return (arrival->node->flags & NODE_DETECTS_BY_CIDR) && in_detector(&packet->tuple.destination);
}

/* Whether a flow that begins with this packet may go past the stack. */
INLINE int may_begin(struct __sk_buff *skb, const struct arrival *arrival, const struct packet *packet,
                     struct scratch *scratch, const struct course *course) {
    struct frontend_key key = {.address = packet->tuple.destination,
                               .port = packet->tuple.destination_port,
                               .protocol = packet->tuple.protocol};

    if (packet->protocol == IPPROTO_TCP ? !opens_connection(packet)
                                        : (__s64)(host_time(HOST_DISTRUST_UNTIL) - arrival->now) > 0)
        return 0;
    if (packet->protocol == IPPROTO_TCP && hide_value(scratch, answered_here(&packet->tuple, scratch)))
        return 0; /* it gets another port, or that flow goes */
    if (course->to) {
        if (!pod_is_there(skb, packet, &packet->tuple.destination, course, arrival->now) ||
            (!course->from && !source_is_there(skb, packet, course)))
            return 0;
    } else if (!may_leave(arrival, packet)) {
        return 0;
    }
    return !map_lookup(MAP(frontends), &key); /* no node port is at a pod's address */
}

INLINE void remember_hops(struct direct_flow *flow, const struct arrival *arrival, const struct course *course,
                          int turned, __u32 generation) {
    if (course->to)
        remember_hop(turned ? &flow->high : &flow->low, arrival->ifindex, course->to, generation, !course->from);
    if (course->to && course->from && !(course->to->flags & POD_BRIDGED))
        remember_hop(turned ? &flow->low : &flow->high, course->to->ifindex, course->from, generation, 0);
}

/* Store a flow that begins. Returns 0, or -1: there is no room. */
INLINE int begin_direct(const struct arrival *arrival, const struct packet *packet, struct scratch *scratch,
                        const struct course *course, int turned, __u32 generation) {
    struct direct_flow *made = (struct direct_flow *)&scratch->forward;

    _Static_assert(sizeof(*made) <= sizeof(scratch->forward), "no room for a flow");
    __builtin_memset(made, 0, sizeof(*made));
    made->last_ns = arrival->now;
    made->begun = coarse_time(arrival->now);
    if (!course->from)
        made->ifindex = arrival->ifindex;
    if (packet->protocol == IPPROTO_UDP)
        made->flags = turned ? DIRECT_FROM_HIGH : DIRECT_FROM_LOW;
    remember_hops(made, arrival, course, turned, generation);
    if (likely(!insert_direct(&scratch->direct_key, made)))
        return 0;
    count(HOOK_TC_INGRESS, packet->protocol == IPPROTO_TCP ? REASON_DIRECT_TCP_FULL : REASON_DIRECT_UDP_FULL);
    return -1;
}

/* A packet that is not translated, of a flow past the stack, or the first of one. */
INLINE int plain(struct __sk_buff *skb, const struct arrival *arrival, struct packet *packet, struct scratch *scratch,
                 struct course *course, struct direct_flow *flow, int turned, __u32 generation) {
    int begins = !flow || unlikely(packet->protocol == IPPROTO_TCP && opens_connection(packet));
    struct next_hop hop;

    if (!can_go(skb, packet, course))
        return GO_ON;
    if (begins) {
        if (!may_begin(skb, arrival, packet, scratch, course))
            return GO_ON;
    } else if (!course->from && unlikely(flow->ifindex != skb->ifindex)) {
        if (!source_is_there(skb, packet, course))
            return GO_ON;
        flow->ifindex = skb->ifindex;
    }
    if (!course->to && !find_way_out(skb, packet, &packet->tuple.source, &packet->tuple.destination, course, &hop))
        return GO_ON;
    if (!flow) {
        if (packet->protocol == IPPROTO_UDP)
            end_datagrams(arrival, packet);
        if (begin_direct(arrival, packet, scratch, course, turned, generation))
            return GO_ON;
    } else {
        if (begins) {
            flow->flags = 0;
            flow->ifindex = course->from ? 0 : skb->ifindex;
        }
        remember_hops(flow, arrival, course, turned, generation);
        note_direct(&scratch->direct_key, flow, packet->tcp_flags, turned, arrival->now);
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
        return course->to && !pod_is_there(skb, packet, &entry->destination, course, arrival->now) ? REASON_NONE
                                                                                                   : packet->reason;
    if (entry->flags & FLOW_REPLY)
        return may_be_another(packet, entry) ? REASON_NONE : REASON_REPLY; /* tc.c looks where it leaves */
    reason = follow_entry(arrival, packet, entry);
    return reason == REASON_FLOW ? reason : REASON_NONE;
}

/* A packet of a flow that tc.c translates and that keeps its client's address. Answers that leave the node are
 * translated where they leave. */
INLINE int translated(struct __sk_buff *skb, const struct arrival *arrival, struct packet *packet,
                      struct course *course, struct translation *entry, int fresh) {
    struct next_hop hop;
    enum reason reason;

    if (flow_flags(entry) & (FLOW_SNAT | FLOW_FOREIGN | FLOW_LEFT | FLOW_FORWARDED | FLOW_TUNNELED | FLOW_BY_STACK))
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

/* The way of a parsed packet. `fresh`: tc.c has just opened its flow; `unknown`: no flow past the stack is its. */
INLINE int route(struct __sk_buff *skb, const struct arrival *arrival, struct packet *packet, struct scratch *scratch,
                 int fresh, int unknown) {
    int opens = packet->protocol == IPPROTO_TCP && opens_connection(packet);
    __u32 generation = host_time(HOST_GENERATION); /* before anything that it is about */
    int turned, live = host_routing_is_on(arrival->now);
    struct translation *entry = 0;
    struct course course = {};
    struct direct_flow *flow;

    course.from = find_pod(&packet->tuple.source);
    if (!fresh)
        course.to = find_pod(&packet->tuple.destination);
    if (!course.to) {
        entry = find_flow(&packet->tuple);
        if (entry || fresh)
            return live && entry ? translated(skb, arrival, packet, &course, entry, fresh) : GO_ON;
        packet->no_flow = 1;
        if (opens && !may_leave(arrival, packet))
            return GO_ON;
    }
    turned = hide_value(scratch, direct_key(&packet->tuple, &scratch->direct_key));
    flow = unknown ? 0 : find_direct(&scratch->direct_key);
    if (flow && (flow->flags & DIRECT_STACK)) {
        flow->last_ns = arrival->now;
        return GO_ON;
    }
    if (flow) {
        if (live && concerns_pod(&course) && comes_right(skb, packet, &course))
            return plain(skb, arrival, packet, scratch, &course, flow, turned, generation);
        give_to_stack(&scratch->direct_key, flow, arrival->now);
        return GO_ON;
    }
    if (!live)
        return GO_ON;
    if (course.to && !opens) {
        entry = find_flow(&packet->tuple);
        if (entry)
            return translated(skb, arrival, packet, &course, entry, 0);
    }
    if (!concerns_pod(&course) || !comes_right(skb, packet, &course) ||
        (course.to && course.to->ifindex == arrival->ifindex))
        return GO_ON;
    return plain(skb, arrival, packet, scratch, &course, 0, turned, generation);
}

PROGRAM(tc_host)(struct __sk_buff *skb) {
    struct arrival arrival = {.context = skb, .node = this_node(), .hook = HOOK_TC_INGRESS, .ifindex = skb->ifindex};
    struct scratch *scratch = this_scratch();
    struct packet *packet;
    enum reason reason;
    int fresh, action, unknown = 0;

    if (!scratch || !arrival.node || !(arrival.node->flags & NODE_READY)) {
        count(HOOK_TC_INGRESS, REASON_NOT_READY);
        return TC_ACT_UNSPEC;
    }
    packet = (struct packet *)scratch->packet;
    fresh = scratch->handed == HANDED_NEW;
    if (!fresh) {
        action = hide_value(scratch, quick(skb, scratch, &unknown));
        if (likely(action != GO_ON))
            return action;
        unknown = hide_value(scratch, unknown);
    }
    arrival.now = coarse_now(scratch);
    reason = hide_reason(packet, fresh ? packet->reason : read_packet(skb, packet));
    action = GO_ON;
    if ((fresh ? !packet->extended : reason == REASON_NONE) && packet->l3 == sizeof(struct ethhdr) &&
        !of_a_vlan(skb, packet) && !skb->vlan_present) {
        if (packet->kind == PACKET_WHOLE)
            action = route(skb, &arrival, packet, scratch, fresh, unknown);
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
