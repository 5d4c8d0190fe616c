/* What is behind IPv4 options and IPv6 extension headers, in packets and in what ICMP errors quote. tc reads them; XDP
 * leaves such packets to it. As connection tracking does (ipv6_skip_exthdr), headers are passed over whatever they say:
 * a packet with a routing header belongs to the flow of the address that it is on its way to, and whether it may go
 * on from there is for that host to say (RFC 5095 of type 0, RFC 8754 of type 4). */
#ifndef HOTPLANE_EXTENSION_H
#define HOTPLANE_EXTENSION_H

#include "parse.h"
#include "rewrite.h"

enum extension_limits {
    EXTENSIONS = 8,        /* headers of a packet: each kind once, and destination options twice (RFC 8200, 4.1) */
    EXTENSION_BYTES = 576, /* that are fetched: FAR_OFFSETS, a TCP header with options */
};

/* How every extension header begins (RFC 8200, RFC 4302). */
struct extension {
    __u8 next;
    __u8 size; /* in units of 8 bytes, less the first; of AH in units of 4, less the first two */
    __u8 content[6];
};

/* Take in a fragment header of the packet itself or, of an ICMP error, of what that quotes. */
INLINE enum reason read_fragment(const struct fragment_header *header, struct packet *packet) {
    __u16 offset = to_be16(header->offset);

    if (packet->kind == PACKET_ICMP_ERROR)
        return offset & 0xfff8 ? REASON_ICMP_UNRELATED : REASON_NONE;
    packet->identification = header->identification;
    packet->kind = offset & 0xfff8 ? PACKET_LATER_FRAGMENT : offset & 1 ? PACKET_FIRST_FRAGMENT : PACKET_WHOLE;
    return REASON_NONE;
}

/* Pass over extension headers. `at`, `next`: where the first one is, and its kind; afterwards those of what is behind
 * them, or behind a later fragment's header. They lie in `packet`, so that to the verifier each turn is like the first.
 * REASON_IPV6_EXTENSION: there are more than are read. */
INLINE enum reason pass_extensions(void *data, void *end, struct packet *packet, __u32 *at, __u8 *next) {
    int number;

#pragma clang loop unroll(disable)
    for (number = 0; number < EXTENSIONS; number++) {
        struct extension *header;
        __u32 size, kind;

        barrier();
        kind = *next;
        if (!is_extension(kind))
            return REASON_NONE;
        if (*at > FAR_OFFSETS)
            return REASON_IPV6_EXTENSION;
        header = data + (*at & FAR_OFFSETS);
        if ((void *)(header + 1) > end)
            return REASON_MALFORMED;
        size = kind == IPPROTO_AH ? (header->size + 2) * 4 : (header->size + 1) * 8;
        if (kind == IPPROTO_FRAGMENT) {
            size = sizeof(struct fragment_header);
            if (read_fragment((void *)header, packet) != REASON_NONE)
                return REASON_ICMP_UNRELATED;
        } else if (packet->kind != PACKET_ICMP_ERROR) {
            packet->extended = EXTENDED;
        }
        *next = header->next;
        *at += size;
        if (packet->kind == PACKET_LATER_FRAGMENT)
            return REASON_NONE;
    }
    barrier();
    return is_extension(*next) ? REASON_IPV6_EXTENSION : REASON_NONE;
}

/* Where IPv4 options end. */
INLINE enum reason pass_options(void *data, void *end, struct packet *packet) {
    struct iphdr *ip = data + (packet->l3 & L3_OFFSETS);
    __u32 offset;

    if ((void *)(ip + 1) > end)
        return REASON_MALFORMED;
    packet->l4 = packet->l3 + ip->ihl * 4;
    if (ip->ihl != 5)
        packet->extended = EXTENDED;
    offset = to_be16(ip->frag_off);
    packet->identification = to_be32(to_be16(ip->id));
    if (offset & IPV4_OFFSET)
        packet->kind = PACKET_LATER_FRAGMENT;
    else if (offset & IPV4_MORE_FRAGMENTS)
        packet->kind = PACKET_FIRST_FRAGMENT;
    return REASON_NONE;
}

