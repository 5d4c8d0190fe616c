/* Packet programs at the devices where clients' packets come in: translation at the client's edge. At ingress a packet
 * to a frontend gets its backend's address, and answers to this node's SNAT ports are turned back; at egress answers
 * of backends get the frontend's address. Everything between sees one pod-addressed flow. A packet that now has this
 * node's own address as source cannot go through the stack, which takes it for forged: it leaves by redirect, and so
 * do the answers to it, which otherwise would be taken for this node's own. */
#include "cut.h"
#include "direct.h"
#include "hold.h"
#include "redirect.h"
#include "rewrite_skb.h"
#include "too_big.h"
#include "track.h"

/* Look up the next hop. REASON_NONE: `hop` has the device, the next hop and, if known, link-layer addresses. */
INLINE enum reason find_next_hop(struct __sk_buff *skb, const struct packet *packet, const struct translation *entry,
                                 struct next_hop *hop) {
    long result;

    if (packet->hops <= 1)
        return REASON_TTL;
    result = find_route(skb, packet, &entry->source, &entry->destination, skb->ifindex, packet_size(skb, packet), 0,
                        &hop->fib);
    hop->neighbour_known = result == BPF_FIB_LKUP_RET_SUCCESS;
    return why_no_route(result);
}

/* Handle a packet that cannot be forwarded. The first one of a flow goes to the slow path, and so do later ones.
 * Replies and packets of existing flows must not reach the stack, which would reset the connection. */
INLINE long refuse(struct __sk_buff *skb, struct packet *packet, const struct translation *entry,
                   const struct next_hop *hop, enum reason found) {
    struct scratch *scratch = this_scratch();

    if (packet->reason == REASON_LEFT_FLOW)
        return TC_ACT_UNSPEC;
    if (packet->reason == REASON_REWRITE_FAILED)
        return TC_ACT_SHOT;
    if (found == REASON_NEW_FLOW || found == REASON_MOVED) {
        if (scratch)
            forget_flow(&packet->tuple, entry, &scratch->reply_key); /* nothing of it was sent on */
        return TC_ACT_UNSPEC;
    }
    if (packet->reason == REASON_TTL)
        return entry->flags & FLOW_REPLY ? TC_ACT_SHOT : TC_ACT_UNSPEC;
    if (packet->reason != REASON_MTU || packet->kind == PACKET_ICMP_ERROR || !packet->keep_whole) {
        packet->reason = REASON_NO_WAY_OUT;
        return TC_ACT_SHOT;
    }
    packet->reason = REASON_TOO_BIG;
    return answer_too_big(skb, packet, hop->fib.tot_len);
}

/* Find the next hop, and fragment the packet if it exceeds the MTU. REASON_NONE: the packet can be forwarded. */
INLINE enum reason route_and_fragment(struct __sk_buff *skb, const struct arrival *arrival, struct packet *packet,
                                      const struct translation *entry, struct next_hop *hop) {
    enum reason reason = REASON_NONE;
    int attempt;

#pragma clang loop unroll(disable)
    for (attempt = 0; attempt < 2; attempt++) {
        reason = hide_reason(packet, find_next_hop(skb, packet, entry, hop));
        if (likely(reason != REASON_MTU) || attempt)
            break;
        reason = hide_reason(packet, fragment_packet(skb, arrival, packet, entry));
        if (reason != REASON_NONE)
            break;
    }
    return reason;
}

