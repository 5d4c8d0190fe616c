/* Putting a packet into the tunnel in XDP: room in front of it, one hop less, and the headers of tunnel.h. */
#ifndef HOTPLANE_ENCAPSULATE_H
#define HOTPLANE_ENCAPSULATE_H

#include "tunnel.h"

/* encapsulate() for a format that is a constant. */
INLINE int encapsulate_as(struct xdp_md *context, const struct node *node, const struct translation *entry,
                          const struct address *to, __u32 size, __be16 source_port, __u16 sum, int ipv4, __u32 format) {
    __u32 header_size = ipv4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);
    __u32 headers = tunnel_headers(format), overhead = header_size + headers;
    __u8 kind = entry->flags & FLOW_DSR ? TUNNEL_ASK_DSR : TUNNEL_ASK;
    __u16 mark = mark_of(kind, entry->endpoint);
    __be16 length = to_be16(size + headers);
    void *frame, *outer, *inner;

    if (bpf_xdp_adjust_head(context, -(int)overhead))
        return -1;
    frame = (void *)(long)context->data;
    outer = frame + sizeof(struct ethhdr);
    inner = outer + overhead;
    if (inner + header_size > (void *)(long)context->data_end) { /* which the verifier does not know to be impossible */
        bpf_xdp_adjust_head(context, overhead);
        return -1;
    }
    copy_macs(frame, entry->hop_destination);
    ((any_half *)frame)[ETH_ALEN] = to_be16(ipv4 ? ETH_P_IP : ETH_P_IPV6);
    if (format != FORMAT_IPIP)
        write_tunnel_header(outer + header_size, node, source_port, length, entry->endpoint, kind, ipv4, format);
    if (ipv4) {
        write_tunnel_ipv4(outer, &node->masquerade_ipv4, to, to_be16(size + overhead), sum, mark, format);
        lower_ttl(inner);
    } else {
        write_tunnel_ipv6(outer, &node->masquerade_ipv6, to, length, mark, format);
        ((struct ipv6hdr *)inner)->hop_limit -= 1;
    }
    return 0;
}

/* Put an untagged packet of `size` bytes, whose IP header is in reach, into the tunnel to a node, in the node's format.
 * `entry`: its flow's, whose next hop is known and whose MTU the packet was held against; `sum`: tunnel_sum(). Returns
 * 0, or negative: the packet is as it was, but whoever has pointers into it must read them again. */
INLINE int encapsulate(struct xdp_md *context, const struct node *node, const struct translation *entry,
                       const struct address *to, __u32 format, __u32 size, __be16 source_port, __u16 sum, int ipv4) {
    if (likely(format == FORMAT_VXLAN))
        return encapsulate_as(context, node, entry, to, size, source_port, sum, ipv4, FORMAT_VXLAN);
    if (format == FORMAT_GENEVE)
        return encapsulate_as(context, node, entry, to, size, source_port, sum, ipv4, FORMAT_GENEVE);
    return encapsulate_as(context, node, entry, to, size, source_port, sum, ipv4, FORMAT_IPIP);
}

#endif
