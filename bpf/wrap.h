/* Putting a packet in a socket buffer into the tunnel, and finding its way to the other node. */
#ifndef HOTPLANE_WRAP_H
#define HOTPLANE_WRAP_H

#include "redirect.h"
#include "rewrite_skb.h"
#include "tunnel.h"

enum wrap_flags {
    INNER_ETHERNET = 14, /* bytes */
};

/* Where a packet goes in the tunnel. */
struct tunnel_hop {
    const struct address *from;
    const struct address *to;
    struct next_hop next;
    __u32 format;     /* enum tunnel_formats */
    __u32 mtu;        /* of the packet inside; known also with REASON_MTU */
    int by_neighbour; /* the stack's neighbour code sends it (send.h) */
    __u64 shrink;     /* an aggregate of TCP is to be cut into smaller packets than it was made of */
};

/* How a packet to a node is wrapped. IP in IP is judged by what is inside, of which only plain headers are read, so not
 * packets with others, nor ICMP errors, which may quote such. Of an aggregate of datagrams the kernel counts up the
 * outer identification, by which each of them says its endpoint. */
INLINE __u32 format_for(const struct __sk_buff *skb, const struct packet *packet, const struct tunnel *to) {
    __u32 format = to->format;
    int plain =
        !packet->extended && packet->kind != PACKET_ICMP_ERROR && !(skb->gso_size && packet->protocol == IPPROTO_UDP);

    return format == FORMAT_IPIP && unlikely(!plain) ? FORMAT_VXLAN : format;
}

/* Look up the way to the other node. REASON_NONE, REASON_MTU: the packet, or the largest one of an aggregate, is too
 * big, or REASON_FIB_MISS. An aggregate of TCP only has to fit without the tunnel: it is cut smaller on its way. */
INLINE enum reason find_tunnel_hop(struct __sk_buff *skb, const struct packet *packet, const struct address *from,
                                   const struct tunnel *to, struct tunnel_hop *hop) {
    int elastic = skb->gso_size && packet->protocol == IPPROTO_TCP;
    __u32 format = format_for(skb, packet, to), size = packet_size(skb, packet),
          overhead = tunnel_overhead(packet, format);
    struct bpf_fib_lookup *fib = &hop->next.fib;
    long result = find_route(skb, packet, from, &to->address, skb->ifindex, elastic ? size : size + overhead, 0, fib);

    hop->from = from;
    hop->to = &to->address;
    hop->format = format;
    hop->by_neighbour = result != BPF_FIB_LKUP_RET_SUCCESS || !(bpf_get_prandom_u32() & NEIGHBOUR_PROBE);
    hop->mtu = fib->tot_len - overhead;
    hop->shrink = elastic && size > hop->mtu;
    return why_no_route(result);
}

/* Make room for the outer headers, and have the kernel know what they are: it cuts aggregates by that. Before
 * Linux 5.13 it cannot be told that an Ethernet header is inside, which only matters to devices that cut aggregates. */
INLINE long grow(struct __sk_buff *skb, const struct packet *packet, __u64 shrink, __u32 format) {
    __u64 flags = format == FORMAT_IPIP ? 0 : BPF_F_ADJ_ROOM_ENCAP_L4_UDP,
          ethernet = BPF_F_ADJ_ROOM_ENCAP_L2(INNER_ETHERNET);
    int overhead = tunnel_overhead(packet, format);

    flags |= packet->ipv4 ? BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 : BPF_F_ADJ_ROOM_ENCAP_L3_IPV6;
    if (!shrink)
        flags |= BPF_F_ADJ_ROOM_FIXED_GSO;
    if (format != FORMAT_VXLAN)
        return bpf_skb_adjust_room(skb, overhead, BPF_ADJ_ROOM_MAC, flags);
    flags |= ethernet;
    return bpf_skb_adjust_room(skb, overhead, BPF_ADJ_ROOM_MAC, flags | BPF_F_ADJ_ROOM_ENCAP_L2_ETH) &&
           bpf_skb_adjust_room(skb, overhead, BPF_ADJ_ROOM_MAC, flags);
}

