/* Fragments that come before the first of their datagram (RFC 791 lets them). Only the first has ports, so what becomes
 * of the others is not known yet. The stack gets them, which is right if the datagram turns out to be none of ours; a
 * copy is kept here, to come in once more behind the first if that is translated. Towards a receiver whose datagrams
 * turned out so before, the copy alone is kept, since what the stack waits for in vain takes room from others for half
 * a minute; then it comes in again either way. */
#ifndef HOTPLANE_HOLD_H
#define HOTPLANE_HOLD_H

#include "fragment.h"
#include "parse.h"

enum hold_limits {
    HELD_BYTES = 2048, /* bigger frames are not held, only passed on; a power of two */
    HELD_MOST = 64,    /* of a datagram: 65,535 bytes in packets of 1,280 */
    PAIR = 0xffffffff, /* identification of what is remembered of a pair of addresses: its fragments came so before */
};

_Static_assert(sizeof(((struct held *)0)->bytes) == HELD_BYTES, "see structs.h");

/* The key of a held fragment, where nothing else is kept meanwhile: the programs' stack has no room for it. */
INLINE struct held_key *held_key(struct scratch *scratch, const struct packet *packet, __u32 number) {
    struct held_key *key = (struct held_key *)&scratch->reply;

    _Static_assert(sizeof(*key) <= sizeof(scratch->reply), "no room for the key");
    fragment_key(packet, &key->datagram);
    key->number = number;
    return key;
}

/* Copy the frame at hand. Returns 0, or negative: it is too big. */
INLINE long copy_frame(struct __sk_buff *skb, struct held *to, struct scratch *scratch) {
    __u32 length = settled(scratch, skb->len);

    if (!length || length >= HELD_BYTES)
        return -1;
    to->length = length;
    return bpf_skb_load_bytes(skb, 0, to->bytes, ((length - 1) & (HELD_BYTES - 1)) + 1);
}

INLINE long replace_frame(struct __sk_buff *skb, const struct held *by, struct scratch *scratch) {
    __u32 length = ((settled(scratch, by->length) - 1) & (HELD_BYTES - 1)) + 1;

    return bpf_skb_change_tail(skb, length, 0) || bpf_skb_store_bytes(skb, 0, by->bytes, length, 0);
}

/* What is known of the datagram at hand, or 0. Leaves its key in `scratch`. */
INLINE struct fragment *find_datagram(struct scratch *scratch, const struct packet *packet, __u64 now) {
    struct held_key *key = held_key(scratch, packet, 0);
    struct fragment *found = map_lookup(MAP(fragments), &key->datagram);

    return found && !older_than(found->last_ns, now, REASSEMBLY_SECONDS) ? found : 0;
}

INLINE int came_so_before(struct scratch *scratch, const struct packet *packet, __u64 now) {
    struct held_key *key = held_key(scratch, packet, 0);
    struct fragment *found;

    key->datagram.identification = PAIR;
    found = map_lookup(MAP(fragments), &key->datagram);
    return found && !older_than(found->last_ns, now, REASSEMBLY_SECONDS);
}

/* Whether a fragment is the last of its datagram. */
INLINE int is_last(struct __sk_buff *skb, const struct packet *packet) {
    __u32 at = packet->ipv4 ? packet->l3 + 6 : packet->l4 - 6; /* IPv6: two bytes behind the fragment header's start */
    __be16 offset;

    return !bpf_skb_load_bytes(skb, at, &offset, sizeof(offset)) &&
           !(to_be16(offset) & (packet->ipv4 ? IPV4_MORE_FRAGMENTS : 1));
}

