/* From a socket buffer to struct packet. */
#ifndef HOTPLANE_SKB_H
#define HOTPLANE_SKB_H

#include "extension.h"

enum socket_buffer {
    TO_ANOTHER_HOST = 3, /* PACKET_OTHERHOST */
    VLAN_NUMBER = 0xfff, /* mask of vlan_tci; 0 = a priority tag, which belongs to no VLAN (IEEE 802.1Q) */
};

/* Whether a frame belongs to a VLAN: it concerns the VLAN's own device, if the node has one, which has programs of its
 * own. Tags inside the packet are those below the first one. */
INLINE int of_a_vlan(const struct __sk_buff *skb, const struct packet *packet) {
    return (skb->vlan_present && (skb->vlan_tci & VLAN_NUMBER)) || packet->tagged;
}

/* Parse what lies in the linear part; fetch more only when that was not enough. Options and extension headers are not
 * read, see read_on(). */
INLINE enum reason read_packet(struct __sk_buff *skb, struct packet *packet) {
    enum reason reason = REASON_MALFORMED;
    int attempt;

#pragma clang loop unroll(disable)
    for (attempt = 0; attempt < 2; attempt++) {
        __u32 wanted = skb->len < PARSE_BYTES ? skb->len : PARSE_BYTES;

        if (attempt && (skb->data_end - skb->data >= wanted || bpf_skb_pull_data(skb, wanted)))
            break;
        __builtin_memset(packet, 0, sizeof(*packet));
        reason = parse((void *)(long)skb->data, (void *)(long)skb->data_end, skb->len, !!skb->gso_size, packet);
        if (likely(reason != REASON_MALFORMED))
            break;
    }
    return reason;
}

/* Go on where read_packet() stopped for this reason. */
INLINE enum reason read_on(struct __sk_buff *skb, struct packet *packet, enum reason reason) {
    return unlikely(reason == REASON_IPV6_EXTENSION || reason == REASON_IP_OPTIONS) ? read_behind(skb, packet) : reason;
}

/* Bytes of the largest packet that an aggregate will be cut into. */
INLINE __u32 packet_size(struct __sk_buff *skb, const struct packet *packet) {
    if (!skb->gso_size)
        return packet->size;
    return packet->l4 - packet->l3 + packet->transport_size + skb->gso_size;
}

#endif
