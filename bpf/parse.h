/* From bytes to struct packet. Every advance is checked against the end right beside it. REASON_MALFORMED also stands
 * for "not enough bytes in reach": the caller may fetch more and parse again. */
#ifndef HOTPLANE_PARSE_H
#define HOTPLANE_PARSE_H

#include "packet.h"

enum parse_limits {
    VLAN_TAGS = 2, /* in the packet itself; 802.1Q below 802.1ad */
    VLAN_TAG_SIZE = 4,
    PARSE_BYTES = 160, /* link layer, IPv6, fragment and ICMP headers, quoted IPv6 and TCP headers */
    TCP_OPTIONS = 10,  /* looked at: a SYN has five to eight */
    TCP_HEADER = 63,   /* mask: offsets within a TCP header of at most 60 bytes */
    TIMESTAMPS_SIZE = 10,
};

/* How every stack sends timestamps in a segment that has no other options: NOP, NOP, kind 8, length 10. */
#define TIMESTAMPS_ALONE 0x0101080a

#define IPV4_MORE_FRAGMENTS 0x2000
#define IPV4_DONT_FRAGMENT 0x4000
#define IPV4_OFFSET 0x1fff

/* Fragment header (RFC 8200, section 4.5). */
struct fragment_header {
    __u8 next;
    __u8 reserved;
    __be16 offset; /* in units of 8 bytes, 3 bits to the left; bit 0: more fragments */
    __be32 identification;
};

/* Whether a next header is an extension that TCP, UDP or ICMPv6 may stand behind: those that the kernel looks behind,
 * too (ipv6_skip_exthdr). */
INLINE int is_extension(__u8 next) {
    return next == IPPROTO_HOPOPTS || next == IPPROTO_ROUTING || next == IPPROTO_DSTOPTS || next == IPPROTO_FRAGMENT ||
           next == IPPROTO_AH;
}

/* Finds the IP header behind Ethernet and VLAN headers. Returns the Ethernet type, 0 when cut short. */
INLINE __be16 parse_ethernet(void *data, void *end, struct packet *packet) {
    struct ethhdr *ethernet = data;
    __be16 type;
    int tags;

    if ((void *)(ethernet + 1) > end)
        return 0;
    type = ethernet->h_proto;
    packet->mac[0] = ((__u16 *)data)[0];
    packet->mac[1] = ((__u16 *)data)[1];
    packet->mac[2] = ((__u16 *)data)[2];
    packet->l3 = sizeof(*ethernet);
#pragma unroll
    for (tags = 0; tags < VLAN_TAGS; tags++) {
        __be16 *tag = data + packet->l3;

        if (type != to_be16(ETH_P_8021Q) && type != to_be16(ETH_P_8021AD))
            break;
        if ((void *)(tag + 2) > end)
            return 0;
        type = tag[1];
        packet->l3 += VLAN_TAG_SIZE;
        packet->tagged = 1;
    }
    return type;
}

/* The sender's timestamp, where it is needed: in a SYN, whose options come in any order, and in segments that end a
 * connection, of which only the usual layout is read. */
