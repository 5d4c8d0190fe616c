/* Ports of fragmented datagrams: the first fragment tells them, the later ones are found by (source, destination,
 * identification, protocol). What becomes of one that comes before its first is in hold.h. */
#ifndef HOTPLANE_FRAGMENT_H
#define HOTPLANE_FRAGMENT_H

#include "packet.h"

enum fragment_limits {
    REASSEMBLY_SECONDS = 30, /* net.ipv4.ipfrag_time; an identification may be used again afterwards */
};

INLINE void fragment_key(const struct packet *packet, struct fragment_key *key) {
    copy_address(&key->source, &packet->tuple.source);
    copy_address(&key->destination, &packet->tuple.destination);
    key->identification = packet->identification;
    key->protocol = packet->protocol;
    key->pad[0] = key->pad[1] = key->pad[2] = 0;
}

/* Returns 0, or negative: no room, and the datagram's other fragments will not be known. */
INLINE long remember_fragment(const struct packet *packet, __u64 now, enum hook hook) {
    struct fragment value = {
        .source_port = packet->tuple.source_port, .destination_port = packet->tuple.destination_port, .last_ns = now};
    struct fragment_key key;

    fragment_key(packet, &key);
    if (likely(!map_update(MAP(fragments), &key, &value, BPF_ANY)))
        return 0;
    count(hook, REASON_FRAGMENTS_FULL);
    return -1;
}

/* Fills in the ports of a later fragment. */
INLINE int recall_fragment(struct packet *packet, __u64 now) {
    struct fragment_key key;
    struct fragment *found;

    fragment_key(packet, &key);
    found = map_lookup(MAP(fragments), &key);
    if (!found && packet->extended == EXTENDED_ANY_PROTOCOL) {
        key.protocol = IPPROTO_TCP;
        found = map_lookup(MAP(fragments), &key);
        if (found)
            packet->protocol = packet->tuple.protocol = IPPROTO_TCP;
    }
    if (!found || !(found->source_port | found->destination_port) ||
        older_than(found->last_ns, now, REASSEMBLY_SECONDS))
        return 0;
    packet->tuple.source_port = found->source_port;
    packet->tuple.destination_port = found->destination_port;
    return 1;
}

#endif
