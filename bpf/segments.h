/* TCP state tracking: when a connection is established and when it has ended.
 *
 * An entry must never say more than both ends would. So each direction follows its own sequence and acknowledgment
 * numbers, within a window, and only a segment whose numbers both fit changes a flow, as with the ends themselves (RFC
 * 5961, section 5): a SYN-ACK must acknowledge the client's SYN; a connection that is closed in order has ended once
 * both ends have acknowledged each other's FIN to the byte; an RST must have the very number that its receiver waits
 * for (RFC 5961, section 3). A guess at that is one in 2^32, and one in 2^19 at both of a segment that moves what is
 * followed. Segments that fit nothing are sent on all the same: what they mean is up to their receiver. */
#ifndef HOTPLANE_SEGMENTS_H
#define HOTPLANE_SEGMENTS_H

#include "flow.h"

enum segment_limits {
    FOLLOW_WINDOW = 1 << 20, /* how far from what was seen a segment's numbers may be */
    RESUME_WINDOW = 1 << 24, /* how far ahead its sequence number may be after losses */
    FIRST_DATA = 1460,       /* what a SYN may carry (RFC 7413) */
    FIRST_FLIGHT = 1 << 16,  /* what a backend may have sent before its SYN-ACK is acknowledged */
};

/* True if two sequence numbers differ by at most `distance`, in either direction. */
INLINE int near(__u32 number, __u32 other, __u32 distance) {
    return number - other + distance <= 2 * distance;
}

INLINE int is_after(__u32 number, __u32 other) {
    return (__s32)(number - other) > 0;
}

/* Return the sequence number after a segment. */
INLINE __u32 segment_end(const struct packet *packet) {
    __u32 length = packet->size - (packet->l4 - packet->l3) - packet->transport_size;

    return packet->sequence + length + !!(packet->tcp_flags & TCP_SYN) + !!(packet->tcp_flags & TCP_FIN);
}

/* Advance the stored numbers to a segment's, where those are newer. */
INLINE void advance(struct translation *entry, __u32 end, __u32 acknowledged) {
    if (is_after(end, entry->sequence_end))
        entry->sequence_end = end;
    if (is_after(acknowledged, entry->acknowledged))
        entry->acknowledged = acknowledged;
}

/* Track a direction's numbers, which is enough for most segments. Returns 1 if they are within the window. */
INLINE int follow(struct translation *entry, __u32 end, __u32 acknowledged) {
    if (!near(end, entry->sequence_end, FOLLOW_WINDOW) || !near(acknowledged, entry->acknowledged, FOLLOW_WINDOW))
        return 0;
    advance(entry, end, acknowledged);
    return 1;
}

/* The same for a segment far ahead of what was seen of its direction. What lies between was lost before it came here:
 * acknowledgments are not sent again, nor is data behind a gap, which the other end has (RFC 2018). It must acknowledge
 * about all that the other end has sent, which acknowledgments come to sooner or later. */
INLINE int resume(struct translation *entry, const struct translation *other, __u32 end, __u32 acknowledged) {
    if (other->sequence_end - acknowledged > FOLLOW_WINDOW || end - entry->sequence_end + FOLLOW_WINDOW > RESUME_WINDOW)
        return 0;
    advance(entry, end, acknowledged);
    return 1;
}

/* Remove a connection that has ended for both ends. Where the backend remembers it (TIME-WAIT; `rests`), a port that
 * was given to it rests: the entry of answers stays, with what the backend remembers of the client. */
INLINE void end_flow(const struct tuple *key, struct translation *entry, const struct tuple *other_tuple,
                     struct translation *other, int rests, __u64 now) {
    __u32 resting = FLOW_RESTING;

    if (!rests || !(entry->flags & FLOW_SNAT)) {
        delete_flow(other_tuple);
        delete_flow(key);
    } else if (entry->flags & FLOW_REPLY) {
        entry->sequence_end = other->sequence_end;
        entry->timestamp = other->timestamp;
        entry->last_ns = now;
        entry->flags = (entry->flags & ~FLOW_TIMESTAMPS) | (other->flags & FLOW_TIMESTAMPS) | resting;
        delete_flow(other_tuple);
    } else {
        other->sequence_end = entry->sequence_end;
        other->timestamp = entry->timestamp;
        other->last_ns = now;
        other->flags = (other->flags & ~FLOW_TIMESTAMPS) | (entry->flags & FLOW_TIMESTAMPS) | resting;
        delete_flow(key);
    }
}

/* An RST. The receiver takes it at once where its number is both what the sender has come to and what the receiver has
 * acknowledged; where it is one of them, it may. Before the handshake it must answer the SYN, or be the client's own.
 */
INLINE void note_reset(const struct packet *packet, struct translation *entry, const struct tuple *other_tuple,
                       struct translation *other, __u64 now) {
    int reply = !!(entry->flags & FLOW_REPLY);
    int sent = packet->sequence == entry->sequence_end;
    int expected = packet->sequence == other->acknowledged;

    if (!(flow_flags(entry) & FLOW_SEEN_REPLY)) {
        if (reply ? !(packet->tcp_flags & TCP_ACK) || packet->acknowledged != other->sequence_end : !sent)
            return;
        sent = expected = 1;
    }
    if (sent && expected)
        end_flow(&packet->tuple, entry, other_tuple, other, 0, now);
    else if (sent || expected)
        note(entry, other, reply ? FLOW_RST_REPLY : FLOW_RST_FORWARD);
}

