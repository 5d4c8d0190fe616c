/* Ways out of the node that XDP found a moment ago: what the FIB said, by the addresses that it was asked about. Most
 * new flows go where others have just gone, and a question to the FIB costs a good part of all that a first packet
 * does. A way is believed as long as the next hop in a flow's entry, which is taken from here and goes with it. Each
 * processor has its own. */
#ifndef HOTPLANE_WAYS_H
#define HOTPLANE_WAYS_H

#include "arrival.h"

enum way_limits {
    HOP_NS = 100000000, /* how long a way is believed: the time in which a changed route or neighbour is noticed */
};

/* The place of a pair of addresses, which holds its way or another's. */
INLINE struct way *way_between(const struct address *source, const struct address *destination) {
    __u32 folded = source->word[0] ^ source->word[1] ^ source->word[2] ^ source->word[3];
    __u32 index;

    folded = (folded << 16 | folded >> 16) ^ destination->word[0] ^ destination->word[1] ^ destination->word[2] ^
             destination->word[3];
    index = (folded * MIX) >> 32 & (WAYS - 1);
    return map_lookup(MAP(ways), &index);
}

/* Whether a way is that of this packet, and still believed. */
INLINE int leads(const struct way *way, const struct packet *packet, const struct address *source,
                 const struct address *destination, __u32 ifindex, __u64 now) {
    return (__s64)(way->until_ns - now) > 0 && way->from == ifindex && way->protocol == packet->protocol &&
           same_address(&way->source, source) && same_address(&way->destination, destination);
}

INLINE void name_way(struct way *way, const struct packet *packet, const struct address *source,
                     const struct address *destination, __u32 ifindex, __u64 now) {
    copy_address(&way->source, source);
    copy_address(&way->destination, destination);
    way->protocol = packet->protocol;
    way->from = ifindex;
    way->until_ns = now + HOP_NS;
}

/* masquerade_address() for a new flow at any hook. */
INLINE int own_address(const struct arrival *arrival, const struct packet *packet, const struct address *destination,
                       struct address *source) {
    struct address nowhere = {};
    struct way *way;

    if (arrival->hook != HOOK_XDP)
        return masquerade_address(arrival->context, arrival->node, packet, destination, arrival->ifindex, source);
    way = way_between(&nowhere, destination);
    if (!way)
        return 0;
    if (!leads(way, packet, &nowhere, destination, arrival->ifindex, arrival->now)) {
        if (!masquerade_address(arrival->context, arrival->node, packet, destination, arrival->ifindex, &way->own))
            return 0;
        name_way(way, packet, &nowhere, destination, arrival->ifindex, arrival->now);
    }
    copy_address(source, &way->own);
    return 1;
}

#endif
