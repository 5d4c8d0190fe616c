/* Answering a packet that is too big for its way out, as a router does (RFC 1191, RFC 8201). The stack cannot do it
 * for packets that leave by redirect. The packet at hand is cut down to what is quoted and becomes the error; its
 * receiver becomes the sender, so a client hears from the frontend that it knows. */
#ifndef HOTPLANE_TOO_BIG_H
#define HOTPLANE_TOO_BIG_H

#include "rewrite_skb.h"

enum too_big_limits {
    QUOTED_BYTES = 128, /* packets that are too big have more; enough for IPv6, extension and TCP headers */
    FRAGMENTATION_NEEDED = 4,
    ICMPV6_TOO_BIG = 2,
    ANSWER_HOPS = 64,
};

INLINE void swap_macs(struct ethhdr *ethernet) {
    __u8 other[ETH_ALEN];

    __builtin_memcpy(other, ethernet->h_dest, ETH_ALEN);
    __builtin_memcpy(ethernet->h_dest, ethernet->h_source, ETH_ALEN);
    __builtin_memcpy(ethernet->h_source, other, ETH_ALEN);
}

INLINE int write_too_big_ipv4(void *data, void *end, const struct packet *packet, __u16 mtu) {
    struct iphdr *ip = data + (packet->l3 & L3_OFFSETS);
    struct icmp_header *icmp = (void *)(ip + 1);
    struct iphdr *quoted = (void *)(icmp + 1);

    if ((void *)quoted + QUOTED_BYTES > end)
        return -1;
    __builtin_memset(ip, 0, sizeof(*ip) + sizeof(*icmp));
    ip->version = 4;
    ip->ihl = 5;
    ip->tot_len = to_be16(sizeof(*ip) + sizeof(*icmp) + QUOTED_BYTES);
    ip->ttl = ANSWER_HOPS;
    ip->protocol = IPPROTO_ICMP;
    ip->saddr = quoted->daddr;
    ip->daddr = quoted->saddr;
    ip->check = ~fold16((__u32)bpf_csum_diff(0, 0, (void *)ip, sizeof(*ip), 0));
    icmp->type = ICMP_UNREACHABLE;
    icmp->code = FRAGMENTATION_NEEDED;
    icmp->mtu = to_be16(mtu);
    icmp->check = ~fold16((__u32)bpf_csum_diff(0, 0, (void *)icmp, sizeof(*icmp) + QUOTED_BYTES, 0));
    return 0;
}

INLINE int write_too_big_ipv6(void *data, void *end, const struct packet *packet, __u16 mtu) {
    struct ipv6hdr *ip = data + (packet->l3 & L3_OFFSETS);
    struct icmp_header *icmp = (void *)(ip + 1);
    struct ipv6hdr *quoted = (void *)(icmp + 1);
    __u32 length = sizeof(*icmp) + QUOTED_BYTES;
    __u64 sum;

    if ((void *)quoted + QUOTED_BYTES > end)
        return -1;
    __builtin_memset(ip, 0, sizeof(*ip) + sizeof(*icmp));
    ip->version = 6;
    ip->payload_len = to_be16(length);
    ip->hop_limit = ANSWER_HOPS;
    ip->nexthdr = IPPROTO_ICMPV6;
    ip->saddr = quoted->daddr;
    ip->daddr = quoted->saddr;
    icmp->type = ICMPV6_TOO_BIG;
    icmp->mtu = to_be16(mtu);
    sum = (__u32)bpf_csum_diff(0, 0, (void *)&ip->saddr, 2 * sizeof(ip->saddr), 0);
    sum += to_be32(length) + (__u64)to_be32(IPPROTO_ICMPV6);
    sum += (__u32)bpf_csum_diff(0, 0, (void *)icmp, sizeof(*icmp) + QUOTED_BYTES, 0);
    icmp->check = ~fold16(sum);
    return 0;
}

/* Turn the packet into the error, addressed back to who sent the frame if `swap`. Returns 0, or -1: it is damaged. */
INLINE int make_too_big(struct __sk_buff *skb, const struct packet *packet, __u16 mtu, int swap) {
    __u32 room = ip_header_size(packet) + sizeof(struct icmp_header);
    void *data, *end;

    if (bpf_skb_change_tail(skb, packet->l3 + QUOTED_BYTES, 0) || bpf_skb_adjust_room(skb, room, BPF_ADJ_ROOM_MAC, 0) ||
        bpf_skb_pull_data(skb, packet->l3 + room + QUOTED_BYTES))
        return -1;
    data = (void *)(long)skb->data;
    end = (void *)(long)skb->data_end;
    if (packet->ipv4 ? write_too_big_ipv4(data, end, packet, mtu) : write_too_big_ipv6(data, end, packet, mtu))
        return -1;
    if (swap && packet->l3 && data + sizeof(struct ethhdr) <= end)
        swap_macs(data);
    return 0;
}

/* Returns the verdict: the answer leaves where the packet came in. */
INLINE long answer_too_big(struct __sk_buff *skb, const struct packet *packet, __u16 mtu) {
    return make_too_big(skb, packet, mtu, 1) ? TC_ACT_SHOT : bpf_redirect(skb->ifindex, 0);
}

#endif