INLINE void parse_timestamp(struct tcphdr *tcp, void *end, struct packet *packet) {
    __u32 offset = sizeof(*tcp), size = packet->transport_size;
    int number;

    if (!(packet->tcp_flags & TCP_SYN)) {
        __be32 *words = (void *)(tcp + 1);

        packet->timestamps = size == sizeof(*tcp) ? NO_TIMESTAMP : UNKNOWN_TIMESTAMP;
        if (size >= sizeof(*tcp) + 12 && (void *)(words + 2) <= end && words[0] == to_be32(TIMESTAMPS_ALONE)) {
            packet->timestamps = HAS_TIMESTAMP;
            packet->timestamp = to_be32(words[1]);
        }
        return;
    }
    packet->timestamps = NO_TIMESTAMP;
#pragma clang loop unroll(disable)
    for (number = 0; number < TCP_OPTIONS; number++) {
        __u8 *option;

        if (offset >= size)
            return;
        packet->timestamp = offset; /* read back, so that to the verifier it is any */
        barrier();
        offset = packet->timestamp & TCP_HEADER;
        option = (void *)tcp + offset;
        if ((void *)(option + TIMESTAMPS_SIZE) > end)
            break;
        if (option[0] == TCP_OPTION_END)
            return;
        if (option[0] == TCP_OPTION_TIMESTAMPS) {
            packet->timestamp = option[2] << 24 | option[3] << 16 | option[4] << 8 | option[5];
            packet->timestamps = HAS_TIMESTAMP;
            return;
        }
        offset += option[0] == TCP_OPTION_NOP ? 1 : option[1] > 1 ? option[1] & TCP_HEADER : TCP_HEADER;
    }
    packet->timestamps = offset + TIMESTAMPS_SIZE > size ? NO_TIMESTAMP : UNKNOWN_TIMESTAMP;
}

/* Ports, and TCP's flags, of the header that begins at packet->l4. Whole headers only: what is cut off cannot be
 * translated. */
INLINE enum reason parse_transport(void *header, void *end, struct packet *packet) {
    if (packet->protocol == IPPROTO_TCP) {
        struct tcphdr *tcp = header;

        if ((void *)(tcp + 1) > end || tcp->doff < 5)
            return REASON_MALFORMED;
        packet->transport_size = tcp->doff * 4;
        packet->tcp_flags = ((__u8 *)tcp)[13];
        packet->tuple.source_port = tcp->source;
        packet->tuple.destination_port = tcp->dest;
        packet->sequence = to_be32(tcp->seq);
        packet->acknowledged = to_be32(tcp->ack_seq);
        if (packet->size < packet->l4 - packet->l3 + tcp->doff * 4)
            return REASON_MALFORMED;
        parse_timestamp(tcp, end, packet);
        return REASON_NONE;
    }
    if (packet->protocol == IPPROTO_UDP) {
        struct udphdr *udp = header;

        if ((void *)(udp + 1) > end || packet->size < packet->l4 - packet->l3 + sizeof(*udp))
            return REASON_MALFORMED;
        packet->transport_size = sizeof(*udp);
        packet->tuple.source_port = udp->source;
        packet->tuple.destination_port = udp->dest;
        return REASON_NONE;
    }
    return REASON_PROTOCOL;
}

/* Ports of a quoted packet, whose transport header begins at packet->quoted_l4; eight bytes of it are all that may be
 * relied on (RFC 792). */
INLINE enum reason parse_quoted_ports(void *header, void *end, struct packet *packet) {
    __be16 *ports = header;

    if ((void *)(ports + 4) > end || packet->size < packet->quoted_l4 + 8 - packet->l3)
        return REASON_MALFORMED;
    if (packet->tuple.protocol != IPPROTO_TCP && packet->tuple.protocol != IPPROTO_UDP)
        return REASON_PROTOCOL;
    packet->tuple.destination_port = ports[0];
    packet->tuple.source_port = ports[1];
    return REASON_NONE;
}

INLINE enum reason parse_quoted_ipv4(void *header, void *end, struct packet *packet) {
    struct icmp_header *icmp = header;
    struct iphdr *quoted = (void *)(icmp + 1);
    __be32 receiver = packet->tuple.destination.word[3];

    if ((void *)(icmp + 1) > end)
        return REASON_MALFORMED;
    if (icmp->type != ICMP_UNREACHABLE && icmp->type != ICMP_TIME_EXCEEDED && icmp->type != ICMP_BAD_PARAMETER)
        return REASON_PROTOCOL;
    if ((void *)(quoted + 1) > end)
        return REASON_MALFORMED;
    if (quoted->version != 4 || quoted->saddr != receiver || (quoted->frag_off & to_be16(IPV4_OFFSET)))
        return REASON_ICMP_UNRELATED;
    packet->kind = PACKET_ICMP_ERROR;
    packet->quoted_l4 = packet->l4 + sizeof(*icmp) + sizeof(*quoted);
    packet->tuple.protocol = quoted->protocol;
    packet->tuple.source.word[3] = quoted->daddr;
    if (unlikely(quoted->ihl != 5))
        return REASON_IP_OPTIONS;
    return parse_quoted_ports(quoted + 1, end, packet);
}

