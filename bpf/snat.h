/* Source ports: of this node, for flows whose replies must return here (SNAT), and of a client that has two connections
 * to one endpoint from one port. */
#ifndef HOTPLANE_SNAT_H
#define HOTPLANE_SNAT_H

#include "direct.h"
#include "segments.h"

enum other_ports {
    OTHER_PORTS = 0xc000, /* the first of the ports that a client gets instead of its own (RFC 6335, dynamic ports) */
    OTHER_PORT_BITS = 0x3fff,
    PRIVILEGED_PORTS = 1024,
    OTHER_PRIVILEGED = 512, /* the first of those instead of a privileged one, which endpoints may ask for */
    OTHER_PRIVILEGED_BITS = 0x1ff,
    OTHER_PORT_ATTEMPTS = 4,
};

/* Return the SNAT port with this index, counted from 0 over both ranges. */
INLINE __u16 snat_port(const struct node *node, __u32 index) {
    return index < node->snat_first_count ? node->snat_first + index
                                          : node->snat_second + (index - node->snat_first_count);
}

/* True if a backend in TIME-WAIT accepts a SYN for a new connection from the same address and port: by its timestamp,
 * else by its sequence number (RFC 6191; RFC 7323, section 5.3; Linux: tcp_timewait_state_process). */
INLINE int accepted_in_time_wait(const struct packet *packet, const struct translation *resting) {
    if (packet->timestamps == UNKNOWN_TIMESTAMP)
        return 0;
    if (packet->timestamps == HAS_TIMESTAMP && (flow_flags(resting) & FLOW_TIMESTAMPS))
        return (__s32)(packet->timestamp - resting->timestamp) > 0;
    return (__s32)(packet->sequence - resting->sequence_end) > 0;
}

/* True if the flow that holds the tuple of scratch->reply_key can be replaced by a new flow. */
INLINE int can_be_replaced(const struct node *node, const struct packet *packet, struct scratch *scratch,
                           const struct translation *holder, __u64 now) {
    __u32 flags = flow_flags(holder);

    if (flags & FLOW_RESTING)
        return accepted_in_time_wait(packet, holder) || older_than(holder->last_ns, now, node->tcp_rest_seconds);
    return (!(flags & FLOW_SNAT) && ending(flags)) || expired(node, &scratch->reply_key, holder, now);
}

/* Reserve the tuple of scratch->reply_key. REASON_NONE: reserved now; REASON_FLOW: reserved by an earlier packet
 * of this flow; REASON_TUPLE_TAKEN: another flow holds it; else the table is full. */
INLINE enum reason claim_reply(const struct node *node, const struct packet *packet, struct scratch *scratch,
                               __u64 now) {
    enum reason refusal = insert_flow(&scratch->reply_key, &scratch->reply);
    struct translation *holder;

    if (likely(refusal == REASON_NONE))
        return refusal;
    holder = find_flow(&scratch->reply_key);
    if (!holder)
        return refusal;
    if (is_reverse_of(holder, &scratch->reply.destination, scratch->reply.destination_port, &scratch->reply.source,
                      scratch->reply.source_port) &&
        !(flow_flags(holder) & FLOW_RESTING))
        return REASON_FLOW;
    if (!hide_value(scratch, can_be_replaced(node, packet, scratch, holder, now)))
        return REASON_TUPLE_TAKEN;
    forget_flow(&scratch->reply_key, holder, &scratch->forward_key);
    return insert_flow(&scratch->reply_key, &scratch->reply);
}

/* True if no flow holds the tuple of scratch->reply_key, or one that can probably be replaced. This is an estimate that
 * uses only the two longest lifetimes; the collector removes expired flows. */
INLINE int looks_free(const struct node *node, const struct packet *packet, struct scratch *scratch, __u64 now) {
    const struct translation *holder = find_flow(&scratch->reply_key);
    __u32 seconds;

    if (likely(!holder))
        return 1;
    if (flow_flags(holder) & FLOW_RESTING)
        return accepted_in_time_wait(packet, holder);
    seconds = flow_flags(holder) & FLOW_ESTABLISHED ? node->tcp_established_seconds : node->tcp_syn_seconds;
    return older_than(holder->last_ns, now, seconds);
}