/* Translate the packet by the entry. Returns the verdict; if that is not to forward, packet->reason says why. */
INLINE int translate(struct __sk_buff *skb, const struct arrival *arrival, struct packet *packet,
                     struct scratch *scratch, struct translation *entry) {
    int away = arrival->hook == HOOK_TC_INGRESS && (entry->flags & FLOW_SNAT);
    struct next_hop *hop = (struct next_hop *)scratch->work; /* on the stack it would be many states to the verifier */
    enum reason found = packet->reason;
    __u32 held = 0;
    long failed;

    _Static_assert(sizeof(*hop) <= sizeof(scratch->work), "no room for the next hop");
    if (unlikely(packet->kind == PACKET_FIRST_FRAGMENT))
        held = count_held(packet, arrival->now);
    if (away) {
        if (hide_reason(packet, route_and_fragment(skb, arrival, packet, entry, hop)) != REASON_NONE)
            return refuse(skb, packet, entry, hop, found);
        packet->reason = found;
    }
    if (packet->kind == PACKET_FIRST_FRAGMENT && remember_fragment(packet, arrival->now, arrival->hook) &&
        give_up_flow(packet, entry, arrival->now)) {
        packet->reason = REASON_LEFT_FLOW;
        return TC_ACT_UNSPEC;
    }
    if (unlikely(held) && arrival->hook == HOOK_TC_INGRESS && translate_held(skb, packet, held, arrival->now)) {
        packet->reason = REASON_REWRITE_FAILED;
        return TC_ACT_SHOT;
    }
    failed = packet->kind == PACKET_ICMP_ERROR ? rewrite_error_skb(skb, packet, entry, away)
                                               : rewrite_skb(skb, packet, entry, away);
    if (failed) {
        packet->reason = REASON_REWRITE_FAILED;
        return TC_ACT_SHOT;
    }
    packet->translated = 1;
    return away ? send(skb, packet, hop, arrival->now) : TC_ACT_UNSPEC;
}

/* Handle a fragment that is not translated. Returns the verdict. */
INLINE int pass_fragment(struct __sk_buff *skb, struct packet *packet, __u64 now) {
    if (packet->kind == PACKET_FIRST_FRAGMENT && !translates(packet->reason))
        return pass_held(skb, packet, now) ? TC_ACT_SHOT : TC_ACT_UNSPEC;
    if (packet->reason != REASON_FRAGMENT_UNKNOWN || !hold_fragment(skb, packet, now))
        return TC_ACT_UNSPEC;
    packet->reason = REASON_FRAGMENT_HELD;
    return TC_ACT_STOLEN;
}

/* Which program of forward.c has a packet of a flow between nodes; PROGRAM_SERVICES: it is for this one. An answer that
 * comes in where answers leave is what was cut off one. */
INLINE __u32 between_nodes(const struct __sk_buff *skb, const struct packet *packet, const struct translation *entry,
                           enum hook hook, __u32 handed) {
    __u32 flags = entry ? entry->flags : 0;

    if (packet->reason == REASON_WRAPPED)
        return PROGRAM_UNWRAP;
    if (likely(!(flags & (FLOW_FORWARDED | FLOW_TUNNELED))))
        return PROGRAM_SERVICES;
    if (hook == HOOK_TC_EGRESS)
        return (flags & FLOW_BACK) && translates(packet->reason) ? PROGRAM_ANSWER : PROGRAM_SERVICES;
    if (translates(packet->reason))
        return (flags & FLOW_FORWARDED) || handed != HANDED_TUNNEL ? PROGRAM_FORWARD : PROGRAM_SERVICES;
    if (packet->reason != REASON_OTHER_EDGE || packet->kind != PACKET_LATER_FRAGMENT ||
        (device_flags(skb->ifindex) & DEVICE_POD))
        return PROGRAM_SERVICES;
    return flags & FLOW_BACK ? PROGRAM_ANSWER : flags & FLOW_FORWARDED ? PROGRAM_FORWARD : PROGRAM_SERVICES;
}

/* The stack gets a packet of a flow, and so all that come later: connection tracking would not hear of the flow's end,
 * judge what comes back to it by old numbers, and take another flow with the same ends for this one. */
