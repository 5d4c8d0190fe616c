/* Tracked flows: look-up, lifetime, and when their backend must still serve.
 *
 * A flow has two entries, each under the tuple its packets arrive with. TCP and UDP have a table each, so that neither
 * can fill the other's. Live entries are never evicted: a full table refuses new flows, which the slow path serves.
 * Entries are removed when their connection has provably ended (segments.h), when a new flow needs the tuple of an
 * expired one, and otherwise by the daemon's collector (dataplane/planes/ebpf/flows/collect.py), by the rule of
 * expired() below. */
#ifndef HOTPLANE_FLOW_H
#define HOTPLANE_FLOW_H

#include "lookup.h"
#include "packet.h"

enum flow_limits {
    CHECK_PACKETS = 255,  /* mask: a busy flow checks once in so many packets that its other entry exists */
    UDP_STREAM_AFTER = 2, /* translation.begun's units: as connection tracking, which takes two seconds */
    NO_ANSWER_AFTER = 1,
};

/* Of enum host_times. */
INLINE __u64 host_time(__u32 which) {
    __u64 *time = map_lookup(MAP(host_times), &which);
    return time ? *time : 0;
}

/* bpf_ktime_get_ns() as of the last tick. Reading the tick number is cheap, reading the clock is not. */
INLINE __u64 coarse_now(struct scratch *scratch) {
    __u64 tick = bpf_jiffies64();

    if (scratch->tick != tick) {
        scratch->now_ns = bpf_ktime_get_coarse_ns();
        scratch->tick = tick;
    }
    return scratch->now_ns;
}

/* The unit of translation.begun. Never 0. */
INLINE __u32 coarse_time(__u64 now) {
    return (__u32)(now >> 30) | !(__u32)(now >> 30);
}

/* Source and destination of a tuple, two words each. All tuples that flows are looked up by lie on whole words. */
INLINE const any_long *both_ends(const struct tuple *tuple) {
    return (const void *)tuple;
}

/* Its ports as they lie in a packet. */
INLINE __u32 both_ports(const struct tuple *tuple) {
    return *(const any_word *)&tuple->source_port;
}

INLINE int same_ends(const struct tuple *a, const struct tuple *b) {
    const any_long *left = both_ends(a), *right = both_ends(b);

    return !((left[0] ^ right[0]) | (left[1] ^ right[1]) | (left[2] ^ right[2]) | (left[3] ^ right[3]) |
             (both_ports(a) ^ both_ports(b)));
}

/* The table of a protocol's flows. A map of maps, so that to the verifier both are one. */
INLINE void *flow_table(__u8 protocol) {
    __u32 index = protocol == IPPROTO_TCP ? FLOWS_TCP : FLOWS_UDP;
    return map_lookup(MAP(flows), &index);
}

/* A digest of 88 bits of source and destination, each two words: no two of a million flows meet, and where somebody
 * makes two that do, the second one is left to the slow path. The same as flows/entries.py, flow_key(). */
INLINE void digest_flow(const any_long *ends, __u32 ports, struct flow_key *key) {
    __u64 networks = ((ends[0] * MIX) ^ ends[2]) * MIX_2;
    __u64 hosts = ((ends[1] * MIX_3) ^ ends[3] ^ ((__u64)ports << 16)) * MIX;
    __u64 half;

    networks ^= networks >> 32;
    hosts ^= hosts >> 29;
    half = networks + hosts * MIX_2;
    key->word[0] = (__u32)(((networks ^ hosts) * MIX_3) >> 32) << 8;
    key->word[1] = (__u32)half;
    key->word[2] = (__u32)(half >> 32);
}

/* The key of a tuple. */
INLINE void name_flow(const struct tuple *tuple, struct flow_key *key) {
    const any_long *ends = both_ends(tuple);

    if (!ends[0] && (__u32)ends[1] == to_be32(0xffff)) {
        key->word[0] = tuple->source.word[3];
        key->word[1] = tuple->destination.word[3];
        key->word[2] = both_ports(tuple);
    } else {
        digest_flow(ends, both_ports(tuple), key);
    }
}

