/* Translation of a packet in place by direct access, for XDP, and for ICMP errors in tc. Checksums are updated
 * incrementally; each write is preceded by a bounds check. */
#ifndef HOTPLANE_REWRITE_H
#define HOTPLANE_REWRITE_H

#include "checksum.h"
#include "packet.h"

enum rewrite_limits {
    L4_OFFSETS = 127,
    FAR_OFFSETS = 511, /* of headers behind options and extension headers */
    TCP_CHECK = 16,    /* offset of the checksum in each header */
    UDP_CHECK = 6,
};

/* Checksum differences of a translation. */
struct changes {
    __u64 addresses;
    __u64 ports;
};

INLINE void describe_changes(const struct packet *packet, const struct translation *to, struct changes *changes) {
    const struct tuple *from = &packet->tuple;

    changes->addresses = address_difference(&from->source, &to->source, packet->ipv4) +
                         address_difference(&from->destination, &to->destination, packet->ipv4);
    changes->ports = difference((__u32)from->source_port << 16 | from->destination_port,
                                (__u32)to->source_port << 16 | to->destination_port);
}

/* True if the checksum was left to offload. Packets of this machine arrive so over a veth, with the pseudo-header sum
 * in the field; only the socket buffer records that (CHECKSUM_PARTIAL), which programs cannot read. `length`: of
 * transport header and payload. */
INLINE int unfinished(const struct tuple *tuple, int ipv4, __u32 length, __be16 check) {
    __u64 sum = to_be16(tuple->protocol) + to_be16(length);

    sum += (__u64)tuple->source.word[3] + tuple->destination.word[3];
    if (!ipv4)
        sum += (__u64)tuple->source.word[0] + tuple->source.word[1] + tuple->source.word[2] +
               tuple->destination.word[0] + tuple->destination.word[1] + tuple->destination.word[2];
    return check == fold16(sum);
}

/* UDP over IPv4 may go without checksum (0), and a computed 0 is sent as all ones (RFC 768). */
INLINE void adjust_udp(__be16 *check, __u64 sum) {
    if (!*check)
        return;
    *check = adjusted(*check, sum);
    if (!*check)
        *check = 0xffff;
}

INLINE __u64 difference16(__be16 old, __be16 new) {
    return (__u64)(__u16)~old + new;
}

INLINE void write_ipv6(struct in6_addr *to, const struct address *from) {
    to->s6_addr32[0] = from->word[0];
    to->s6_addr32[1] = from->word[1];
    to->s6_addr32[2] = from->word[2];
    to->s6_addr32[3] = from->word[3];
}

/* What one hop less adds to the sum of an IPv4 header: the TTL is the high half of its word. */
INLINE __u16 one_hop_less(void) {
    return ~to_be16(1 << 8);
}

INLINE void lower_ttl(struct iphdr *ip) {
    ip->check = adjusted16(ip->check, one_hop_less());
    ip->ttl -= 1;
}

/* New addresses of an IP header; `hop`: it is sent on from here. Returns 0, or -1 when out of reach. */
INLINE int rewrite_ip(void *data, void *end, const struct packet *packet, const struct translation *to, __u64 addresses,
                      int hop) {
    void *header = data + (packet->l3 & L3_OFFSETS);

    if (packet->ipv4) {
        struct iphdr *ip = header;

        if ((void *)(ip + 1) > end)
            return -1;
        ip->saddr = to->source.word[3];
        ip->daddr = to->destination.word[3];
        ip->check = adjusted(ip->check, addresses);
        if (hop)
            lower_ttl(ip);
    } else {
        struct ipv6hdr *ip = header;

        if ((void *)(ip + 1) > end)
            return -1;
        write_ipv6(&ip->saddr, &to->source);
        write_ipv6(&ip->daddr, &to->destination);
        if (hop)
            ip->hop_limit -= 1;
    }
    return 0;
}

/* Translate an unfragmented TCP or UDP packet. */
INLINE int rewrite_packet(void *data, void *end, const struct packet *packet, const struct translation *to, int hop) {
    void *header = data + (packet->l4 & L4_OFFSETS);
    struct changes changes;

    describe_changes(packet, to, &changes);
    if (rewrite_ip(data, end, packet, to, changes.addresses, hop))
        return -1;
    if (packet->protocol == IPPROTO_TCP) {
        struct tcphdr *tcp = header;

        if ((void *)(tcp + 1) > end)
            return -1;
        tcp->source = to->source_port;
        tcp->dest = to->destination_port;
        tcp->check = adjusted(tcp->check, changes.addresses + changes.ports);
    } else {
        struct udphdr *udp = header;

        if ((void *)(udp + 1) > end)
            return -1;
        udp->source = to->source_port;
        udp->dest = to->destination_port;
        adjust_udp(&udp->check, changes.addresses + changes.ports);
    }
    return 0;
}

