/* Packets of flows between nodes (docs/forwarding.md). The node that a client talks to, which chose an endpoint of
 * another node, forwards the client's packets as they are (tc_forward). The endpoint's node takes them out of the
 * tunnel (tc_unwrap) and treats them as those of a client with a local backend; the answers leave to the client, or
 * back through the tunnel (tc_answer), and then the first node sends them on (tc_unwrap). tc.c calls these programs, so
 * that it pays for none of this. */
#include "admit.h"
#include "cut.h"
#include "forward_event.h"
#include "geneve.h"
#include "hold.h"
#include "one_way.h"
#include "too_big.h"
#include "track.h"
#include "wrap.h"

/* The end of a packet that goes no further. */
INLINE int drop(struct packet *packet, enum reason reason) {
    packet->reason = reason;
    return TC_ACT_SHOT;
}

/* Count and report a packet that is not sent on. Most reasons for which other programs pass packets on mean here that
 * the packet ends, which is told besides. */
INLINE void tell_unsent(const struct arrival *arrival, struct packet *packet, __u32 service, int action) {
    count(arrival->hook, packet->reason);
    emit_packet_event(arrival, packet, service, 0);
    if (action != TC_ACT_SHOT || drops(packet->reason))
        return;
    if (packet->reason != REASON_TUNNEL_OPTION &&
        (packet->reason < REASON_TUNNEL_SENDER || packet->reason > REASON_TUNNEL_ENDPOINT)) {
        packet->reason = REASON_TUNNEL_LOST;
        count(arrival->hook, REASON_TUNNEL_LOST);
        emit_packet_event(arrival, packet, service, 0);
    }
    capture_packet(arrival, packet, service);
}

/* Answer a packet that is too big with an ICMP error that comes in at the device at hand, so that it is treated as
 * everything that comes from there. */
INLINE int answer_inwards(struct __sk_buff *skb, struct packet *packet, __u32 mtu, int swap) {
    if (packet->kind == PACKET_ICMP_ERROR || !packet->keep_whole)
        return drop(packet, REASON_NO_WAY_OUT);
    packet->reason = REASON_TOO_BIG;
    if (make_too_big(skb, packet, mtu, swap))
        return TC_ACT_SHOT;
    return bpf_redirect(skb->ifindex, BPF_F_INGRESS);
}

/* Handle a packet of a client that cannot be forwarded. A flow that has just begun is left to the slow path. */
INLINE int refuse(struct __sk_buff *skb, struct packet *packet, struct scratch *scratch,
                  const struct translation *entry, enum reason found, enum reason refusal, __u32 mtu) {
    int begins = found == REASON_NEW_FLOW || found == REASON_MOVED;

    packet->reason = refusal;
    switch (refusal) {
    case REASON_LEFT_FLOW:
        return TC_ACT_UNSPEC;
    case REASON_TTL:
    case REASON_FIB_MISS:
        if (begins)
            forget_flow(&packet->tuple, entry, &scratch->reply_key);
        return begins || refusal == REASON_TTL ? TC_ACT_UNSPEC : drop(packet, REASON_NO_WAY_OUT);
    case REASON_MTU:
        if (packet->kind == PACKET_ICMP_ERROR || !packet->keep_whole)
            return drop(packet, REASON_NO_WAY_OUT);
        packet->reason = REASON_TOO_BIG;
        return answer_too_big(skb, packet, mtu);
    case REASON_REWRITE_FAILED:
        return TC_ACT_SHOT;
    default:
        return drop(packet, REASON_NO_WAY_OUT);
    }
}

/* Address a frame that leaves to the device that it leaves by: what is cut off it comes in there. */
INLINE long turn_inwards(struct __sk_buff *skb) {
    __u8 own[ETH_ALEN];

    return bpf_skb_load_bytes(skb, ETH_ALEN, own, sizeof(own)) || bpf_skb_store_bytes(skb, 0, own, sizeof(own), 0);
}