INLINE enum reason parse_quoted_ipv6(void *header, void *end, struct packet *packet) {
    struct icmp_header *icmp = header;
    struct ipv6hdr *quoted = (void *)(icmp + 1);
    struct address sender;

    if ((void *)(icmp + 1) > end)
        return REASON_MALFORMED;
    if (icmp->type < ICMPV6_UNREACHABLE || icmp->type > ICMPV6_BAD_PARAMETER)
        return REASON_PROTOCOL;
    if ((void *)(quoted + 1) > end)
        return REASON_MALFORMED;
    copy_ipv6(&sender, &quoted->saddr);
    if (quoted->version != 6 || !same_address(&sender, &packet->tuple.destination))
        return REASON_ICMP_UNRELATED;
    packet->kind = PACKET_ICMP_ERROR;
    packet->quoted_l4 = packet->l4 + sizeof(*icmp) + sizeof(*quoted);
    packet->tuple.protocol = quoted->nexthdr;
    copy_ipv6(&packet->tuple.source, &quoted->daddr);
    if (is_extension(quoted->nexthdr))
        return REASON_IPV6_EXTENSION;
    return parse_quoted_ports(quoted + 1, end, packet);
}

/* `available`: bytes that follow the link-layer header. `aggregate`: many segments in one buffer, whose length may not
 * fit into the header's field. */
INLINE enum reason parse_ipv4(void *data, void *end, __u32 available, int aggregate, struct packet *packet) {
    struct iphdr *ip = data + packet->l3;
    __u32 offset;

    if ((void *)(ip + 1) > end || ip->version != 4 || ip->ihl < 5)
        return REASON_MALFORMED;
    packet->size = to_be16(ip->tot_len);
    if (!packet->size && aggregate)
        packet->size = available;
    if (packet->size < sizeof(*ip) || packet->size > available)
        return REASON_MALFORMED;
    packet->ipv4 = 1;
    packet->l4 = packet->l3 + sizeof(*ip);
    packet->hops = ip->ttl;
    packet->protocol = packet->tuple.protocol = ip->protocol;
    packet->keep_whole = !!(ip->frag_off & to_be16(IPV4_DONT_FRAGMENT));
    set_mapped(&packet->tuple.source, ip->saddr);
    set_mapped(&packet->tuple.destination, ip->daddr);
    if (unlikely(ip->ihl != 5))
        return REASON_IP_OPTIONS;
    offset = to_be16(ip->frag_off);
    if (unlikely(offset & (IPV4_MORE_FRAGMENTS | IPV4_OFFSET))) {
        packet->identification = to_be32(to_be16(ip->id));
        packet->kind = offset & IPV4_OFFSET ? PACKET_LATER_FRAGMENT : PACKET_FIRST_FRAGMENT;
        if (offset & IPV4_OFFSET)
            return ip->protocol == IPPROTO_TCP || ip->protocol == IPPROTO_UDP ? REASON_NONE : REASON_PROTOCOL;
        return parse_transport(data + packet->l4, end, packet);
    }
    if (unlikely(ip->protocol == IPPROTO_ICMP))
        return parse_quoted_ipv4(data + packet->l4, end, packet);
    return parse_transport(data + packet->l4, end, packet);
}

