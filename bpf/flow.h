/* Tracked flows: where their entries are, how long they live, when their backend must still serve.
 *
 * A flow has two entries, each under the tuple its packets arrive with. They begin in `pending`; once the backend has
 * answered and the client has gone on, they move to `connections`. Both tables forget what was not used for longest,
 * so a flood of packets that nobody answers can only push out its own kind. */
#ifndef HOTPLANE_FLOW_H
#define HOTPLANE_FLOW_H

#include "lookup.h"
#include "packet.h"

enum flow_limits {
    CHECK_PACKETS = 255, /* mask: how often a busy flow looks whether its other entry is still there */
    ANSWER_PACKETS = 15, /* mask: how often one that nobody answers looks whether its other entry knows better */
};

/* bpf_ktime_get_ns() as of the last tick. Reading the tick's number costs nothing, asking for the time does. */
INLINE __u64 coarse_now(struct scratch *scratch) {
    __u64 tick = bpf_jiffies64();

    if (scratch->tick != tick) {
        scratch->now_ns = bpf_ktime_get_coarse_ns();
        scratch->tick = tick;
    }
    return scratch->now_ns;
}

/* Both clocks tick together, but another CPU's reading may be a little ahead of ours. */
INLINE int older_than(__u64 then, __u64 now, __u64 seconds) {
    return (__s64)(now - then) > (__s64)(seconds * SECOND_NS);
}

/* Whether an entry turns packets into the answers to packets from `client` to `frontend`. */
INLINE int leads_back(const struct translation *entry, const struct address *client, __be16 client_port,
                      const struct address *frontend, __be16 frontend_port) {
    return same_address(&entry->destination, client) & same_address(&entry->source, frontend) &
           !((entry->destination_port ^ client_port) | (entry->source_port ^ frontend_port));
}

/* The key of a flow's other entry: what becomes of a packet, turned round. */
INLINE void other_key(const struct translation *entry, __u8 protocol, struct tuple *key) {
    copy_address(&key->source, &entry->destination);
    copy_address(&key->destination, &entry->source);
    key->source_port = entry->destination_port;
    key->destination_port = entry->source_port;
    key->protocol = protocol;
    key->pad[0] = key->pad[1] = key->pad[2] = 0;
}

INLINE struct translation *find_flow(const struct tuple *key, int *pending) {
    struct translation *entry = map_lookup(MAP(connections), key);

    *pending = !entry;
    return likely(entry) ? entry : map_lookup(MAP(pending), key);
}

/* The other entry of a flow, if it is still this flow's. Leaves its key in `key`. */
INLINE struct translation *find_other(const struct tuple *own, const struct translation *entry, struct tuple *key) {
    struct translation *other;
    int pending;

    other_key(entry, own->protocol, key);
    other = find_flow(key, &pending);
    return other && leads_back(other, &own->source, own->source_port, &own->destination, own->destination_port) ? other
                                                                                                                : 0;
}

INLINE int closed(__u32 flags) {
    return (flags & FLOW_RST) || ((flags & FLOW_FIN_FORWARD) && (flags & FLOW_FIN_REPLY));
}

/* Idle time in seconds after which an entry is forgotten. */
INLINE __u32 lifetime(const struct node *node, __u8 protocol, __u32 flags) {
    if (protocol != IPPROTO_TCP)
        return flags & FLOW_SEEN_REPLY ? node->udp_stream_seconds : node->udp_seconds;
    if (closed(flags))
        return node->tcp_closing_seconds;
    return flags & FLOW_ESTABLISHED ? node->tcp_established_seconds : node->tcp_syn_seconds;
}

INLINE int opens_connection(const struct packet *packet) {
    return (packet->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) == TCP_SYN;
}

/* The first answer is noted in both entries, so that the client's packets need not look for it. */
INLINE void note_answer(const struct tuple *key, struct translation *entry) {
    struct scratch *scratch = this_scratch();
    struct translation *other;

    if (likely(entry->flags & FLOW_SEEN_REPLY))
        return;
    entry->flags |= FLOW_SEEN_REPLY;
    if (!scratch)
        return;
    other = find_other(key, entry, &scratch->forward_key);
    if (other)
        other->flags |= FLOW_SEEN_REPLY;
}

/* Whether a flow that is still pending may have been answered and should be looked at for that. */
INLINE int maybe_answered(const struct packet *packet, const struct translation *entry) {
    if (packet->protocol == IPPROTO_TCP)
        return !opens_connection(packet);
    return (entry->flags & FLOW_SEEN_REPLY) || !(entry->packets & ANSWER_PACKETS);
}

/* Whether neither direction was used for the flow's lifetime. */
INLINE int expired(const struct node *node, const struct tuple *key, const struct translation *entry, __u64 now) {
    __u32 seconds = lifetime(node, key->protocol, entry->flags);
    struct scratch *scratch;
    struct translation *other;

    if (likely(!older_than(entry->last_ns, now, seconds)))
        return 0;
    scratch = this_scratch();
    if (!scratch)
        return 1;
    other = find_other(key, entry, &scratch->forward_key);
    return !other || older_than(other->last_ns, now, seconds);
}

/* Remove both entries of a flow. */
INLINE void forget_flow(const struct tuple *key, const struct translation *entry, struct tuple *work) {
    if (find_other(key, entry, work)) {
        map_delete(MAP(connections), work);
        map_delete(MAP(pending), work);
    }
    map_delete(MAP(connections), key);
    map_delete(MAP(pending), key);
}

/* Whether a packet may go the way its entry says. Established TCP stays with a backend that is going; UDP and new
 * connections do not. */