/* Find the way of a packet to the other node, and fragment the packet if it is too big. */
INLINE enum reason reach_node(struct __sk_buff *skb, const struct arrival *arrival, struct packet *packet,
                              const struct translation *entry, const struct tunnel *to, struct tunnel_hop *hop) {
    enum reason reason = REASON_NONE;
    int attempt;

#pragma clang loop unroll(disable)
    for (attempt = 0; attempt < 2; attempt++) {
        reason = hide_reason(packet, find_tunnel_hop(skb, packet, tunnel_source(arrival->node, packet->ipv4), to, hop));
        if (likely(reason != REASON_MTU) || attempt)
            break;
        if (arrival->hook == HOOK_TC_EGRESS && may_fragment(skb, packet) && turn_inwards(skb))
            return REASON_REWRITE_FAILED;
        reason = hide_reason(packet, fragment_packet(skb, arrival, packet, entry));
        if (reason != REASON_NONE)
            break;
    }
    return reason;
}

/* Hide from the verifier what else is known of a way that was found (packet.h). */
INLINE void settle_hop(struct scratch *scratch, struct tunnel_hop *hop) {
    hop->by_neighbour = hide_value(scratch, hop->by_neighbour);
    hop->format = hide_value(scratch, hop->format);
    hop->shrink = hide_value(scratch, hop->shrink);
}

/* Send a client's packet to the endpoint's node. Returns the verdict. */
INLINE int forward(struct __sk_buff *skb, const struct arrival *arrival, struct packet *packet, struct scratch *scratch,
                   struct translation *entry) {
    __u32 endpoint = entry->endpoint, held = 0;
    const struct tunnel *to = tunnel_to(entry->tunnel, packet->ipv4);
    enum reason found = packet->reason, refusal;
    __u8 kind = entry->flags & FLOW_DSR ? TUNNEL_ASK_DSR : TUNNEL_ASK;
    struct tunnel_hop hop = {};

    if (!to)
        return drop(packet, REASON_INCONSISTENT);
    if (unlikely(packet->kind == PACKET_FIRST_FRAGMENT))
        held = count_held(packet, arrival->now);
    refusal = REASON_TTL;
    if (packet->hops > 1)
        refusal = hide_reason(packet, reach_node(skb, arrival, packet, entry, to, &hop));
    if (refusal != REASON_NONE)
        return refuse(skb, packet, scratch, entry, found, refusal, hop.mtu);
    settle_hop(scratch, &hop);
    packet->reason = found;
    if (packet->kind == PACKET_FIRST_FRAGMENT && remember_fragment(packet, arrival->now, arrival->hook) &&
        give_up_flow(packet, entry, arrival->now))
        return refuse(skb, packet, scratch, entry, found, REASON_LEFT_FLOW, 0);
    if (unlikely(held) && translate_held(skb, packet, held, arrival->now))
        return drop(packet, REASON_REWRITE_FAILED);
    if (lower_hops(skb, packet) || wrap(skb, arrival->node, packet, &hop, endpoint, kind))
        return drop(packet, REASON_REWRITE_FAILED);
    packet->translated = 1;
    return send_wrapped(skb, &hop, 0);
}

/* Find the way of an answer to its client, and fragment it if it is too big. The addresses of an ICMP error are those
 * that the flow's answers have, whoever reports it. */
INLINE enum reason reach_client(struct __sk_buff *skb, const struct arrival *arrival, struct packet *packet,
                                const struct translation *entry, struct next_hop *hop) {
    enum reason reason = REASON_NONE;
    int attempt;

#pragma clang loop unroll(disable)
    for (attempt = 0; attempt < 2; attempt++) {
        long result = find_route(skb, packet, &packet->tuple.source, &packet->tuple.destination, skb->ifindex,
                                 packet_size(skb, packet), 0, &hop->fib);

        hop->neighbour_known = result == BPF_FIB_LKUP_RET_SUCCESS;
        reason = hide_reason(packet, why_no_route(result));
        if (reason != REASON_MTU || attempt || !entry)
            break;
        reason = hide_reason(packet, fragment_packet(skb, arrival, packet, entry));
        if (reason != REASON_NONE)
            break;
    }
    return reason;
}