INLINE enum reason parse_ipv6_fragment(void *data, void *end, struct packet *packet) {
    struct fragment_header *fragment = data + packet->l4;
    __u16 offset;

    if ((void *)(fragment + 1) > end || packet->size < sizeof(struct ipv6hdr) + sizeof(*fragment))
        return REASON_MALFORMED;
    offset = to_be16(fragment->offset);
    packet->l4 += sizeof(*fragment);
    packet->protocol = packet->tuple.protocol = fragment->next;
    packet->identification = fragment->identification;
    if (fragment->next != IPPROTO_TCP && fragment->next != IPPROTO_UDP)
        return is_extension(fragment->next) ? REASON_IPV6_EXTENSION : REASON_PROTOCOL;
    if (offset & 0xfff8) {
        packet->kind = PACKET_LATER_FRAGMENT;
        return REASON_NONE;
    }
    if (offset & 1)
        packet->kind = PACKET_FIRST_FRAGMENT; /* else an atomic fragment (RFC 6946): whole */
    return parse_transport(data + packet->l4, end, packet);
}

INLINE enum reason parse_ipv6(void *data, void *end, __u32 available, int aggregate, struct packet *packet) {
    struct ipv6hdr *ip = data + packet->l3;

    if ((void *)(ip + 1) > end || ip->version != 6)
        return REASON_MALFORMED;
    packet->size = sizeof(*ip) + to_be16(ip->payload_len);
    if (!ip->payload_len && aggregate)
        packet->size = available;
    if (packet->size > available)
        return REASON_MALFORMED;
    packet->l4 = packet->l3 + sizeof(*ip);
    packet->hops = ip->hop_limit;
    packet->protocol = packet->tuple.protocol = ip->nexthdr;
    packet->keep_whole = 1;
    copy_ipv6(&packet->tuple.source, &ip->saddr);
    copy_ipv6(&packet->tuple.destination, &ip->daddr);
    if (is_ipv4(&packet->tuple.source) || is_ipv4(&packet->tuple.destination))
        return REASON_MALFORMED; /* a mapped address never appears on the wire (RFC 4291); in the maps it is IPv4 */
    switch (ip->nexthdr) {
    case IPPROTO_TCP:
    case IPPROTO_UDP:
        return parse_transport(data + packet->l4, end, packet);
    case IPPROTO_FRAGMENT:
        return parse_ipv6_fragment(data, end, packet);
    case IPPROTO_ICMPV6:
        return parse_quoted_ipv6(data + packet->l4, end, packet);
    default:
        return is_extension(ip->nexthdr) ? REASON_IPV6_EXTENSION : REASON_PROTOCOL;
    }
}

/* Parse from the IP header on, which is of this family and as far behind `data` as behind an Ethernet header. */
INLINE enum reason parse_inside(void *data, void *end, __u32 length, int aggregate, struct packet *packet, int ipv4) {
    packet->l3 = sizeof(struct ethhdr);
    return ipv4 ? parse_ipv4(data, end, length - packet->l3, aggregate, packet)
                : parse_ipv6(data, end, length - packet->l3, aggregate, packet);
}

/* Parse from the link layer on, or from IP on where the device has none (compiled with RAW_IP). */
INLINE enum reason parse(void *data, void *end, __u32 length, int aggregate, struct packet *packet) {
    __be16 type;

#ifdef RAW_IP
    __u8 *first = data;

    if ((void *)(first + 1) > end)
        return REASON_MALFORMED;
    packet->l3 = 0;
    type = *first >> 4 == 4 ? to_be16(ETH_P_IP) : *first >> 4 == 6 ? to_be16(ETH_P_IPV6) : 0;
#else
    type = parse_ethernet(data, end, packet);
    barrier();
    packet->l3 &= L3_OFFSETS; /* read back, so that to the verifier tags make no difference from here on */
#endif
    if (!type)
        return REASON_MALFORMED;
    if (type == to_be16(ETH_P_IP))
        return parse_ipv4(data, end, length - packet->l3, aggregate, packet);
    if (type == to_be16(ETH_P_IPV6))
        return parse_ipv6(data, end, length - packet->l3, aggregate, packet);
    return REASON_NOT_IP;
}

#endif
