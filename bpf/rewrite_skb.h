/* Translating a packet in a socket buffer. The kernel's helpers know what direct access does not: whether a checksum
 * is still to be filled in by the device (then it holds the sum of the pseudo header alone), and the device's sum over
 * a received packet. */
#ifndef HOTPLANE_REWRITE_SKB_H
#define HOTPLANE_REWRITE_SKB_H

#include <linux/pkt_cls.h>

#include "extension.h"
#include "rewrite.h"

/* The device's sum covers an IPv6 header, whose change nothing balances, so the writer corrects it
 * (BPF_F_RECOMPUTE_CSUM); in IPv4 the header's own checksum does. */
INLINE long rewrite_ip_skb(struct __sk_buff *skb, const struct packet *packet, const struct translation *to,
                           __u64 addresses, int hop) {
    __u8 hops = packet->hops - 1;

    if (packet->ipv4) {
        __be32 both[2] = {to->source.word[3], to->destination.word[3]};

        if (hop) {
            addresses += difference16(to_be16(packet->hops << 8), to_be16(hops << 8));
            if (bpf_skb_store_bytes(skb, packet->l3 + 8, &hops, 1, 0))
                return -1;
        }
        return bpf_skb_store_bytes(skb, packet->l3 + 12, both, sizeof(both), 0) ||
               bpf_l3_csum_replace(skb, packet->l3 + 10, 0, fold32(addresses), 0);
    }
    if (hop && bpf_skb_store_bytes(skb, packet->l3 + 7, &hops, 1, BPF_F_RECOMPUTE_CSUM))
        return -1;
    return bpf_skb_store_bytes(skb, packet->l3 + 8, (void *)&to->source, 32, BPF_F_RECOMPUTE_CSUM);
}

INLINE long rewrite_skb(struct __sk_buff *skb, const struct packet *packet, const struct translation *to, int hop) {
    int tcp = packet->protocol == IPPROTO_TCP;
    __u32 check = packet->l4 + (tcp ? TCP_CHECK : UDP_CHECK);
    __u64 flags = tcp ? 0 : BPF_F_MARK_MANGLED_0;
    struct changes changes;
    __be16 ports[2] = {to->source_port, to->destination_port};

    describe_changes(packet, to, &changes);
    if (rewrite_ip_skb(skb, packet, to, changes.addresses, hop))
        return -1;
    if (packet->kind == PACKET_LATER_FRAGMENT)
        return 0;
    return bpf_l4_csum_replace(skb, check, 0, fold32(changes.addresses), flags | BPF_F_PSEUDO_HDR) ||
           bpf_l4_csum_replace(skb, check, 0, fold32(changes.ports), flags) ||
           bpf_skb_store_bytes(skb, packet->l4, ports, sizeof(ports), 0);
}

/* Errors are small and carry finished checksums, whose sum over the whole packet the change leaves as it is. */
INLINE long rewrite_error_skb(struct __sk_buff *skb, const struct packet *packet, const struct translation *to,
                              int hop) {
    __u32 wanted = skb->len < EXTENSION_BYTES ? skb->len : EXTENSION_BYTES;

    if (bpf_skb_pull_data(skb, wanted))
        return -1;
    return rewrite_error((void *)(long)skb->data, (void *)(long)skb->data_end, packet, to, hop);
}

#endif