/* Send an answer on to the client, at the node that the client talks to. Returns the verdict. */
INLINE int send_answer(struct __sk_buff *skb, const struct arrival *arrival, struct packet *packet,
                       const struct translation *entry) {
    enum reason refusal;
    struct next_hop hop;

    if (packet->hops <= 1)
        return drop(packet, REASON_TTL);
    refusal = hide_reason(packet, reach_client(skb, arrival, packet, entry, &hop));
    if (refusal == REASON_MTU)
        return answer_inwards(skb, packet, hop.fib.tot_len, 0);
    if (refusal != REASON_NONE)
        return drop(packet, REASON_NO_WAY_OUT);
    if (packet->kind == PACKET_FIRST_FRAGMENT)
        remember_fragment(packet, arrival->now, arrival->hook);
    if (lower_hops(skb, packet))
        return drop(packet, REASON_REWRITE_FAILED);
    packet->reason = packet->kind == PACKET_ICMP_ERROR       ? REASON_ICMP_ERROR
                     : packet->kind == PACKET_LATER_FRAGMENT ? REASON_FRAGMENT
                                                             : REASON_REPLY;
    packet->translated = 1;
    return send(skb, packet, &hop, arrival->now);
}

/* A client that was forwarded by another node sends to this one now: its answers no longer go through the tunnel. */
INLINE void end_tunneling(const struct packet *packet, struct translation *entry, struct scratch *scratch) {
    struct translation *reply = find_other(&packet->tuple, entry, &scratch->reply_key);

    if (reply)
        reply->flags &= ~FLOW_BACK;
    entry->flags &= ~(FLOW_TUNNELED | FLOW_BACK);
}

/* Called with a parsed packet of a flow that goes to another node, or came from one before. */
PROGRAM(tc_forward)(struct __sk_buff *skb) {
    struct arrival arrival = {.context = skb, .node = this_node(), .hook = HOOK_TC_INGRESS, .ifindex = skb->ifindex};
    struct scratch *scratch = this_scratch();
    struct translation *entry;
    struct packet *packet;
    __u32 service;
    int action;

    if (!scratch)
        return TC_ACT_SHOT;
    packet = (struct packet *)scratch->packet;
    arrival.now = coarse_now(scratch);
    entry = find_flow(&packet->tuple);
    if (entry && (entry->flags & FLOW_TUNNELED)) {
        end_tunneling(packet, entry, scratch);
        packet->reason = REASON_NONE;
        scratch->handed = HANDED_TUNNEL; /* its tuple has the ports of a fragment already */
        call_program(skb, PROGRAM_SERVICES);
        scratch->handed = HANDED_NOTHING;
    }
    if (!entry || !(entry->flags & FLOW_FORWARDED)) {
        packet->reason = REASON_CHANGED;
        tell_unsent(&arrival, packet, ~0U, TC_ACT_SHOT);
        return TC_ACT_SHOT;
    }
    service = entry->service;
    if (entry->flags & FLOW_REPLY)
        action = hide_value(scratch, send_answer(skb, &arrival, packet, entry));
    else
        action = hide_value(scratch, forward(skb, &arrival, packet, scratch, entry));
    if (!packet->translated) {
        tell_unsent(&arrival, packet, service, action);
        return action;
    }
    count(HOOK_TC_INGRESS, packet->reason);
    if (!(entry->flags & FLOW_REPLY))
        count(HOOK_TC_INGRESS, REASON_FORWARDED);
    emit_forwarded_event(&arrival, packet, scratch, entry);
    touch_forwarded(packet, entry, arrival.now);
    return action;
}

/* The flow of an answer that came through the tunnel. REASON_NONE: it may go on; without an entry, since this node
 * forgot the flow, as long as it comes from a frontend. */
INLINE enum reason find_answered(const struct arrival *arrival, struct packet *packet, struct translation **found) {
    struct translation *entry;

    if (packet->kind == PACKET_LATER_FRAGMENT && !recall_fragment(packet, arrival->now))
        return REASON_FRAGMENT_UNKNOWN;
    entry = find_flow(&packet->tuple);
    if (entry && (entry->flags & (FLOW_REPLY | FLOW_FORWARDED)) == (FLOW_REPLY | FLOW_FORWARDED)) {
        *found = entry;
        return REASON_NONE;
    }
    if (packet->kind == PACKET_ICMP_ERROR ||
        !is_frontend(&packet->tuple.source, packet->tuple.source_port, packet->tuple.protocol) ||
        !may_be_client(&packet->tuple.destination))
        return REASON_TUNNEL_FRONTEND;
    return REASON_NONE;
}