/* Choose a random SNAT port whose reply tuple with this backend is free. Gives up after SNAT_ATTEMPTS taken ports. */
INLINE int choose_port(const struct node *node, const struct packet *packet, struct scratch *scratch, __u64 now) {
    int attempt;

#pragma clang loop unroll(disable)
    for (attempt = 0; attempt < SNAT_ATTEMPTS; attempt++) {
        __u32 index = (__u32)(((__u64)bpf_get_prandom_u32() * node->snat_ports) >> 32);

        scratch->forward.source_port = scratch->reply_key.destination_port = to_be16(snat_port(node, index));
        if (hide_value(scratch, looks_free(node, packet, scratch, now)))
            return 1;
    }
    return 0;
}

/* A port for a client whose own one is taken, as connection tracking would choose: privileged if that was. */
INLINE __be16 other_port(__be16 own) {
    __u32 draw = bpf_get_prandom_u32();

    return to_be16(to_be16(own) < PRIVILEGED_PORTS ? OTHER_PRIVILEGED | (draw & OTHER_PRIVILEGED_BITS)
                                                   : OTHER_PORTS | (draw & OTHER_PORT_BITS));
}

/* Whether a socket of this node sends to this frontend that may talk to the endpoint by another name, too: connect time
 * left the datagram to the packets' way, and noted that (connect.c, note_left()). */
INLINE int has_another_name(const struct arrival *arrival, const struct packet *packet) {
    struct answer_key key = {.address = packet->tuple.destination,
                             .port = packet->tuple.destination_port,
                             .own_port = to_be16(packet->tuple.source_port)};
    struct answer *note = map_lookup(MAP(answers), &key);

    return note && !older_than(note->last_ns, arrival->now, arrival->node->udp_stream_seconds);
}

/* Whether the client has another connection to this endpoint from the same port, which is not translated: one past the
 * stack is known, of the stack's the first answer tells (another_connection()). Of datagrams the socket knows. */
INLINE int port_is_taken(const struct arrival *arrival, const struct packet *packet, struct scratch *scratch) {
    if (packet->protocol == IPPROTO_UDP && arrival->hook != HOOK_XDP)
        return hide_value(scratch, has_another_name(arrival, packet));
    if (packet->protocol != IPPROTO_TCP || packet->port_taken || likely(!host_time(HOST_ROUTING_UNTIL)))
        return packet->port_taken;
    direct_key(&scratch->reply_key, &scratch->direct_key);
    return map_lookup(MAP(direct_tcp), &scratch->direct_key) != 0;
}

/* Reserve the tuple of the answers to a client that keeps its address. Where another flow of the client to this backend
 * has it, the client gets another port towards the backend, as connection tracking would give it. */
INLINE enum reason reserve_answers(const struct arrival *arrival, const struct packet *packet,
                                   struct scratch *scratch) {
    enum reason reason = REASON_TUPLE_TAKEN;
    int attempt;

#pragma clang loop unroll(disable)
    for (attempt = 0; attempt < OTHER_PORT_ATTEMPTS; attempt++) {
        describe_reply(&packet->tuple, &scratch->forward, scratch);
        if (attempt || (scratch->forward.flags & FLOW_FORWARDED) ||
            likely(!hide_value(scratch, port_is_taken(arrival, packet, scratch))))
            reason = hide_value(scratch, claim_reply(arrival->node, packet, scratch, arrival->now));
        if (likely(reason != REASON_TUPLE_TAKEN) || (scratch->forward.flags & FLOW_FORWARDED))
            break;
        scratch->forward.source_port = other_port(packet->tuple.source_port);
    }
    return reason;
}

/* Reserve the reply tuple of scratch->forward for the flow of `packet`; with SNAT, on a port of this node where no
 * local socket receives from the backend. Returns REASON_NONE, REASON_FLOW (reserved by an earlier packet), or the
 * error. */
INLINE enum reason reserve_reply(const struct arrival *arrival, struct packet *packet, struct scratch *scratch) {
    if (!(scratch->forward.flags & FLOW_SNAT))
        return reserve_answers(arrival, packet, scratch);
    describe_reply(&packet->tuple, &scratch->forward, scratch);
    if (!hide_value(scratch, choose_port(arrival->node, packet, scratch, arrival->now)))
        return REASON_SNAT_EXHAUSTED;
    if (has_socket(arrival->context, &scratch->reply_key))
        return REASON_OWN_PORT;
    return claim_reply(arrival->node, packet, scratch, arrival->now);
}

#endif