/* Take a number for a fragment that came before its first; HELD_MOST or more: it is not to be held. */
INLINE __u32 take_number(struct __sk_buff *skb, struct scratch *scratch, const struct packet *packet, __u64 now) {
    struct fragment *found = find_datagram(scratch, packet, now), value = {.held = 1, .last_ns = now};
    __u32 number;

    if (!found)
        return map_update(MAP(fragments), &held_key(scratch, packet, 0)->datagram, &value, BPF_ANY) ? HELD_MOST : 0;
    number = found->held;
    if (!number) { /* its first went to the stack, and so do these; in order, nothing comes behind the last */
        if (is_last(skb, packet) && !came_so_before(scratch, packet, now))
            map_delete(MAP(fragments), &held_key(scratch, packet, 0)->datagram);
        return HELD_MOST;
    }
    if (number >= HELD_MOST)
        return HELD_MOST;
    found->held = number + 1;
    return number;
}

/* Keep a fragment that came before its first. Returns whether the stack is not to get it. */
INLINE int hold(struct __sk_buff *skb, const struct packet *packet, __u64 now) {
    struct scratch *scratch = this_scratch();
    __u32 zero = 0, number, instead;
    struct held *copy = map_lookup(MAP(holding), &zero);

    if (!scratch || !copy || copy_frame(skb, copy, scratch))
        return 0;
    number = settled(scratch, take_number(skb, scratch, packet, now));
    if (number >= HELD_MOST)
        return 0;
    instead = settled(scratch, came_so_before(scratch, packet, now));
    copy->last_ns = now;
    copy->instead = instead;
    return !map_update(MAP(held), held_key(scratch, packet, number), copy, BPF_ANY) && instead;
}

/* Let fragments that came before the first one, at hand, come in again: all, or those only that the stack did not get.
 * Returns 0, or negative: what is at hand is of no use any more. */
INLINE long release(struct __sk_buff *skb, const struct packet *packet, struct scratch *scratch, __u32 count, int all) {
    __u32 zero = 0, number;
    struct held *own = map_lookup(MAP(holding), &zero), *copy;

    if (!own || copy_frame(skb, own, scratch) || bpf_skb_change_tail(skb, own->length + 1, 0))
        return 0; /* growing makes a sum over the whole frame forgotten */
#pragma clang loop unroll(disable)
    for (number = 0; number < HELD_MOST; number++) {
        if (settled(scratch, number) >= count)
            break;
        copy = map_lookup(MAP(held), held_key(scratch, packet, number));
        if (!copy)
            continue;
        if ((all || copy->instead) && !replace_frame(skb, copy, scratch))
            bpf_clone_redirect(skb, skb->ifindex, BPF_F_INGRESS);
        map_delete(MAP(held), held_key(scratch, packet, number));
    }
    return replace_frame(skb, own, scratch);
}

/* How many fragments came before the first, which is at hand. */
INLINE __u32 count_held(const struct packet *packet, __u64 now) {
    struct scratch *scratch = this_scratch();
    struct fragment *found = scratch ? find_datagram(scratch, packet, now) : 0;

    return found ? found->held : 0;
}

/* The first fragment at hand is translated, and remembered: so are those that came before it. */
INLINE long translate_held(struct __sk_buff *skb, const struct packet *packet, __u32 count, __u64 now) {
    struct scratch *scratch = this_scratch();
    struct fragment value = {.last_ns = now};
    struct held_key *key;

    if (likely(!count) || !scratch)
        return 0;
    key = held_key(scratch, packet, 0);
    key->datagram.identification = PAIR;
    map_update(MAP(fragments), &key->datagram, &value, BPF_ANY);
    return release(skb, packet, scratch, count, 1);
}

/* The first fragment at hand goes to the stack: so does the rest. */
INLINE long pass_held(struct __sk_buff *skb, const struct packet *packet, __u64 now) {
    struct scratch *scratch = this_scratch();
    struct fragment value = {.last_ns = now};
    __u32 count;

    if (!scratch)
        return 0;
    count = settled(scratch, count_held(packet, now));
    if (map_update(MAP(fragments), &held_key(scratch, packet, 0)->datagram, &value, BPF_ANY))
        return 0;
    return likely(!count) ? 0 : release(skb, packet, scratch, count, 0);
}

#endif