/* An answer that came through the tunnel. Returns the verdict. */
INLINE int take_answer(struct __sk_buff *skb, const struct arrival *arrival, struct packet *packet,
                       struct scratch *scratch) {
    struct translation *entry = 0;
    enum reason reason = hide_reason(packet, find_answered(arrival, packet, &entry));
    int action;

    if (reason != REASON_NONE)
        return drop(packet, reason);
    action = hide_value(scratch, send_answer(skb, arrival, packet, entry));
    if (packet->translated) {
        if (entry) {
            emit_forwarded_event(arrival, packet, scratch, entry);
            touch(packet, entry, arrival->now);
        } else {
            emit_packet_event(arrival, packet, ~0U, 0);
        }
    }
    return action;
}

/* What is in front of a packet that came through the tunnel, checked. REASON_NONE: it is one of ours. */
INLINE enum reason read_tunnel_header(struct __sk_buff *skb, const struct arrival *arrival, struct packet *packet,
                                      struct scratch *scratch, struct wrapper *wrapper) {
    enum reason reason = REASON_NONE;
    struct tunnel_header header;

    if (packet->l4 != packet->l3 + ip_header_size(packet) ||
        packet->size < tunnel_overhead(packet, FORMAT_GENEVE) + ip_header_size(packet) ||
        bpf_skb_load_bytes(skb, packet->l4, &header, sizeof(header)))
        return REASON_TUNNEL_FORMAT;
    if (!hide_value(scratch, read_wrapper(arrival->node, packet, &header, wrapper)))
        reason = hide_reason(packet, read_options(skb, arrival->node, packet, scratch, &header, wrapper));
    wrapper->overhead = hide_value(scratch, wrapper->overhead);
    if (reason == REASON_NONE && packet->size < wrapper->overhead + ip_header_size(packet))
        reason = REASON_TUNNEL_FORMAT;
    return reason;
}

/* Whether IP in IP is what another node forwards, and not another program's, whose tunnel is between the same nodes: a
 * packet of a flow that goes between nodes, of a client to a frontend, or from a frontend to a client. `packet`: the
 * one inside. */
INLINE int is_dispatched(const struct arrival *arrival, struct packet *packet, struct scratch *scratch, __u32 kind) {
    __u32 wanted = kind == TUNNEL_ANSWER ? FLOW_REPLY | FLOW_FORWARDED : FLOW_TUNNELED;
    struct translation *entry;

    if (packet->kind == PACKET_LATER_FRAGMENT && !recall_fragment(packet, arrival->now))
        return 0;
    entry = find_flow(&packet->tuple);
    if (entry && (entry->flags & (FLOW_REPLY | wanted)) == wanted)
        return 1;
    if (entry && kind != TUNNEL_ANSWER && (entry->flags & (FLOW_REPLY | FLOW_LOCAL_BACKEND)) == FLOW_LOCAL_BACKEND &&
        may_be_client(&packet->tuple.source))
        return 1; /* it began here, before its packets came by another node */
    if (packet->kind == PACKET_ICMP_ERROR || packet->kind == PACKET_LATER_FRAGMENT)
        return 0;
    if (kind == TUNNEL_ANSWER)
        return is_frontend(&packet->tuple.source, packet->tuple.source_port, packet->tuple.protocol) &&
               may_be_client(&packet->tuple.destination);
    return may_be_client(&packet->tuple.source) && service_of_frontend(packet) != ~0U;
}

/* Read what is inside of IP in IP, where it is: it may have to go on as it came. REASON_NONE: it is one of ours, and
 * `packet` describes it as it will be. */