/* Write what follows the outer IP header. Returns 0, or negative. */
INLINE long store_tunnel_header(struct __sk_buff *skb, const struct node *node, const struct packet *packet,
                                const struct tunnel_hop *hop, __be16 length, __u32 endpoint, __u8 kind) {
    __be16 port = tunnel_source_port(&packet->tuple);
    __u32 at = packet->l3 + ip_header_size(packet);
    struct tunnel_header header;

    if (hop->format == FORMAT_IPIP)
        return 0;
    if (hop->format == FORMAT_GENEVE) {
        write_tunnel_header(&header, node, port, length, endpoint, kind, packet->ipv4, FORMAT_GENEVE);
        return bpf_skb_store_bytes(skb, at, &header, GENEVE_HEADERS, BPF_F_RECOMPUTE_CSUM);
    }
    write_tunnel_header(&header, node, port, length, endpoint, kind, packet->ipv4, FORMAT_VXLAN);
    return bpf_skb_store_bytes(skb, at, &header, VXLAN_HEADERS, BPF_F_RECOMPUTE_CSUM);
}

/* Write the outer IP header, which `size` bytes follow. Returns 0, or negative. */
INLINE long store_tunnel_ip(struct __sk_buff *skb, const struct packet *packet, const struct tunnel_hop *hop,
                            __u32 size, __u16 mark) {
    struct ipv6hdr ipv6;
    struct iphdr ipv4;
    __u16 sum;

    if (packet->ipv4) {
        size += sizeof(ipv4);
        sum = tunnel_sum(hop->from, hop->to);
        if (hop->format == FORMAT_IPIP)
            write_tunnel_ipv4(&ipv4, hop->from, hop->to, length_field(size), sum, mark, FORMAT_IPIP);
        else
            write_tunnel_ipv4(&ipv4, hop->from, hop->to, length_field(size), sum, 0, FORMAT_VXLAN);
        return bpf_skb_store_bytes(skb, packet->l3, &ipv4, sizeof(ipv4), BPF_F_RECOMPUTE_CSUM);
    }
    if (hop->format == FORMAT_IPIP)
        write_tunnel_ipv6(&ipv6, hop->from, hop->to, length_field(size), mark, FORMAT_IPIP);
    else
        write_tunnel_ipv6(&ipv6, hop->from, hop->to, length_field(size), 0, FORMAT_VXLAN);
    return bpf_skb_store_bytes(skb, packet->l3, &ipv6, sizeof(ipv6), BPF_F_RECOMPUTE_CSUM);
}

/* Put the packet into the tunnel. Returns 0, or negative: it is of no use any more. */
INLINE long wrap(struct __sk_buff *skb, const struct node *node, const struct packet *packet,
                 const struct tunnel_hop *hop, __u32 endpoint, __u8 kind) {
    __u32 size = skb->len - packet->l3 + tunnel_headers(hop->format);
    __be16 length = length_field(size);

    if ((hop->by_neighbour && forget_sum(skb)) || /* not possible any more afterwards */
        grow(skb, packet, hop->shrink, hop->format) ||
        store_tunnel_header(skb, node, packet, hop, length, endpoint, kind))
        return -1;
    return store_tunnel_ip(skb, packet, hop, size, mark_of(kind, endpoint));
}

/* Send a packet that is in the tunnel. `leaving`: it is on its way out by the device at hand, where it goes on if that
 * is its device. */
INLINE long send_wrapped(struct __sk_buff *skb, const struct tunnel_hop *hop, int leaving) {
    __u32 ifindex = hop->next.fib.ifindex;

    if (remove_tag(skb, ifindex))
        return TC_ACT_SHOT;
    if (device_flags(ifindex) & DEVICE_RAW_IP) /* a tunnel to many looks for its next hop in a route */
        return redirect_neighbour(ifindex, 0, 0, 0);
    if (hop->by_neighbour)
        return redirect_by_neighbour(&hop->next);
    if (store_macs(skb, &hop->next.fib))
        return TC_ACT_SHOT;
    return leaving && ifindex == skb->ifindex ? TC_ACT_UNSPEC : bpf_redirect(ifindex, 0);
}

/* One hop less. Returns 0, or negative. */
INLINE long lower_hops(struct __sk_buff *skb, const struct packet *packet) {
    __u8 hops = packet->hops - 1;

    if (!packet->ipv4)
        return bpf_skb_store_bytes(skb, packet->l3 + 7, &hops, 1, BPF_F_RECOMPUTE_CSUM);
    return bpf_skb_store_bytes(skb, packet->l3 + 8, &hops, 1, 0) ||
           bpf_l3_csum_replace(skb, packet->l3 + 10, to_be16(packet->hops << 8), to_be16(hops << 8), 2);
}

#endif