/* The entry under a tuple's key, if it is this tuple's. */
INLINE struct translation *find_flow(const struct tuple *tuple) {
    void *table = flow_table(tuple->protocol);
    struct translation *entry;
    struct flow_key key;

    name_flow(tuple, &key);
    entry = likely(table) ? table_lookup(table, &key) : 0;
    return entry && same_ends(&entry->own, tuple) ? entry : 0;
}

/* Store an entry, whatever else is in it, or with BPF_NOEXIST unless there is one. Returns 0, or negative. */
INLINE long put_flow(const struct tuple *tuple, struct translation *value, __u64 flags) {
    void *table = flow_table(tuple->protocol);
    any_long *own = (void *)&value->own;
    struct flow_key key;

    name_flow(tuple, &key);
    own[0] = both_ends(tuple)[0];
    own[1] = both_ends(tuple)[1];
    own[2] = both_ends(tuple)[2];
    own[3] = both_ends(tuple)[3];
    own[4] = both_ends(tuple)[4]; /* ports and protocol */
    return likely(table) ? table_update(table, &key, value, flags) : ERROR_TOO_BIG;
}

/* Store an entry unless there is one. REASON_NONE, REASON_TUPLE_TAKEN, or the table is full. */
INLINE enum reason insert_flow(const struct tuple *key, struct translation *value) {
    long failed = put_flow(key, value, BPF_NOEXIST);

    if (likely(!failed))
        return REASON_NONE;
    if (failed != ERROR_TOO_BIG)
        return REASON_TUPLE_TAKEN;
    return key->protocol == IPPROTO_TCP ? REASON_TCP_FLOWS_FULL : REASON_UDP_FLOWS_FULL;
}

/* Remove the entry of a tuple, which was found. */
INLINE void delete_flow(const struct tuple *tuple) {
    void *table = flow_table(tuple->protocol);
    struct flow_key key;

    name_flow(tuple, &key);
    if (likely(table))
        table_delete(table, &key);
}

/* True if an entry translates packets to replies to packets from `client` to `frontend`. */
INLINE int is_reverse_of(const struct translation *entry, const struct address *client, __be16 client_port,
                         const struct address *frontend, __be16 frontend_port) {
    return same_address(&entry->destination, client) & same_address(&entry->source, frontend) &
           !((entry->destination_port ^ client_port) | (entry->source_port ^ frontend_port));
}

/* Return in `back` the tuple of the other direction. */
INLINE void reverse_tuple(const struct tuple *tuple, struct tuple *back) {
    copy_address(&back->source, &tuple->destination);
    copy_address(&back->destination, &tuple->source);
    back->source_port = tuple->destination_port;
    back->destination_port = tuple->source_port;
    back->protocol = tuple->protocol;
    back->pad[0] = back->pad[1] = back->pad[2] = 0;
}

/* Return in `key` the key of a flow's other entry: the reversed tuple of the translated packet. */
INLINE void other_key(const struct translation *entry, __u8 protocol, struct tuple *key) {
    copy_address(&key->source, &entry->destination);
    copy_address(&key->destination, &entry->source);
    key->source_port = entry->destination_port;
    key->destination_port = entry->source_port;
    key->protocol = protocol;
    key->pad[0] = key->pad[1] = key->pad[2] = 0;
}

/* Find the other entry of a flow, if it still belongs to this flow. Leaves its key in `key`. */
INLINE struct translation *find_other(const struct tuple *own, const struct translation *entry, struct tuple *key) {
    struct translation *other;

    other_key(entry, own->protocol, key);
    other = find_flow(key);
    return other && is_reverse_of(other, &own->source, own->source_port, &own->destination, own->destination_port)
               ? other
               : 0;
}

/* Return the flags of a flow, set by either direction. */
INLINE __u32 flow_flags(const struct translation *entry) {
    return entry->flags | entry->noted;
}

/* Set flags in both entries of a flow, so that packets of the other direction need only one look-up. Plain stores are
 * enough, since each word is written by packets of one direction only. */