INLINE enum reason look_inside(struct __sk_buff *skb, const struct arrival *arrival, struct packet *packet,
                               struct scratch *scratch, struct wrapper *wrapper) {
    __u32 ipv4 = packet->ipv4, overhead, wanted = 2 * PARSE_BYTES;
    enum reason reason;
    __be16 mark;

    if (packet->l3 != sizeof(struct ethhdr) || packet->l4 != packet->l3 + ip_header_size(packet) ||
        bpf_skb_load_bytes(skb, packet->l3 + mark_offset(ipv4), &mark, sizeof(mark)) ||
        !hide_value(scratch, read_mark(packet, mark, wrapper)))
        return REASON_OTHER_TUNNEL;
    if (bpf_skb_pull_data(skb, skb->len < wanted ? skb->len : wanted))
        return REASON_OTHER_TUNNEL;
    overhead = hide_value(scratch, wrapper->overhead) & L4_OFFSETS;
    wrapper->overhead = overhead;
    ipv4 = hide_value(scratch, ipv4);
    new_packet(scratch);
    reason = parse_inside((void *)(long)skb->data + overhead, (void *)(long)skb->data_end, skb->len - overhead,
                          !!skb->gso_size, packet, ipv4);
    if (hide_reason(packet, reason) != REASON_NONE ||
        !hide_value(scratch, is_dispatched(arrival, packet, scratch, wrapper->kind)))
        return REASON_OTHER_TUNNEL;
    return REASON_NONE;
}

/* Take a packet out of IP in IP. REASON_NONE: `packet` describes it; REASON_OTHER_TUNNEL: it is as it came. */
INLINE enum reason take_out_ipip(struct __sk_buff *skb, const struct arrival *arrival, struct packet *packet,
                                 struct scratch *scratch, __u32 *node, struct wrapper *wrapper) {
    __u32 *known = map_lookup(MAP(tunnel_nodes), &packet->tuple.source);
    __u32 right = hide_value(scratch, check_source(arrival, packet) == REASON_NONE);

    if (!known)
        return REASON_OTHER_TUNNEL;
    *node = *known;
    if (hide_reason(packet, look_inside(skb, arrival, packet, scratch, wrapper)) != REASON_NONE)
        return REASON_OTHER_TUNNEL;
    if (!right)
        return REASON_TUNNEL_SENDER;
    return bpf_skb_adjust_room(skb, -(int)wrapper->overhead, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO)
               ? REASON_REWRITE_FAILED
               : REASON_NONE;
}

/* Take a packet out of the tunnel. REASON_NONE: `packet` describes what was inside. */
INLINE enum reason take_out(struct __sk_buff *skb, const struct arrival *arrival, struct packet *packet,
                            struct scratch *scratch, __u32 *node, struct wrapper *wrapper) {
    __u32 *known = map_lookup(MAP(tunnel_nodes), &packet->tuple.source);
    int ipv4 = packet->ipv4;
    enum reason reason;

    if (is_ipip(packet))
        return take_out_ipip(skb, arrival, packet, scratch, node, wrapper);
    if (!known || check_source(arrival, packet) != REASON_NONE)
        return REASON_TUNNEL_SENDER;
    *node = *known;
    reason = read_tunnel_header(skb, arrival, packet, scratch, wrapper);
    if (reason != REASON_NONE)
        return reason;
    if (bpf_skb_adjust_room(skb, -(int)wrapper->overhead, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO))
        return REASON_REWRITE_FAILED;
    reason = hide_reason(packet, read_packet(skb, packet));
    reason = hide_reason(packet, read_on(skb, packet, reason));
    if (reason == REASON_NONE && packet->ipv4 == ipv4 && !packet->tagged &&
        !(asks_with_options(arrival, packet) && wrapper->kind != TUNNEL_ANSWER))
        return REASON_NONE;
    packet->size = skb->len - packet->l3; /* whatever it says of itself */
    return REASON_TUNNEL_FORMAT;
}

/* admit_tunneled() for what may be a fragment. */
INLINE enum reason admit_in_tc(const struct arrival *arrival, struct packet *packet, struct scratch *scratch,
                               __u32 node, const struct wrapper *wrapper) {
    if (packet->kind == PACKET_LATER_FRAGMENT && !recall_fragment(packet, arrival->now))
        return REASON_FRAGMENT_UNKNOWN;
    return admit_tunneled(arrival, packet, scratch, node, wrapper, find_flow(&packet->tuple));
}