/* The ports of a quoted packet, and its checksum where that was quoted too. Returns what the quoted transport header
 * adds to a sum over it. */
INLINE __u64 rewrite_quoted_transport(void *header, void *end, const struct packet *packet,
                                      const struct translation *to, const struct changes *changes) {
    __be16 *ports = header;
    __be16 *check = header + (packet->tuple.protocol == IPPROTO_TCP ? TCP_CHECK : UDP_CHECK);
    __u32 quoted = packet->size - (packet->quoted_l4 - packet->l3); /* bytes of it that are there */
    __u64 sum = changes->ports;
    __be16 old;

    if ((void *)(ports + 4) > end)
        return 0;
    ports[0] = to->destination_port;
    ports[1] = to->source_port;
    if ((void *)(check + 1) > end)
        return sum;
    old = *check;
    if (packet->tuple.protocol == IPPROTO_UDP)
        adjust_udp(check, changes->addresses + changes->ports);
    else if (quoted >= TCP_CHECK + sizeof(*check))
        *check = adjusted(old, changes->addresses + changes->ports);
    return sum + difference16(old, *check);
}

INLINE int rewrite_error_ipv4(void *data, void *end, const struct packet *packet, const struct translation *to,
                              const struct changes *changes, int hop) {
    struct iphdr *ip = data + (packet->l3 & L3_OFFSETS);
    struct icmp_header *icmp = data + (packet->l4 & FAR_OFFSETS);
    struct iphdr *quoted = (void *)(icmp + 1);
    void *transport = data + (packet->quoted_l4 & FAR_OFFSETS);
    __be32 source, destination = to->destination.word[3];
    __be16 old;
    __u64 sum;

    if ((void *)(ip + 1) > end || (void *)(quoted + 1) > end || transport + 8 > end)
        return -1;
    source = same_address(&packet->tuple.source, &to->source) ? ip->saddr : to->source.word[3];
    ip->check = adjusted(ip->check, difference(ip->saddr, source) + difference(ip->daddr, destination));
    ip->saddr = source;
    ip->daddr = destination;
    if (hop)
        lower_ttl(ip);
    old = quoted->check;
    quoted->check = adjusted(old, changes->addresses);
    sum = changes->addresses + difference16(old, quoted->check);
    quoted->saddr = to->destination.word[3];
    quoted->daddr = to->source.word[3];
    sum += rewrite_quoted_transport(transport, end, packet, to, changes);
    icmp->check = adjusted(icmp->check, sum);
    return 0;
}

INLINE int rewrite_error_ipv6(void *data, void *end, const struct packet *packet, const struct translation *to,
                              const struct changes *changes, int hop) {
    struct ipv6hdr *ip = data + (packet->l3 & L3_OFFSETS);
    struct icmp_header *icmp = data + (packet->l4 & FAR_OFFSETS);
    struct ipv6hdr *quoted = (void *)(icmp + 1);
    void *transport = data + (packet->quoted_l4 & FAR_OFFSETS);
    __u64 sum = changes->addresses;

    if ((void *)(ip + 1) > end || (void *)(quoted + 1) > end || transport + 8 > end)
        return -1;
    if (!same_address(&packet->tuple.source, &to->source)) {
        struct address old;

        copy_ipv6(&old, &ip->saddr);
        sum += address_difference(&old, &to->source, 0);
        write_ipv6(&ip->saddr, &to->source);
    }
    sum += address_difference(&packet->tuple.destination, &to->destination, 0);
    write_ipv6(&ip->daddr, &to->destination);
    if (hop)
        ip->hop_limit -= 1;
    write_ipv6(&quoted->saddr, &to->destination);
    write_ipv6(&quoted->daddr, &to->source);
    sum += rewrite_quoted_transport(transport, end, packet, to, changes);
    icmp->check = adjusted(icmp->check, sum);
    return 0;
}

/* An ICMP error: outer addresses, the quoted packet turned round, and the ICMP checksum over all that. The sender's
 * address is hidden where the flow's source is, as connection tracking does it: an error from or behind the backend
 * comes from the frontend. */
INLINE int rewrite_error(void *data, void *end, const struct packet *packet, const struct translation *to, int hop) {
    struct changes changes;

    describe_changes(packet, to, &changes);
    if (packet->ipv4)
        return rewrite_error_ipv4(data, end, packet, to, &changes, hop);
    return rewrite_error_ipv6(data, end, packet, to, &changes, hop);
}

#endif