INLINE int usable(const struct node *node, struct packet *packet, const struct translation *entry, __u64 now) {
    int opening = packet->protocol != IPPROTO_TCP || opens_connection(packet);

    if (entry->flags & FLOW_REPLY)
        return 1;
    if (opening && !live_backend(entry->backend, entry->backend_generation, BACKEND_USABLE)) {
        packet->moved = 1;
        return 0;
    }
    if (opens_connection(packet) && closed(entry->flags))
        return 0;
    return !expired(node, &packet->tuple, entry, now);
}

/* FIN and RST are noted in both entries. They are plain stores: when two CPUs race, one flag is lost and the flow
 * lives for its usual time. */
INLINE void note_end(const struct packet *packet, struct translation *entry) {
    struct scratch *scratch = this_scratch();
    struct translation *other;
    __u32 flags = packet->tcp_flags & TCP_RST ? FLOW_RST
                  : entry->flags & FLOW_REPLY ? FLOW_FIN_REPLY
                                              : FLOW_FIN_FORWARD;

    entry->flags |= flags;
    if (!scratch)
        return;
    other = find_other(&packet->tuple, entry, &scratch->forward_key);
    if (other)
        other->flags |= flags;
}

/* The answers' entry of a flow that goes forward. */
INLINE void describe_reply(const struct tuple *key, const struct translation *forward, struct scratch *scratch) {
    struct translation *reply = &scratch->reply;

    other_key(forward, key->protocol, &scratch->reply_key);
    copy_address(&reply->source, &key->destination);
    copy_address(&reply->destination, &key->source);
    reply->source_port = key->destination_port;
    reply->destination_port = key->source_port;
    reply->flags = forward->flags | FLOW_REPLY;
    reply->backend = forward->backend;
    reply->backend_generation = forward->backend_generation;
    reply->service = forward->service;
    reply->ifindex = forward->ifindex;
    reply->last_ns = forward->last_ns;
    reply->packets = 0;
    reply->bytes = 0;
    reply->hop_until_ns = 0;
}

/* Reserve the tuple that answers will have. The tuple is in one table at a time, except while it moves from `pending`
 * to `connections`, when it is first in both: whoever finds it neither in the one nor then in the other has it. */
INLINE int claim_reply(struct scratch *scratch) {
    if (map_update(MAP(pending), &scratch->reply_key, &scratch->reply, BPF_NOEXIST))
        return 0;
    if (!map_lookup(MAP(connections), &scratch->reply_key))
        return 1;
    map_delete(MAP(pending), &scratch->reply_key);
    return 0;
}

/* A flow whose backend has answered and whose client goes on moves to the table of established ones. An entry for
 * answers that was pushed out of `pending` meanwhile is made again. Returns whether it moved: `entry` is void then. */
INLINE int promote(const struct packet *packet, const struct translation *entry, enum hook hook) {
    struct scratch *scratch = this_scratch();
    struct translation *other;
    __u32 established = FLOW_SEEN_REPLY;

    if (!scratch)
        return 0;
    if (packet->protocol == IPPROTO_TCP)
        established |= FLOW_ESTABLISHED;
    other_key(entry, packet->tuple.protocol, &scratch->reply_key);
    other = map_lookup(MAP(pending), &scratch->reply_key);
    if (other) {
        if (!(other->flags & FLOW_SEEN_REPLY))
            return 0;
        scratch->reply = *other;
    } else {
        describe_reply(&packet->tuple, entry, scratch);
        if (!claim_reply(scratch) || packet->protocol != IPPROTO_TCP)
            return 0;
    }
    scratch->forward = *entry;
    scratch->forward.flags |= established;
    scratch->reply.flags |= established;
    if (map_update(MAP(connections), &scratch->reply_key, &scratch->reply, BPF_ANY)) {
        count(hook, REASON_MAP_FULL);
        return 0;
    }
    if (map_update(MAP(connections), &packet->tuple, &scratch->forward, BPF_ANY)) {
        count(hook, REASON_MAP_FULL);
        map_delete(MAP(connections), &scratch->reply_key);
        return 0;
    }
    map_delete(MAP(pending), &packet->tuple);
    map_delete(MAP(pending), &scratch->reply_key);
    return 1;
}

/* Make again the answers' entry of a busy flow when it was pushed out. Returns 0 when another flow has its tuple by
 * now: then this one must not go on. */
INLINE int other_is_there(const struct packet *packet, const struct translation *entry) {
    struct scratch *scratch = this_scratch();

    if (!scratch)
        return 1;
    if (find_other(&packet->tuple, entry, &scratch->reply_key))
        return 1;
    if (entry->flags & FLOW_REPLY)
        return 1; /* the client's side is made by the client's packets */
    describe_reply(&packet->tuple, entry, scratch);
    return claim_reply(scratch);
}

/* Account a translated packet of so many bytes. */
INLINE void account(struct translation *entry, __u32 size, __u64 now) {
    struct service_counters *counters = counters_of(entry->service);

    entry->last_ns = now;
    entry->packets += 1;
    entry->bytes += size;
    if (!counters)
        return;
    if (entry->flags & FLOW_REPLY) {
        counters->reply_packets += 1;
        counters->reply_bytes += size;
    } else {
        counters->packets += 1;
        counters->bytes += size;
    }
}

INLINE void touch(const struct packet *packet, struct translation *entry, __u64 now) {
    account(entry, packet->size, now);
    if (unlikely(packet->tcp_flags & (TCP_FIN | TCP_RST)))
        note_end(packet, entry);
}

#endif
