/* Host routing: flows that go past the node's stack, and what the programs tell each other of a packet.
 *
 * Netfilter knows nothing of a packet that goes past it, so a flow goes there from its first packet on or never. TCP
 * tells by its SYN that a flow begins, and segments of a connection without an entry go by the stack, which may
 * translate them; that the stack has begun one is noted as well, since it keeps that after the connection's end. A
 * datagram does not tell. So whatever UDP the stack sends to a pod or out of the node is noted as the stack's before it
 * can be answered, and unknown datagrams begin a flow past the stack.
 * A flow that the stack got hold of stays with it, since connection tracking judges numbers by what it saw last. */
#ifndef HOTPLANE_DIRECT_H
#define HOTPLANE_DIRECT_H

#include "arrival.h"
#include "flow.h"

/* scratch->handed: what a program that is called by another finds in scratch->packet. */
enum handed {
    HANDED_NOTHING,
    HANDED_PARSED, /* the parsed packet, with the parser's reason */
    HANDED_NEW,    /* and its flow was opened just now: packet->reason says how */
    HANDED_BACK,   /* the same, but it cannot go past the stack */
    HANDED_TUNNEL, /* the parsed packet, which came from another node through the tunnel; its flow is there */
};

/* Go on in another program; returns only if that is not there. */
INLINE void call_program(struct __sk_buff *skb, __u32 number) {
    ((long (*)(void *, __u64, __u32))BPF_FUNC_tail_call)(skb, MAP(tail_calls), number);
}

/* Whether the daemon answers for what host routing goes by. */
INLINE int host_routing_is_on(__u64 now) {
    return (__s64)(host_time(HOST_ROUTING_UNTIL) - now) > 0;
}

/* A datagram of the stack's could not be noted: for as long as its flow may live, who knows which others are. */
INLINE void distrust(const struct arrival *arrival) {
    __u32 which = HOST_DISTRUST_UNTIL;
    __u64 *time = map_lookup(MAP(host_times), &which);

    count(arrival->hook, REASON_DIRECT_UDP_FULL);
    if (time)
        *time = arrival->now + arrival->node->udp_stream_seconds * SECOND_NS;
}

INLINE struct pod *find_pod(const struct address *address) {
    return map_lookup(MAP(pods), address);
}

/* Return in `key` the key of a flow, the same for both directions: the lower end is the source. Returns whether that is
 * the destination of the packet at hand. */
INLINE int direct_key(const struct tuple *tuple, struct tuple *key) {
    const __u64 *source = (const __u64 *)&tuple->source, *destination = (const __u64 *)&tuple->destination;
    int turned = source[0] != destination[0]   ? source[0] > destination[0]
                 : source[1] != destination[1] ? source[1] > destination[1]
                                               : tuple->source_port > tuple->destination_port;

    if (turned)
        reverse_tuple(tuple, key);
    else
        *key = *tuple;
    return turned;
}

INLINE struct direct_flow *find_direct(const struct tuple *key) {
    return key->protocol == IPPROTO_TCP ? map_lookup(MAP(direct_tcp), key) : map_lookup(MAP(direct_udp), key);
}

INLINE long insert_direct(const struct tuple *key, const struct direct_flow *flow) {
    return key->protocol == IPPROTO_TCP ? map_update(MAP(direct_tcp), key, flow, BPF_NOEXIST)
                                        : map_update(MAP(direct_udp), key, flow, BPF_NOEXIST);
}

INLINE void delete_direct(const struct tuple *key) {
    if (key->protocol == IPPROTO_TCP)
        map_delete(MAP(direct_tcp), key);
    else
        map_delete(MAP(direct_udp), key);
}

/* A flow's packet goes by the stack for good. */
INLINE void give_to_stack(const struct tuple *key, struct direct_flow *flow, __u64 now) {
    if (key->protocol == IPPROTO_TCP) {
        map_delete(MAP(direct_tcp), key);
        return;
    }
    flow->flags |= DIRECT_STACK;
    flow->last_ns = now;
}

/* Whether answers to a packet with this tuple are translated here. If the stack sends it, then so was the packet. */
INLINE int answered_here(const struct tuple *tuple, struct scratch *scratch) {
    struct translation *answers;

    reverse_tuple(tuple, &scratch->forward_key);
    answers = find_flow(&scratch->forward_key);
    return answers && (answers->flags & (FLOW_REPLY | FLOW_FOREIGN)) == FLOW_REPLY;
}

/* Note that the stack sends the first packet of a TCP connection. Connection tracking may translate it, and keeps that
 * for a while after its end: a connection between the same ends must not go past the stack meanwhile, as its answers
 * would be translated once it falls back to the stack. Answers keep the note alive. */
INLINE void note_connection(const struct packet *packet, const struct direct_flow *noted, struct scratch *scratch,
                            int to_pod) {
    direct_key(&packet->tuple, &scratch->direct_key);
    if (answered_here(&packet->tuple, scratch))
        map_delete(MAP(direct_tcp), &scratch->direct_key);
    else
        map_update(MAP(direct_tcp), &scratch->direct_key, noted, to_pod ? BPF_ANY : BPF_NOEXIST);
}

/* Note that the stack sends a packet to a pod or out of the node: answers to it must come back to the stack. What the
 * node sends itself is answered at its own addresses. Towards an uplink pass packets of flows past the stack, too. */
INLINE void note_from_stack(const struct arrival *arrival, const struct packet *packet) {
    struct scratch *scratch = this_scratch();
    struct direct_flow *flow, noted = {.last_ns = arrival->now, .flags = DIRECT_STACK};
    struct tuple *key;
    int to_pod;

    if (!scratch || !host_time(HOST_ROUTING_UNTIL) || packet->kind == PACKET_ICMP_ERROR ||
        packet->kind == PACKET_LATER_FRAGMENT)
        return;
    if (packet->protocol == IPPROTO_TCP
            ? !opens_connection(packet)
            : packet->protocol != IPPROTO_UDP || own_datagram(packet->protocol, &packet->tuple.source))
        return;
    to_pod = !!(device_flags(arrival->ifindex) & DEVICE_POD);
    if (packet->protocol == IPPROTO_TCP) {
        note_connection(packet, &noted, scratch, to_pod);
        return;
    }
    key = &scratch->direct_key;
    direct_key(&packet->tuple, key);
    flow = map_lookup(MAP(direct_udp), key);
    if (!flow) {
        if (answered_here(&packet->tuple, scratch))
            return;
        if (map_update(MAP(direct_udp), key, &noted, BPF_NOEXIST) == ERROR_TOO_BIG)
            distrust(arrival);
        return;
    }
    if (to_pod)
        flow->flags |= DIRECT_STACK;
    if (flow->flags & DIRECT_STACK)
        flow->last_ns = arrival->now;
}

#endif
