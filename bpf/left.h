/* Flows that the slow path has. A datagram does not tell whether it is new here, nor does a segment of a connection
 * that may have come from another node, so an entry under the tuple of the client's packets says that they are
 * connection tracking's. A datagram's is refreshed from both sides, a segment's by the client; both go with their age,
 * as all entries do. */
#ifndef HOTPLANE_LEFT_H
#define HOTPLANE_LEFT_H

#include "arrival.h"
#include "flow.h"

/* Leave the packets with this tuple to the slow path from now on, whoever had them. The entry of answers that is
 * still there translates those that are under way. `flags`: BPF_ANY or BPF_NOEXIST. Returns 0, or negative: no room. */
INLINE long leave_flow(const struct tuple *key, __u64 now, __u64 flags) {
    struct scratch *scratch = this_scratch();
    struct translation *entry;

    if (!scratch)
        return -1;
    entry = &scratch->forward;
    __builtin_memset(entry, 0, sizeof(*entry));
    entry->flags = FLOW_REPLY | FLOW_FOREIGN | FLOW_LEFT;
    entry->backend = entry->service = ~0U;
    entry->last_ns = now;
    return put_flow(key, entry, flags);
}

/* Leave the flow of a datagram to the slow path, which is possible as long as nothing of the datagram was sent on.
 * Answers cannot be left: connection tracking never saw what they answer. Returns whether it was. */
INLINE int give_up_flow(const struct packet *packet, const struct translation *entry, __u64 now) {
    return packet->tuple.protocol == IPPROTO_UDP && !(entry->flags & FLOW_REPLY) &&
           !leave_flow(&packet->tuple, now, BPF_ANY);
}

/* A client's segment of a connection that the slow path has. A SYN is a new one's, as where there is no entry.
 * REASON_NONE: the entry is obsolete. */
INLINE enum reason note_left_segment(const struct packet *packet, struct translation *entry) {
    if (opens_connection(packet))
        return REASON_NONE;
    if (packet->tcp_flags & (TCP_FIN | TCP_RST))
        entry->flags |= FLOW_FIN_FORWARD | FLOW_FIN_REPLY;
    return REASON_LEFT_FLOW;
}

INLINE int is_frontend(const struct address *address, __be16 port, __u8 protocol) {
    struct frontend_key key = {.address = *address, .port = port, .protocol = protocol};
    return find_frontend(&key) != 0;
}

/* Whether a packet that leaves, and is no flow's of the programs, may show that the slow path has one: any datagram
 * from the node's own addresses, and an answer to a SYN where other nodes' connections may go on. Connections of
 * pods are never taken over, and need no entry. */
INLINE int tells_of_slow_path(const struct node *node, const struct packet *packet) {
    if (packet->protocol == IPPROTO_TCP)
        return (node->flags & NODE_NOTES_ANSWERS) && (packet->tcp_flags & (TCP_SYN | TCP_ACK)) == (TCP_SYN | TCP_ACK) &&
               !in_detector(&packet->tuple.destination);
    return own_datagram(packet->tuple.protocol, &packet->tuple.source);
}

/* A packet that leaves from a frontend's port and is no flow's of the programs: an answer that the slow path gave, or
 * somebody's question that was masqueraded to that port at one of the node's own addresses (a pod's to the outside, by
 * the network plugin). Whatever comes back there is for connection tracking. */
INLINE void note_leaving(const struct node *node, const struct packet *packet, __u64 now) {
    const struct tuple *tuple = &packet->tuple;
    struct scratch *scratch = this_scratch();
    struct translation *entry;
    struct tuple *key;

    if (!scratch || packet->kind == PACKET_ICMP_ERROR || packet->kind == PACKET_LATER_FRAGMENT ||
        !tells_of_slow_path(node, packet) || !is_frontend(&tuple->source, tuple->source_port, tuple->protocol))
        return;
    key = &scratch->forward_key;
    reverse_tuple(tuple, key);
    entry = find_flow(key);
    if (!entry)
        leave_flow(key, now, BPF_NOEXIST);
    else if (entry->flags & FLOW_LEFT)
        entry->last_ns = now;
}

#endif