/* Called with the parsed outer packet. */
PROGRAM(tc_unwrap)(struct __sk_buff *skb) {
    struct arrival arrival = {.context = skb, .node = this_node(), .hook = HOOK_TC_INGRESS, .ifindex = skb->ifindex};
    struct scratch *scratch = this_scratch();
    struct wrapper wrapper = {};
    struct packet *packet;
    enum reason reason;
    __u32 node = 0;
    int action = TC_ACT_SHOT;

    if (!scratch)
        return TC_ACT_SHOT;
    packet = (struct packet *)scratch->packet;
    arrival.now = coarse_now(scratch);
    reason = hide_reason(packet, take_out(skb, &arrival, packet, scratch, &node, &wrapper));
    if (reason == REASON_OTHER_TUNNEL) {
        count(HOOK_TC_INGRESS, REASON_OTHER_TUNNEL);
        return TC_ACT_UNSPEC;
    }
    if (reason == REASON_NONE && wrapper.kind == TUNNEL_ANSWER) {
        action = hide_value(scratch, take_answer(skb, &arrival, packet, scratch));
    } else if (reason == REASON_NONE) {
        reason = hide_reason(packet, admit_in_tc(&arrival, packet, scratch, node, &wrapper));
        if (reason == REASON_NONE) {
            scratch->handed = HANDED_TUNNEL;
            call_program(skb, PROGRAM_SERVICES);
            scratch->handed = HANDED_NOTHING;
            packet->reason = REASON_INCONSISTENT;
        }
    }
    if (packet->translated)
        count(HOOK_TC_INGRESS, packet->reason);
    else
        tell_unsent(&arrival, packet, ~0U, action);
    return action;
}

/* Translate an answer and send it back through the tunnel. Returns the verdict. */
INLINE int answer(struct __sk_buff *skb, const struct arrival *arrival, struct packet *packet, struct scratch *scratch,
                  const struct translation *entry) {
    const struct tunnel *to = tunnel_to(entry->tunnel, packet->ipv4);
    enum reason found = packet->reason, refusal;
    struct tunnel_hop hop = {};
    long failed;

    if (!to)
        return drop(packet, REASON_INCONSISTENT);
    refusal = hide_reason(packet, reach_node(skb, arrival, packet, entry, to, &hop));
    if (refusal == REASON_MTU)
        return answer_inwards(skb, packet, hop.mtu, 1);
    if (refusal != REASON_NONE)
        return drop(packet, REASON_NO_WAY_OUT);
    settle_hop(scratch, &hop);
    packet->reason = found;
    if (packet->kind == PACKET_FIRST_FRAGMENT)
        remember_fragment(packet, arrival->now, arrival->hook);
    failed = packet->kind == PACKET_ICMP_ERROR ? rewrite_error_skb(skb, packet, entry, 0)
                                               : rewrite_skb(skb, packet, entry, 0);
    if (failed || wrap(skb, arrival->node, packet, &hop, 0, TUNNEL_ANSWER))
        return drop(packet, REASON_REWRITE_FAILED);
    packet->translated = 1;
    return send_wrapped(skb, &hop, packet->kind != PACKET_LATER_FRAGMENT); /* one that was cut off has come in */
}

/* Called with a parsed answer that leaves this node, whose client talks to another one. */
PROGRAM(tc_answer)(struct __sk_buff *skb) {
    struct arrival arrival = {.context = skb, .node = this_node(), .hook = HOOK_TC_EGRESS, .ifindex = skb->ifindex};
    struct scratch *scratch = this_scratch();
    struct translation *entry;
    struct packet *packet;
    __u32 service;
    int action;

    if (!scratch)
        return TC_ACT_SHOT;
    packet = (struct packet *)scratch->packet;
    arrival.now = coarse_now(scratch);
    entry = find_flow(&packet->tuple);
    if (!entry || !(entry->flags & FLOW_BACK)) {
        packet->reason = REASON_CHANGED;
        tell_unsent(&arrival, packet, ~0U, TC_ACT_SHOT);
        return TC_ACT_SHOT;
    }
    service = entry->service;
    action = hide_value(scratch, answer(skb, &arrival, packet, scratch, entry));
    if (!packet->translated) {
        tell_unsent(&arrival, packet, service, action);
        return action;
    }
    count(HOOK_TC_EGRESS, packet->reason);
    count(HOOK_TC_EGRESS, REASON_FORWARDED);
    emit_packet_event(&arrival, packet, service, entry);
    touch(packet, entry, arrival.now);
    return action;
}
