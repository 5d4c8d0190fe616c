/* Fragments that arrive before the first fragment of their datagram (allowed by RFC 791). Only the first fragment has
 * ports, so the programs cannot yet tell whether the datagram belongs to a Service. Such a fragment is passed to the
 * stack and a copy is held; if the first fragment is translated, the copy is reinjected after it. If datagrams between
 * the same two addresses arrived out of order and were translated before, only the copy is kept, because an incomplete
 * datagram occupies the stack's reassembly memory for 30 seconds; the copy is then reinjected in either case. */
#ifndef HOTPLANE_HOLD_H
#define HOTPLANE_HOLD_H

#include "fragment.h"
#include "parse.h"

enum hold_limits {
    HELD_BYTES = 2048, /* bigger frames are not held, only passed on; a power of two */
    HELD_MOST = 64,    /* of a datagram: 65,535 bytes in packets of 1,280 */
    PAIR = 0xffffffff, /* identification in the key of an address pair whose fragments arrived out of order before */
};

_Static_assert(sizeof(((struct held *)0)->bytes) == HELD_BYTES, "see structs.h");

/* Build the key of a held fragment in scratch memory that is unused at this point; the BPF stack has no room for it. */
INLINE struct held_key *held_key(struct scratch *scratch, const struct packet *packet, __u32 number) {
    struct held_key *key = (struct held_key *)&scratch->reply;

    _Static_assert(sizeof(*key) <= sizeof(scratch->reply), "no room for the key");
    fragment_key(packet, &key->datagram);
    key->number = number;
    return key;
}

/* Copy the current frame to `to`. Returns 0, or negative if the frame is too big. */
INLINE long copy_frame(struct __sk_buff *skb, struct held *to, struct scratch *scratch) {
    __u32 length = hide_value(scratch, skb->len);

    if (!length || length >= HELD_BYTES)
        return -1;
    to->length = length;
    return bpf_skb_load_bytes(skb, 0, to->bytes, ((length - 1) & (HELD_BYTES - 1)) + 1);
}

INLINE long replace_frame(struct __sk_buff *skb, const struct held *by, struct scratch *scratch) {
    __u32 length = ((hide_value(scratch, by->length) - 1) & (HELD_BYTES - 1)) + 1;
    long failed = bpf_skb_change_tail(skb, length, 0);

    return failed | bpf_skb_store_bytes(skb, 0, by->bytes, length, 0); /* not ||: a branch less to follow */
}

/* Return the entry of the current datagram, or 0. Leaves its key in `scratch`. */
INLINE struct fragment *find_datagram(struct scratch *scratch, const struct packet *packet, __u64 now) {
    struct held_key *key = held_key(scratch, packet, 0);
    struct fragment *found = map_lookup(MAP(fragments), &key->datagram);

    return found && !older_than(found->last_ns, now, REASSEMBLY_SECONDS) ? found : 0;
}

INLINE int arrived_out_of_order(struct scratch *scratch, const struct packet *packet, __u64 now) {
    struct held_key *key = held_key(scratch, packet, 0);
    struct fragment *found;

    key->datagram.identification = PAIR;
    found = map_lookup(MAP(fragments), &key->datagram);
    return found && !older_than(found->last_ns, now, REASSEMBLY_SECONDS);
}

/* True if a fragment is the last of its datagram. */
INLINE int is_last(struct __sk_buff *skb, const struct packet *packet) {
    __u32 at = packet->ipv4 ? packet->l3 + 6 : packet->l4 - 6; /* IPv6: two bytes behind the fragment header's start */
    __be16 offset;

    return !bpf_skb_load_bytes(skb, at, &offset, sizeof(offset)) &&
           !(to_be16(offset) & (packet->ipv4 ? IPV4_MORE_FRAGMENTS : 1));
}