/* Track the handshake: SYN, also retransmitted, SYN-ACK, and the ACK of that. */
INLINE void note_handshake(const struct packet *packet, struct translation *entry, struct translation *other,
                           __u32 end) {
    __u32 flags = packet->tcp_flags;

    if (!(entry->flags & FLOW_REPLY)) {
        if (opens_connection(packet)) {
            if (!entry->sequence_end || entry->sequence_end - end > FIRST_DATA) /* else the same without its data */
                entry->sequence_end = end;
        } else if ((flags & (TCP_SYN | TCP_ACK)) == TCP_ACK && (flow_flags(entry) & FLOW_SEEN_REPLY) &&
                   packet->acknowledged - other->sequence_end <= FIRST_FLIGHT &&
                   near(packet->sequence, entry->sequence_end, FIRST_FLIGHT)) {
            entry->sequence_end = end;
            entry->acknowledged = packet->acknowledged;
            note(entry, other, FLOW_ESTABLISHED);
        }
    } else if ((flags & TCP_SYN) && (flags & TCP_ACK) && other->sequence_end - packet->acknowledged <= FIRST_DATA) {
        entry->sequence_end = end;
        entry->acknowledged = packet->acknowledged;
        note(entry, other, FLOW_SEEN_REPLY);
    }
}

/* Track segments from a FIN on. The backend is in TIME-WAIT unless the client closed first, and the backend knew. */
INLINE void note_closing(const struct packet *packet, struct translation *entry, const struct tuple *other_tuple,
                         struct translation *other, __u32 end, __u64 now) {
    __u32 reply = entry->flags & FLOW_REPLY, own = reply ? FLOW_FIN_REPLY : FLOW_FIN_FORWARD;
    __u32 both = FLOW_FIN_FORWARD | FLOW_FIN_REPLY;

    if (packet->timestamps == HAS_TIMESTAMP) {
        entry->timestamp = packet->timestamp;
        entry->flags |= FLOW_TIMESTAMPS;
    }
    if ((packet->tcp_flags & TCP_FIN) && !(entry->flags & own) && end == entry->sequence_end) {
        if (reply && (!(flow_flags(entry) & FLOW_FIN_FORWARD) || entry->acknowledged != other->sequence_end))
            own |= FLOW_REST;
        note(entry, other, own);
    }
    if ((flow_flags(entry) & both) == both && entry->acknowledged == other->sequence_end &&
        other->acknowledged == entry->sequence_end)
        end_flow(&packet->tuple, entry, other_tuple, other, !!(flow_flags(entry) & FLOW_REST), now);
}

/* Update the connection state by a translated segment. The entry may be deleted afterwards. */
INLINE void note_segment(const struct packet *packet, struct translation *entry, __u64 now) {
    __u32 end = segment_end(packet), flags = flow_flags(entry), control = packet->tcp_flags;
    __u32 reset = flags & FLOW_REPLY ? FLOW_RST_REPLY : FLOW_RST_FORWARD;
    struct scratch *scratch;
    struct translation *other;

    if (likely((flags & FLOW_ESTABLISHED) && (control & (TCP_SYN | TCP_RST | TCP_FIN | TCP_ACK)) == TCP_ACK &&
               !(flags & (FLOW_FIN_FORWARD | FLOW_FIN_REPLY | reset))) &&
        likely(follow(entry, end, packet->acknowledged)))
        return;
    scratch = this_scratch();
    if (!scratch)
        return;
    other = find_other(&packet->tuple, entry, &scratch->forward_key);
    if (!other)
        return;
    if (control & TCP_RST) {
        note_reset(packet, entry, &scratch->forward_key, other, now);
        return;
    }
    if (!(flags & FLOW_ESTABLISHED))
        note_handshake(packet, entry, other, end);
    if ((control & (TCP_SYN | TCP_ACK)) != TCP_ACK || !(flow_flags(entry) & FLOW_ESTABLISHED))
        return;
    if (!follow(entry, end, packet->acknowledged) && !resume(entry, other, end, packet->acknowledged))
        return;
    if ((flags & reset) && end == entry->sequence_end) {
        entry->flags &= ~reset; /* this end did not send the RST */
        other->noted &= ~reset;
    }
    note_closing(packet, entry, &scratch->forward_key, other, end, now);
}

/* Account a translated packet and update its flow's state. The entry may be deleted afterwards. */
INLINE void touch(const struct packet *packet, struct translation *entry, __u64 now) {
    account(entry, packet->size, now);
    if (packet->kind == PACKET_ICMP_ERROR || packet->kind == PACKET_LATER_FRAGMENT)
        return;
    if (packet->protocol == IPPROTO_TCP)
        note_segment(packet, entry, now);
    else
        note_datagram(&packet->tuple, entry, now);
}

#endif
