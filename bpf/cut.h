/* Fragment an IPv4 packet that exceeds the MTU of its route and has no DF flag (RFC 791), as a router does. The stack
 * does not do this for redirected packets. The current packet becomes a fragment of HEAD_BYTES, whatever the MTU; the
 * rest is reinjected as a later fragment of the same datagram and fragmented again if it is still too big. */
#ifndef HOTPLANE_CUT_H
#define HOTPLANE_CUT_H

#include "fragment.h"
#include "left.h"
#include "parse.h"
#include "rewrite_skb.h"

enum cut_limits {
    HEAD_BYTES = 256, /* of data; a multiple of 8. The transport header is among them */
    CUT_TURNS = 36,   /* times HEAD_BYTES: no unfinished packet that is bigger is cut; devices of 9000 have none */
    IPV4_HEADER = 20, /* without options: others are not translated */
};

/* True if this packet may be fragmented. GSO packets may not: they hold several segments. */
INLINE int may_fragment(const struct __sk_buff *skb, const struct packet *packet) {
    return packet->ipv4 && !packet->extended && !packet->keep_whole && packet->kind != PACKET_ICMP_ERROR &&
           !skb->gso_size && packet->size > IPV4_HEADER + HEAD_BYTES;
}

/* Return scratch memory for HEAD_BYTES that is unused once the flow's entry was looked up. */
INLINE __u8 *head_room(struct scratch *scratch) {
    _Static_assert(sizeof(scratch->forward) + sizeof(scratch->reply) >= HEAD_BYTES, "no room for the head");
    return (__u8 *)&scratch->forward;
}

INLINE void zero_head(void *head) {
    __u64 *words = head;
    int index;

#pragma unroll
    for (index = 0; index < HEAD_BYTES / 8; index++)
        words[index] = 0;
}

/* Compute the transport checksum of a packet that relies on checksum offload, since the device could not sum bytes that
 * are in another fragment. The field holds the pseudo-header sum, so the result is the sum over all bytes. */
INLINE long finish_checksum(struct __sk_buff *skb, const struct packet *packet, struct scratch *scratch) {
    __u32 at = packet->l4 + (packet->protocol == IPPROTO_TCP ? (int)TCP_CHECK : (int)UDP_CHECK);
    __u32 length = packet->size - (packet->l4 - packet->l3), done = 0, last;
    __u8 *head = head_room(scratch);
    __u64 sum = 0;
    long failed;
    __be16 check;
    int turn;

    if (bpf_skb_load_bytes(skb, at, &check, sizeof(check)))
        return -1;
    if (!unfinished(&packet->tuple, packet->ipv4, length, check))
        return 0;
    if (length > CUT_TURNS * HEAD_BYTES)
        return -1;
    failed = 0;
#pragma clang loop unroll(disable)
    for (turn = 0; turn < CUT_TURNS; turn++) {
        if (hide_value(scratch, length - done) <= HEAD_BYTES)
            break;
        failed |= bpf_skb_load_bytes(skb, packet->l4 + done, head, HEAD_BYTES);
        sum = hide_value(scratch, (__u32)bpf_csum_diff(0, 0, (void *)head, HEAD_BYTES, sum));
        done += HEAD_BYTES;
    }
    zero_head(head);
    last = ((hide_value(scratch, length - done) - 1) & (HEAD_BYTES - 1)) + 1; /* the same: so the verifier sees it */
    failed |= bpf_skb_load_bytes(skb, packet->l4 + done, head, last);
    sum = (__u32)bpf_csum_diff(0, 0, (void *)head, HEAD_BYTES, sum);
    check = ~fold16(sum);
    if (!check)
        check = 0xffff;
    return failed || bpf_skb_store_bytes(skb, at, &check, sizeof(check), 0);
}

/* The IP header of a fragment. `offset`: IPv4_* flags and offset, in host order. */
INLINE long write_fragment_header(struct __sk_buff *skb, const struct packet *packet, struct iphdr *ip, __u32 size,
                                  __u32 offset) {
    ip->tot_len = to_be16(size);
    ip->frag_off = to_be16(offset);
    ip->check = 0;
    ip->check = ~fold16((__u32)bpf_csum_diff(0, 0, (void *)ip, sizeof(*ip), 0));
    return bpf_skb_store_bytes(skb, packet->l3, ip, sizeof(*ip), 0);
}

/* Prepare a whole packet for becoming a first fragment. Returns 0, or negative. */
INLINE long begin_cut(struct __sk_buff *skb, struct packet *packet, struct scratch *scratch) {
    __be16 identification;

    if (packet->kind != PACKET_WHOLE)
        return 0;
    if (finish_checksum(skb, packet, scratch) ||
        bpf_skb_load_bytes(skb, packet->l3 + 4, &identification, sizeof(identification)))
        return -1;
    packet->identification = to_be32(to_be16(identification));
    packet->kind = PACKET_FIRST_FRAGMENT;
    return 0;
}

/* Cut off the rest and let it come in again. The datagram must have been remembered. Returns 0, or negative: what is at
 * hand is of no use any more. */
INLINE long cut(struct __sk_buff *skb, struct packet *packet, struct scratch *scratch, enum hook hook) {
    __u32 data = packet->l3 + IPV4_HEADER, offset;
    __u8 *head = head_room(scratch);
    struct iphdr ip;

    if (bpf_skb_load_bytes(skb, packet->l3, &ip, sizeof(ip)) || bpf_skb_load_bytes(skb, data, head, HEAD_BYTES))
        return -1;
    offset = to_be16(ip.frag_off);
    if (bpf_skb_adjust_room(skb, -(int)HEAD_BYTES, BPF_ADJ_ROOM_NET, 0) ||
        write_fragment_header(skb, packet, &ip, packet->size - HEAD_BYTES, offset + HEAD_BYTES / 8) ||
        bpf_clone_redirect(skb, skb->ifindex, BPF_F_INGRESS))
        return -1;
    if (bpf_skb_change_tail(skb, data + HEAD_BYTES, 0) ||
        bpf_skb_store_bytes(skb, data, head, HEAD_BYTES, BPF_F_RECOMPUTE_CSUM) ||
        write_fragment_header(skb, packet, &ip, IPV4_HEADER + HEAD_BYTES, offset | IPV4_MORE_FRAGMENTS))
        return -1;
    packet->size = IPV4_HEADER + HEAD_BYTES;
    count(hook, REASON_CUT);
    return 0;
}

/* Fragment a packet that exceeds the MTU, if that is allowed. REASON_NONE: done. */
INLINE enum reason fragment_packet(struct __sk_buff *skb, const struct arrival *arrival, struct packet *packet,
                                   const struct translation *entry) {
    struct scratch *scratch = this_scratch();

    if (!scratch || !may_fragment(skb, packet))
        return REASON_MTU;
    if (begin_cut(skb, packet, scratch))
        return REASON_REWRITE_FAILED;
    if (packet->kind == PACKET_FIRST_FRAGMENT && remember_fragment(packet, arrival->now, arrival->hook))
        return give_up_flow(packet, entry, arrival->now) ? REASON_LEFT_FLOW : REASON_REWRITE_FAILED;
    return cut(skb, packet, scratch, arrival->hook) ? REASON_REWRITE_FAILED : REASON_NONE;
}

#endif