INLINE void note(struct translation *entry, struct translation *other, __u32 flags) {
    entry->flags |= flags;
    if (other)
        other->noted |= flags;
}

/* True if a connection is closed or closing: a SYN then starts a new one. */
INLINE int ending(__u32 flags) {
    return (flags & (FLOW_RST_FORWARD | FLOW_RST_REPLY | FLOW_RESTING)) ||
           (flags & (FLOW_FIN_FORWARD | FLOW_FIN_REPLY)) == (FLOW_FIN_FORWARD | FLOW_FIN_REPLY);
}

/* Return the idle time in seconds after which an entry expires; the same rule as flows/entries.py, setting(). */
INLINE __u32 lifetime(const struct node *node, __u8 protocol, __u32 flags) {
    if (protocol != IPPROTO_TCP)
        return flags & (FLOW_ESTABLISHED | FLOW_FOREIGN) ? node->udp_stream_seconds : node->udp_seconds;
    if (flags & FLOW_RESTING)
        return node->tcp_rest_seconds;
    if (flags & (FLOW_RST_FORWARD | FLOW_RST_REPLY))
        return node->tcp_reset_seconds;
    if (ending(flags))
        return node->tcp_closing_seconds;
    if (flags & (FLOW_FIN_FORWARD | FLOW_FIN_REPLY))
        return node->tcp_half_closed_seconds;
    return flags & (FLOW_ESTABLISHED | FLOW_FOREIGN) ? node->tcp_established_seconds : node->tcp_syn_seconds;
}

INLINE int opens_connection(const struct packet *packet) {
    return (packet->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) == TCP_SYN;
}

/* Update the state of a UDP flow: first reply seen, then established once it has lasted UDP_STREAM_AFTER. */
INLINE void note_datagram(const struct tuple *key, struct translation *entry, __u64 now) {
    __u32 flags = FLOW_SEEN_REPLY;
    struct scratch *scratch;

    if (likely(flow_flags(entry) & FLOW_ESTABLISHED))
        return;
    if (flow_flags(entry) & FLOW_SEEN_REPLY) {
        if ((__s32)(coarse_time(now) - entry->begun) < UDP_STREAM_AFTER)
            return;
        flags = FLOW_ESTABLISHED;
    } else if (!(entry->flags & FLOW_REPLY)) {
        return;
    }
    scratch = this_scratch();
    if (scratch)
        note(entry, find_other(key, entry, &scratch->forward_key), flags);
}

/* True if both directions were idle for the flow's lifetime. */
INLINE int expired(const struct node *node, const struct tuple *key, const struct translation *entry, __u64 now) {
    struct scratch *scratch = this_scratch();
    struct translation *other;
    __u32 seconds;

    if (!scratch)
        return 0;
    seconds = hide_value(scratch, lifetime(node, key->protocol, flow_flags(entry)));
    if (likely(!older_than(entry->last_ns, now, seconds)))
        return 0;
    other = find_other(key, entry, &scratch->forward_key);
    return hide_value(scratch, !other || older_than(other->last_ns, now, seconds));
}

/* Remove a flow, except a reply entry in TIME-WAIT. Leaves the other entry's key in `work`. */
INLINE void forget_flow(const struct tuple *key, const struct translation *entry, struct tuple *work) {
    struct translation *other = find_other(key, entry, work);

    if (other && !(flow_flags(other) & FLOW_RESTING))
        delete_flow(work);
    delete_flow(key);
}

/* True if a SYN may use the existing entry of its tuple. A retransmitted SYN goes to the same backend while that
 * serves. A SYN does not end an established connection: the backend answers with a challenge ACK (RFC 5961, section 4),
 * and a client that really restarted resets the old connection. A removed backend does not answer; then a second SYN
 * after a second of silence starts a new connection. */