INLINE void note_by_stack(const struct packet *packet, struct translation *entry, struct scratch *scratch) {
    if (likely(flow_flags(entry) & (FLOW_BY_STACK | FLOW_SNAT | FLOW_FOREIGN | FLOW_FORWARDED | FLOW_TUNNELED)))
        return;
    if (packet->kind == PACKET_WHOLE && (packet->translated || packet->reason == REASON_OTHER_EDGE) &&
        host_time(HOST_ROUTING_UNTIL))
        note(entry, find_other(&packet->tuple, entry, &scratch->forward_key), FLOW_BY_STACK);
}

/* The reason of a packet that was parsed: REASON_WRAPPED for IP in IP that another node may have sent. */
INLINE enum reason in_ipip(struct __sk_buff *skb, const struct arrival *arrival, const struct packet *packet,
                           enum reason reason) {
    return unlikely(reason == REASON_PROTOCOL) && may_be_ipip(arrival->node, packet) && !of_a_vlan(skb, packet) &&
                   skb->pkt_type == 0
               ? REASON_WRAPPED
               : reason;
}

/* Read a packet; or the rest of one that another program has read, of which packet->reason says what it found. */
INLINE enum reason read_handed(struct __sk_buff *skb, const struct arrival *arrival, struct packet *packet,
                               __u32 handed) {
    enum reason reason = hide_reason(packet, handed ? packet->reason : read_packet(skb, packet));

    reason = hide_reason(packet, read_on(skb, packet, reason));
#ifndef RAW_IP
    if (arrival->hook == HOOK_TC_INGRESS)
        reason = hide_reason(packet, in_ipip(skb, arrival, packet, reason));
#endif
    return reason;
}

/* Why a packet that was read has no flow here. REASON_NONE: it may have one. */
INLINE enum reason why_not_tracked(const struct __sk_buff *skb, const struct arrival *arrival,
                                   const struct packet *packet) {
    if (unlikely(of_a_vlan(skb, packet)))
        return REASON_VLAN;
    if (arrival->hook == HOOK_TC_EGRESS)
        return REASON_NONE;
    if (unlikely(skb->pkt_type != 0) &&
        (skb->pkt_type != TO_ANOTHER_HOST || !(device_flags(skb->ifindex) & DEVICE_POD)))
        return REASON_NOT_FOR_US; /* on a bridge's port, the bridge's own address looks like another host's */
#ifndef RAW_IP
    if (unlikely(is_wrapped(arrival->node, packet)))
        return REASON_WRAPPED;
#endif
    return REASON_NONE;
}

/* Find the translation of a packet that was read with this reason, as track() and track_leaving() do. */
INLINE enum reason find_translation(const struct __sk_buff *skb, const struct arrival *arrival, struct packet *packet,
                                    enum reason reason, __u32 handed, __u32 *service, struct translation **found) {
    if (handed == HANDED_BACK) {
        *found = find_flow(&packet->tuple);
        reason = *found ? reason : REASON_CHANGED;
    }
    if (reason == REASON_NONE)
        reason = why_not_tracked(skb, arrival, packet);
    if (reason == REASON_NONE) {
        *found = 0;
        reason = arrival->hook == HOOK_TC_INGRESS ? track(arrival, packet, service, found)
                                                  : track_leaving(arrival, packet, found);
    }
    return hide_reason(packet, reason);
}

/* Have host.c send a packet that it handed over, and whose flow was opened just now. Returns where it is not for it. */
INLINE void hand_back(struct __sk_buff *skb, const struct packet *packet, struct scratch *scratch,
                      const struct translation *entry, enum reason reason) {
    if (!entry || (reason != REASON_NEW_FLOW && reason != REASON_MOVED) || packet->kind != PACKET_WHOLE ||
        (entry->flags & (FLOW_SNAT | FLOW_FORWARDED)))
        return;
    scratch->handed = HANDED_NEW;
    call_program(skb, PROGRAM_HOST);
    scratch->handed = HANDED_NOTHING;
}

