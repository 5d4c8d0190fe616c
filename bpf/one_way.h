/* The state of a flow of which only the client's packets pass here (FLOW_DSR). */
#ifndef HOTPLANE_ONE_WAY_H
#define HOTPLANE_ONE_WAY_H

#include "segments.h"

/* Update a flow of which only the client's packets pass here. What the client says must do: that it acknowledges
 * something for the handshake, its FIN for the end of both directions. Not the segment that a connection is taken over
 * with: anybody can make one up. */
INLINE void note_one_way(const struct packet *packet, struct translation *entry, __u64 now) {
    __u32 control = packet->tcp_flags, flags = entry->flags;

    if (packet->kind == PACKET_ICMP_ERROR || packet->kind == PACKET_LATER_FRAGMENT)
        return;
    if (packet->protocol == IPPROTO_UDP) {
        if ((__s32)(coarse_time(now) - entry->begun) >= UDP_STREAM_AFTER)
            flags |= FLOW_SEEN_REPLY | FLOW_ESTABLISHED;
    } else {
        if ((control & (TCP_SYN | TCP_ACK)) == TCP_ACK && !packet->taken_over)
            flags |= FLOW_SEEN_REPLY | FLOW_ESTABLISHED;
        if (control & TCP_FIN)
            flags |= FLOW_FIN_FORWARD | FLOW_FIN_REPLY;
        if (control & TCP_RST)
            flags |= FLOW_RST_FORWARD;
    }
    if (flags != entry->flags)
        entry->flags = flags;
}

/* touch() for a flow whose answers may not pass here. */
INLINE void touch_forwarded(const struct packet *packet, struct translation *entry, __u64 now) {
    if (entry->flags & FLOW_DSR) {
        account(entry, packet->size, now);
        note_one_way(packet, entry, now);
    } else {
        touch(packet, entry, now);
    }
}

#endif