INLINE int takes_syn(const struct tuple *key, struct translation *entry, __u64 now, __u8 *moved) {
    struct scratch *scratch = this_scratch();
    struct translation *other;
    __u32 time = coarse_time(now);

    if (ending(flow_flags(entry)) || !scratch)
        return 0;
    if (live_backend(entry->backend, entry->backend_generation, BACKEND_USABLE))
        return 1;
    *moved = 1;
    if (!(flow_flags(entry) & FLOW_ESTABLISHED))
        return 0;
    other = find_other(key, entry, &scratch->forward_key);
    if (entry->begun && (__s32)(time - entry->begun) > NO_ANSWER_AFTER &&
        (!other || (__s32)(coarse_time(other->last_ns) - entry->begun) < 0))
        return 0;
    *moved = 0;
    if (!entry->begun || (other && (__s32)(coarse_time(other->last_ns) - entry->begun) >= 0))
        entry->begun = time;
    return 1;
}

/* Whether a packet may go the way its entry says. Established TCP stays with a backend that is going; UDP as long as
 * the backend serves the port, in a set or not; new connections only with a member of a set. */
INLINE int usable(const struct node *node, struct packet *packet, struct translation *entry, __u64 now) {
    if (packet->protocol == IPPROTO_TCP) {
        if (likely(!opens_connection(packet)))
            return !(flow_flags(entry) & (FLOW_RESTING | FLOW_PORT_TAKEN));
        return !expired(node, &packet->tuple, entry, now) && takes_syn(&packet->tuple, entry, now, &packet->moved);
    }
    if (!live_backend(entry->backend, entry->backend_generation, BACKEND_SERVES)) {
        packet->moved = 1;
        return 0;
    }
    return !expired(node, &packet->tuple, entry, now);
}

/* The answers' entry of a flow that goes forward. Of its numbers all is known that the client has heard of. */
INLINE void describe_reply(const struct tuple *key, const struct translation *forward, struct scratch *scratch) {
    struct translation *reply = &scratch->reply;

    other_key(forward, key->protocol, &scratch->reply_key);
    __builtin_memset(reply, 0, sizeof(*reply));
    copy_address(&reply->source, &key->destination);
    copy_address(&reply->destination, &key->source);
    reply->source_port = key->destination_port;
    reply->destination_port = key->source_port;
    reply->flags = flow_flags(forward) | FLOW_REPLY;
    reply->backend = forward->backend;
    reply->backend_generation = forward->backend_generation;
    reply->service = forward->service;
    reply->last_ns = forward->last_ns;
    reply->begun = forward->begun;
    reply->sequence_end = forward->acknowledged;
    reply->acknowledged = forward->sequence_end;
}

/* Make again the answers' entry of a flow when it is not there. Returns 0 when another flow has its tuple by now: then
 * this one must not go on. */
INLINE int other_is_there(const struct packet *packet, const struct translation *entry) {
    struct scratch *scratch = this_scratch();

    if (!scratch || (entry->flags & (FLOW_REPLY | FLOW_DSR))) /* the client's side is made by the client's packets */
        return 1;
    if (find_other(&packet->tuple, entry, &scratch->reply_key))
        return 1;
    describe_reply(&packet->tuple, entry, scratch);
    return insert_flow(&scratch->reply_key, &scratch->reply) == REASON_NONE;
}

/* True for an entry of answers that are translated where they leave towards the client, whose address was kept. */
INLINE int answers_client(const struct translation *entry) {
    return (entry->flags & (FLOW_REPLY | FLOW_SNAT | FLOW_FOREIGN | FLOW_FORWARDED)) == FLOW_REPLY;
}

/* Account a packet of so many bytes that was translated or forwarded. `reply`: an answer. */
INLINE void account_as(struct translation *entry, __u32 reply, __u32 size, __u64 now) {
    struct service_counters *counters = counters_of(entry->service);

    entry->last_ns = now;
    entry->packets += 1;
    entry->bytes += size;
    if (!counters)
        return;
    if (reply) {
        counters->reply_packets += 1;
        counters->reply_bytes += size;
    } else {
        counters->packets += 1;
        counters->bytes += size;
    }
}

INLINE void account(struct translation *entry, __u32 size, __u64 now) {
    account_as(entry, entry->flags & FLOW_REPLY, size, now);
}

#endif