/* The verdict on a packet that is not translated: some are dropped. What leaves is noted for host routing. */
INLINE int judge(const struct __sk_buff *skb, const struct arrival *arrival, struct packet *packet,
                 enum reason reason) {
    int action = unlikely(reason == REASON_PORT_TAKEN) ? TC_ACT_SHOT : TC_ACT_UNSPEC;

    if (arrival->hook == HOOK_TC_INGRESS)
        return action;
    if (unlikely(reason == REASON_IPV6_EXTENSION) && !(address_flags(&packet->tuple.source) & ADDRESS_LOCAL) &&
        !of_a_vlan(skb, packet)) {
        packet->reason = REASON_HEADER_CHAIN;
        action = TC_ACT_SHOT;
    }
    if (reason == REASON_NOT_TRANSLATED)
        note_from_stack(arrival, packet);
    return action;
}

/* What is left to do with a packet that came in and is not sent on. Returns the verdict. */
INLINE int leave_to_stack(struct __sk_buff *skb, const struct arrival *arrival, struct packet *packet,
                          struct scratch *scratch, struct translation *entry, int action) {
    if (unlikely(packet->kind == PACKET_FIRST_FRAGMENT || packet->kind == PACKET_LATER_FRAGMENT) &&
        action == TC_ACT_UNSPEC)
        action = pass_fragment(skb, packet, arrival->now);
    if (entry && action == TC_ACT_UNSPEC)
        note_by_stack(packet, entry, scratch);
    return action;
}

/* Count and report what became of a packet, and keep its flow's account. */
INLINE void tell(const struct arrival *arrival, struct packet *packet, struct translation *entry, __u32 service,
                 __u32 handed, int action) {
    count(arrival->hook, packet->reason);
    if (handed && handed != HANDED_TUNNEL && action == TC_ACT_UNSPEC && packet->reason != REASON_NOT_IP)
        count(arrival->hook, REASON_BY_STACK);
    emit_packet_event(arrival, packet, service, packet->translated ? entry : 0);
    if (entry && packet->translated)
        touch(packet, entry, arrival->now);
}

INLINE int handle(struct __sk_buff *skb, enum hook hook) {
    struct arrival arrival = {.context = skb, .node = this_node(), .hook = hook, .ifindex = skb->ifindex};
    struct scratch *scratch = this_scratch();
    struct translation *entry = 0;
    struct packet *packet;
    __u32 service = ~0U, handed = HANDED_NOTHING;
    enum reason reason;
    int action;

    if (!scratch || !arrival.node || !(arrival.node->flags & NODE_READY)) {
        count(hook, REASON_NOT_READY);
        return TC_ACT_UNSPEC;
    }
    packet = (struct packet *)scratch->packet;
    if (hook == HOOK_TC_INGRESS) {
        handed = scratch->handed;
        scratch->handed = HANDED_NOTHING;
    }
    arrival.now = coarse_now(scratch);
    reason = read_handed(skb, &arrival, packet, handed);
    reason = find_translation(skb, &arrival, packet, reason, handed, &service, &entry);
    action = judge(skb, &arrival, packet, reason);
    if (handed == HANDED_PARSED)
        hand_back(skb, packet, scratch, entry, reason);
#ifndef RAW_IP
    __u32 program = hide_value(scratch, between_nodes(skb, packet, entry, hook, handed));
    if (unlikely(program != PROGRAM_SERVICES)) {
        call_program(skb, program);
        count(hook, REASON_INCONSISTENT);
        return TC_ACT_SHOT;
    }
#endif
    if (entry && translates(reason)) {
        service = entry->service;
        action = hide_value(scratch, translate(skb, &arrival, packet, scratch, entry));
    }
    if (hook == HOOK_TC_INGRESS)
        action = leave_to_stack(skb, &arrival, packet, scratch, entry, action);
    tell(&arrival, packet, entry, service, handed, action);
    return action;
}

PROGRAM(tc_ingress)(struct __sk_buff *skb) {
    return handle(skb, HOOK_TC_INGRESS);
}

PROGRAM(tc_egress)(struct __sk_buff *skb) {
    return handle(skb, HOOK_TC_EGRESS);
}