/* Allocate a number for a fragment that arrived before its first; HELD_MOST or more: do not hold it. */
INLINE __u32 take_number(struct __sk_buff *skb, struct scratch *scratch, const struct packet *packet, __u64 now) {
    struct fragment *found = find_datagram(scratch, packet, now), value = {.held = 1, .last_ns = now};
    __u32 number;

    if (!found)
        return map_update(MAP(fragments), &held_key(scratch, packet, 0)->datagram, &value, BPF_ANY) ? HELD_MOST : 0;
    number = found->held;
    if (!number) { /* the first went to the stack, so this one does; in order, the last one ends the datagram */
        if (is_last(skb, packet) && !arrived_out_of_order(scratch, packet, now))
            map_delete(MAP(fragments), &held_key(scratch, packet, 0)->datagram);
        return HELD_MOST;
    }
    if (number >= HELD_MOST)
        return HELD_MOST;
    found->held = number + 1;
    return number;
}

/* Hold a copy of a fragment that arrived before its first. Returns 1 if the stack must not get the fragment. */
INLINE int hold_fragment(struct __sk_buff *skb, const struct packet *packet, __u64 now) {
    struct scratch *scratch = this_scratch();
    __u32 zero = 0, number, instead;
    struct held *copy = map_lookup(MAP(holding), &zero);

    if (!scratch || !copy || copy_frame(skb, copy, scratch))
        return 0;
    number = hide_value(scratch, take_number(skb, scratch, packet, now));
    if (number >= HELD_MOST)
        return 0;
    instead = hide_value(scratch, arrived_out_of_order(scratch, packet, now));
    copy->last_ns = now;
    copy->instead = instead;
    return !map_update(MAP(held), held_key(scratch, packet, number), copy, BPF_ANY) && instead;
}

/* Reinject the held fragments of the current packet, which is the first fragment: all of them, or only those that the
 * stack did not get. Returns 0, or negative if the current packet is damaged and must be dropped. */
INLINE long reinject_held(struct __sk_buff *skb, const struct packet *packet, struct scratch *scratch, __u32 count,
                          int all) {
    struct held_key *key = held_key(scratch, packet, 0);
    __u32 zero = 0, number;
    struct held *own = map_lookup(MAP(holding), &zero), *copy;

    if (!own || copy_frame(skb, own, scratch) || bpf_skb_change_tail(skb, own->length + 1, 0))
        return 0; /* growing clears CHECKSUM_COMPLETE */
#pragma clang loop unroll(disable)
    for (number = 0; number < HELD_MOST; number++) {
        if (hide_value(scratch, number) >= count)
            break;
        key->number = number;
        copy = map_lookup(MAP(held), key);
        if (copy && (all || copy->instead) && !replace_frame(skb, copy, scratch))
            bpf_clone_redirect(skb, skb->ifindex, BPF_F_INGRESS);
        map_delete(MAP(held), key);
    }
    return replace_frame(skb, own, scratch);
}

/* Return how many fragments arrived before the current packet, the first fragment. */
INLINE __u32 count_held(const struct packet *packet, __u64 now) {
    struct scratch *scratch = this_scratch();
    struct fragment *found = scratch ? find_datagram(scratch, packet, now) : 0;

    return found ? found->held : 0;
}

/* Reinject all held fragments of a first fragment that is translated and recorded, so they are translated, too. */
INLINE long translate_held(struct __sk_buff *skb, const struct packet *packet, __u32 count, __u64 now) {
    struct scratch *scratch = this_scratch();
    struct fragment value = {.last_ns = now};
    struct held_key *key;

    if (likely(!count) || !scratch)
        return 0;
    key = held_key(scratch, packet, 0);
    key->datagram.identification = PAIR;
    map_update(MAP(fragments), &key->datagram, &value, BPF_ANY);
    return reinject_held(skb, packet, scratch, count, 1);
}

/* Record that the current packet, a first fragment, goes to the stack, so that the later ones follow it. */
INLINE long pass_held(struct __sk_buff *skb, const struct packet *packet, __u64 now) {
    struct scratch *scratch = this_scratch();
    struct fragment value = {.last_ns = now};
    __u32 count;

    if (!scratch)
        return 0;
    count = hide_value(scratch, count_held(packet, now));
    if (map_update(MAP(fragments), &held_key(scratch, packet, 0)->datagram, &value, BPF_ANY))
        return 0;
    return likely(!count) ? 0 : reinject_held(skb, packet, scratch, count, 0);
}

#endif
