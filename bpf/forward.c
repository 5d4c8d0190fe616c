/* Packets of flows between nodes (docs/forwarding.md). The node that a client talks to, which chose an endpoint of
 * another node, forwards the client's packets as they are (tc_forward). The endpoint's node takes them out of the
 * tunnel (tc_unwrap) and treats them as those of a client with a local backend; the answers leave to the client, or
 * back through the tunnel (tc_answer), and then the first node sends them on (tc_unwrap). tc.c calls these programs, so
 * that it pays for none of this. */
#include "cut.h"
#include "forward_event.h"
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
    if (packet->reason < REASON_TUNNEL_SENDER || packet->reason > REASON_TUNNEL_ENDPOINT) {
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
                              const struct translation *entry, const struct address *to, struct tunnel_hop *hop) {
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

/* Send a client's packet to the endpoint's node. Returns the verdict. */
INLINE int forward(struct __sk_buff *skb, const struct arrival *arrival, struct packet *packet, struct scratch *scratch,
                   struct translation *entry) {
    __u32 endpoint = entry->endpoint, held = 0;
    const struct address *to = tunnel_to(entry->tunnel, packet->ipv4);
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
    hop.by_neighbour = hide_value(scratch, hop.by_neighbour);
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

/* The Service of a forwarded packet's frontend, ~0 = none. A node port is at addresses of the node that the client
 * talks to, which are not known here, but no pod's and none of this node's own. */
INLINE __u32 service_of_frontend(const struct packet *packet) {
    struct frontend_key key = {.address = packet->tuple.destination,
                               .port = packet->tuple.destination_port,
                               .protocol = packet->tuple.protocol};
    struct frontend *frontend = map_lookup(MAP(frontends), &key);

    if (!frontend) {
        if (is_loopback(&key.address) || in_detector(&key.address) || is_martian(&key.address))
            return ~0U;
        key.address.word[3] = 0;
        if (!packet->ipv4)
            key.address.word[0] = key.address.word[1] = key.address.word[2] = 0;
        frontend = map_lookup(MAP(frontends), &key);
    }
    return frontend ? frontend->service : ~0U;
}

/* Whether a client may have this address: a node's and a pod's own packets are not forwarded. */
INLINE int may_be_client(const struct address *source) {
    return !is_martian(source) && !is_loopback(source) && !in_detector(source) &&
           !(address_flags(source) & ADDRESS_LOCAL) && !map_lookup(MAP(tunnel_nodes), source);
}

/* The backend of this node that another one means. 0 = it has gone. */
INLINE struct backend *find_endpoint(__u32 service, __u32 endpoint, __u8 protocol, __u32 wanted, __u32 *index) {
    struct endpoint_key key = {.service = service, .endpoint = endpoint};
    __u32 *found = map_lookup(MAP(forwarded), &key);
    struct backend *backend;

    if (!found)
        return 0;
    *index = *found;
    backend = map_lookup(MAP(backends), index);
    if (!backend || backend->service != service || !(backend->flags & wanted) ||
        endpoint_digest(&backend->address, backend->port, protocol) != endpoint)
        return 0;
    return backend;
}

/* Whether a backend's answers to a client will leave by a device with programs, without which nobody would translate
 * them, and whether the stack takes the client's packets from the device at hand (rp_filter, RFC 3704). */
INLINE enum reason check_way_back(const struct arrival *arrival, const struct packet *packet,
                                  const struct backend *backend) {
    __u32 ifindex = arrival->ifindex;
    struct device *device = map_lookup(MAP(devices), &ifindex);
    struct bpf_fib_lookup fib;

    if (!route_found(
            find_route(arrival->context, packet, &backend->address, &packet->tuple.source, ifindex, 0, 0, &fib)))
        return REASON_NO_WAY_OUT;
    if (device && fib.ifindex == device->ifindex) /* that of the bridge, on one of its ports */
        return REASON_NONE;
    if (!device_flags(fib.ifindex))
        return REASON_NO_WAY_OUT;
    return packet->ipv4 && device && (device->flags & DEVICE_STRICT) ? REASON_REVERSE_PATH : REASON_NONE;
}

/* Reserve the tuple of the answers. Where another flow of the client to this backend has it, the client gets another
 * port towards the backend, as connection tracking would give it. */
INLINE enum reason reserve_answers(const struct arrival *arrival, const struct packet *packet,
                                   struct scratch *scratch) {
    enum reason reason = REASON_TUPLE_TAKEN;
    int attempt;

#pragma clang loop unroll(disable)
    for (attempt = 0; attempt < SNAT_ATTEMPTS; attempt++) {
        describe_reply(&packet->tuple, &scratch->forward, scratch);
        reason = hide_value(scratch, claim_reply(arrival->node, packet, scratch, arrival->now));
        if (likely(reason != REASON_TUPLE_TAKEN))
            break;
        scratch->forward.source_port = to_be16(TUNNEL_PORTS | (bpf_get_prandom_u32() & TUNNEL_PORT_BITS));
    }
    return reason;
}

/* Store the flow of a forwarded packet: the client's with a backend of this node. A connection that this node does not
 * know, of which another node's entry or table says that it lives, is continued: its endpoint knows best. */
INLINE enum reason open_tunneled(const struct arrival *arrival, struct packet *packet, struct scratch *scratch,
                                 __u32 service, __u32 endpoint) {
    int tcp = packet->protocol == IPPROTO_TCP, begins = !tcp || opens_connection(packet);
    __u32 wanted = !tcp ? BACKEND_SERVES : begins ? BACKEND_USABLE : ~0U;
    struct selection *chosen = (struct selection *)scratch->chosen;
    struct translation *forward = &scratch->forward;
    struct backend *backend;
    enum reason reason;
    __u32 index;

    backend = find_endpoint(service, endpoint, packet->protocol, wanted, &index);
    if (!backend)
        return REASON_TUNNEL_ENDPOINT;
    reason = hide_reason(packet, check_way_back(arrival, packet, backend));
    if (reason != REASON_NONE)
        return reason;
    __builtin_memset(chosen, 0, sizeof(*chosen));
    copy_address(&chosen->address, &backend->address);
    chosen->port = backend->port;
    chosen->backend_flags = BACKEND_HERE;
    chosen->backend = index;
    chosen->backend_generation = backend->generation;
    chosen->service = service;
    describe_forward(arrival, packet, scratch, chosen);
    forward->flags = FLOW_LOCAL_BACKEND | FLOW_TUNNELED;
    forward->endpoint = endpoint;
    if (tcp) {
        forward->sequence_end = segment_end(packet);
        if (!begins) {
            forward->flags |= FLOW_SEEN_REPLY | FLOW_ESTABLISHED;
            forward->acknowledged = packet->acknowledged;
        }
    }
    reason = hide_reason(packet, reserve_answers(arrival, packet, scratch));
    if (reason != REASON_NONE && reason != REASON_FLOW)
        return reason;
    reason = hide_reason(packet, insert_flow(&packet->tuple, forward));
    return reason == REASON_TUPLE_TAKEN ? REASON_NONE : reason; /* another processor was faster */
}

/* Whether a flow that is there stands for a forwarded packet, too. What begins goes to the endpoint that the other node
 * chose; what goes on stays where it is. */
INLINE int continues(const struct arrival *arrival, struct packet *packet, struct translation *entry, __u32 endpoint) {
    if (entry->flags & (FLOW_REPLY | FLOW_FOREIGN))
        return 0;
    if (packet->protocol == IPPROTO_TCP && !opens_connection(packet))
        return !(flow_flags(entry) & FLOW_RESTING);
    return (entry->flags & FLOW_TUNNELED) && entry->endpoint == endpoint &&
           usable(arrival->node, packet, entry, arrival->now);
}

/* Note where answers go. */
INLINE void note_way_back(const struct packet *packet, struct translation *entry, struct scratch *scratch, __u32 number,
                          __u32 kind) {
    __u32 back = kind == TUNNEL_ASK ? FLOW_BACK : 0;
    struct translation *reply;

    if (!(entry->flags & FLOW_TUNNELED))
        return;
    if (likely((entry->flags & FLOW_BACK) == back && entry->tunnel == number))
        return;
    reply = find_other(&packet->tuple, entry, &scratch->reply_key);
    if (!reply)
        return;
    reply->tunnel = number;
    reply->flags = (reply->flags & ~FLOW_BACK) | FLOW_TUNNELED | back;
    entry->tunnel = number;
    entry->flags = (entry->flags & ~FLOW_BACK) | back;
}

/* Take in a client's packet at the endpoint's node. REASON_NONE: there is a flow for it. */
INLINE enum reason admit_tunneled(const struct arrival *arrival, struct packet *packet, struct scratch *scratch,
                                  __u32 node, __u32 endpoint, __u32 kind) {
    struct translation *entry;
    enum reason reason;
    __u32 service;

    if (packet->kind == PACKET_LATER_FRAGMENT && !recall_fragment(packet, arrival->now))
        return REASON_FRAGMENT_UNKNOWN;
    entry = find_flow(&packet->tuple);
    if (packet->kind == PACKET_ICMP_ERROR || packet->kind == PACKET_LATER_FRAGMENT)
        return entry ? REASON_NONE : REASON_ICMP_UNRELATED;
    if (!may_be_client(&packet->tuple.source))
        return REASON_TUNNEL_SOURCE;
    if (entry && !hide_value(scratch, continues(arrival, packet, entry, endpoint))) {
        forget_flow(&packet->tuple, entry, &scratch->reply_key);
        entry = 0;
    }
    if (!entry) {
        if (node & TUNNEL_RETIRED)
            return REASON_TUNNEL_SENDER;
        service = hide_value(scratch, service_of_frontend(packet));
        if (service == ~0U)
            return REASON_TUNNEL_FRONTEND;
        reason = hide_reason(packet, open_tunneled(arrival, packet, scratch, service, endpoint));
        if (reason != REASON_NONE)
            return reason;
        entry = find_flow(&packet->tuple);
        if (!entry)
            return REASON_CHANGED;
    }
    note_way_back(packet, entry, scratch, node & TUNNEL_NUMBER, kind);
    return REASON_NONE;
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
INLINE enum reason read_tunnel_header(struct __sk_buff *skb, const struct arrival *arrival, const struct packet *packet,
                                      struct tunnel_header *header) {
    if (packet->l4 != packet->l3 + ip_header_size(packet) ||
        packet->size < tunnel_overhead(packet) + ip_header_size(packet) ||
        bpf_skb_load_bytes(skb, packet->l4, header, TUNNEL_HEADERS))
        return REASON_TUNNEL_FORMAT;
    if (!is_ours(arrival->node, packet, header))
        return REASON_TUNNEL_FORMAT;
    return REASON_NONE;
}

/* Take a packet out of the tunnel. REASON_NONE: `packet` describes what was inside. */
INLINE enum reason take_out(struct __sk_buff *skb, const struct arrival *arrival, struct packet *packet, __u32 *node,
                            struct tunnel_header *header) {
    __u32 *known = map_lookup(MAP(tunnel_nodes), &packet->tuple.source);
    int ipv4 = packet->ipv4;
    enum reason reason;

    if (!known || check_source(arrival, packet) != REASON_NONE)
        return REASON_TUNNEL_SENDER;
    *node = *known;
    reason = read_tunnel_header(skb, arrival, packet, header);
    if (reason != REASON_NONE)
        return reason;
    if (bpf_skb_adjust_room(skb, -(int)tunnel_overhead(packet), BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO))
        return REASON_REWRITE_FAILED;
    reason = hide_reason(packet, read_packet(skb, packet));
    if (reason == REASON_NONE && packet->ipv4 == ipv4 && !packet->tagged)
        return REASON_NONE;
    packet->size = skb->len - packet->l3; /* whatever it says of itself */
    return REASON_TUNNEL_FORMAT;
}

/* Called with the parsed outer packet. */
PROGRAM(tc_unwrap)(struct __sk_buff *skb) {
    struct arrival arrival = {.context = skb, .node = this_node(), .hook = HOOK_TC_INGRESS, .ifindex = skb->ifindex};
    struct scratch *scratch = this_scratch();
    struct tunnel_header header;
    struct packet *packet;
    enum reason reason;
    __u32 node = 0, endpoint;
    int action = TC_ACT_SHOT;

    if (!scratch)
        return TC_ACT_SHOT;
    packet = (struct packet *)scratch->packet;
    arrival.now = coarse_now(scratch);
    reason = hide_reason(packet, take_out(skb, &arrival, packet, &node, &header));
    if (reason == REASON_NONE && kind_of(&header) == TUNNEL_ANSWER) {
        action = hide_value(scratch, take_answer(skb, &arrival, packet, scratch));
    } else if (reason == REASON_NONE) {
        endpoint = (__u32)to_be16(header.endpoint[0]) << 16 | to_be16(header.endpoint[1]);
        reason = hide_reason(packet, admit_tunneled(&arrival, packet, scratch, node, endpoint, kind_of(&header)));
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
INLINE int answer(struct __sk_buff *skb, const struct arrival *arrival, struct packet *packet,
                  const struct translation *entry) {
    const struct address *to = tunnel_to(entry->tunnel, packet->ipv4);
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
    action = hide_value(scratch, answer(skb, &arrival, packet, entry));
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