/* Find the transport header of the packet itself. */
INLINE enum reason find_transport(void *data, void *end, struct packet *packet) {
    struct ipv6hdr *ip = data + (packet->l3 & L3_OFFSETS);

    packet->kind = PACKET_WHOLE;
    if (packet->ipv4)
        return pass_options(data, end, packet);
    if ((void *)(ip + 1) > end)
        return REASON_MALFORMED;
    packet->protocol = ip->nexthdr;
    packet->l4 = packet->l3 + sizeof(*ip);
    return pass_extensions(data, end, packet, &packet->l4, &packet->protocol);
}

/* A later fragment's data may begin with an extension header: then only the first one knows the protocol. */
INLINE enum reason find_protocol(struct packet *packet) {
    if (!packet->ipv4 && is_extension(packet->protocol)) {
        packet->extended = EXTENDED_ANY_PROTOCOL;
        packet->protocol = packet->tuple.protocol = IPPROTO_UDP;
    }
    return packet->protocol == IPPROTO_TCP || packet->protocol == IPPROTO_UDP ? REASON_NONE : REASON_PROTOCOL;
}

/* Read what an ICMP error quotes, wherever it begins. */
INLINE enum reason read_quoted(void *data, void *end, struct packet *packet) {
    void *header = data + (packet->l4 & FAR_OFFSETS);
    struct iphdr *quoted = header + sizeof(struct icmp_header);
    enum reason reason = packet->ipv4 ? parse_quoted_ipv4(header, end, packet) : parse_quoted_ipv6(header, end, packet);

    reason = hide_reason(packet, reason);
    if (reason == REASON_IP_OPTIONS) {
        if ((void *)(quoted + 1) > end)
            return REASON_MALFORMED;
        if (quoted->ihl < 5)
            return REASON_MALFORMED;
        packet->quoted_l4 = packet->l4 + sizeof(struct icmp_header) + quoted->ihl * 4;
    } else if (reason == REASON_IPV6_EXTENSION) {
        reason = hide_reason(packet, pass_extensions(data, end, packet, &packet->quoted_l4, &packet->tuple.protocol));
        if (reason != REASON_NONE)
            return reason;
    } else if (reason != REASON_NONE) {
        return reason;
    }
    if (packet->quoted_l4 > FAR_OFFSETS)
        return REASON_IPV6_EXTENSION;
    return parse_quoted_ports(data + (packet->quoted_l4 & FAR_OFFSETS), end, packet);
}

/* Go on with a packet where parse() stopped, at options or an extension header. REASON_MALFORMED, REASON_PROTOCOL and
 * the like: as parse(). */
INLINE enum reason read_behind(struct __sk_buff *skb, struct packet *packet) {
    __u32 wanted = skb->len < EXTENSION_BYTES ? skb->len : EXTENSION_BYTES;
    void *data, *end;
    enum reason reason;

    if (bpf_skb_pull_data(skb, wanted))
        return REASON_MALFORMED;
    data = (void *)(long)skb->data;
    end = (void *)(long)skb->data_end;
    reason = hide_reason(packet, find_transport(data, end, packet));
    if (reason != REASON_NONE)
        return reason;
    packet->tuple.protocol = packet->protocol;
    if (packet->l4 > FAR_OFFSETS)
        return REASON_IPV6_EXTENSION;
    if (packet->kind == PACKET_LATER_FRAGMENT)
        return find_protocol(packet);
    if (packet->kind == PACKET_WHOLE && packet->protocol == (packet->ipv4 ? IPPROTO_ICMP : IPPROTO_ICMPV6))
        return read_quoted(data, end, packet);
    return parse_transport(data + (packet->l4 & FAR_OFFSETS), end, packet);
}

#endif
