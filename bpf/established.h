/* Fast path for the majority of packets: unfragmented, untagged TCP and UDP of an established flow that is redirected
 * to a known next hop. It looks up, rewrites and accounts such a packet in few steps. Everything else (closing
 * connections, idle entries, next hops due for a new look-up, watched flows) takes the general path, which gives the
 * same result. */
#ifndef HOTPLANE_ESTABLISHED_H
#define HOTPLANE_ESTABLISHED_H

#include "parse.h"
#include "rewrite.h"
#include "track.h"

enum established_limits {
    IDLE_NS = 1000000000, /* an entry used within this time has not expired: no lifetime is shorter */
};

/* Pointers into the current packet, and the key of its flow. */
struct fast_path_packet {
    struct tuple key;
    __be16 *ports; /* source and destination */
    __be16 *check; /* of the transport header */
    __u32 size;    /* bytes, including the IP header */
    __u32 ipv4;
    __u32 sequence_end; /* TCP: next sequence number; host order */
    __u32 acknowledged; /* TCP; host order */
};

INLINE int fast_path_parse_ipv4(void *data, void *end, struct fast_path_packet *packet) {
    struct iphdr *ip = data + sizeof(struct ethhdr);

    if ((void *)(ip + 1) > end || *(__u8 *)ip != 0x45 || (ip->frag_off & to_be16(IPV4_MORE_FRAGMENTS | IPV4_OFFSET)) ||
        ip->ttl <= 1)
        return 0;
    packet->size = to_be16(ip->tot_len);
    packet->ipv4 = 1;
    packet->ports = (void *)(ip + 1);
    set_mapped(&packet->key.source, ip->saddr);
    set_mapped(&packet->key.destination, ip->daddr);
    packet->key.protocol = ip->protocol;
    return packet->size >= sizeof(*ip) && packet->size <= end - (void *)ip;
}

INLINE int fast_path_parse_ipv6(void *data, void *end, struct fast_path_packet *packet) {
    struct ipv6hdr *ip = data + sizeof(struct ethhdr);

    if ((void *)(ip + 1) > end || ip->version != 6 || ip->hop_limit <= 1)
        return 0;
    packet->size = sizeof(*ip) + to_be16(ip->payload_len);
    packet->ipv4 = 0;
    packet->ports = (void *)(ip + 1);
    copy_ipv6(&packet->key.source, &ip->saddr);
    copy_ipv6(&packet->key.destination, &ip->daddr);
    packet->key.protocol = ip->nexthdr;
    return packet->size <= end - (void *)ip && !is_ipv4(&packet->key.source) && !is_ipv4(&packet->key.destination);
}

INLINE __u32 fast_path_payload_length(const struct fast_path_packet *packet) {
    return packet->size - (packet->ipv4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr));
}

/* True if the transport header is complete and, for TCP, carries ACK without SYN, FIN or RST. */
INLINE int fast_path_parse_transport(void *end, struct fast_path_packet *packet) {
    struct tcphdr *tcp = (void *)packet->ports;
    struct udphdr *udp = (void *)packet->ports;

    if ((void *)(udp + 1) > end)
        return 0;
    packet->key.source_port = udp->source;
    packet->key.destination_port = udp->dest;
    packet->check = &udp->check;
    if (packet->key.protocol == IPPROTO_UDP)
        return fast_path_payload_length(packet) >= sizeof(*udp);
    packet->check = &tcp->check;
    if (packet->key.protocol != IPPROTO_TCP || (void *)(tcp + 1) > end || tcp->doff < 5 ||
        fast_path_payload_length(packet) < tcp->doff * 4 ||
        (((__u8 *)tcp)[13] & (TCP_SYN | TCP_FIN | TCP_RST | TCP_ACK)) != TCP_ACK)
        return 0;
    packet->sequence_end = to_be32(tcp->seq) + fast_path_payload_length(packet) - tcp->doff * 4;
    packet->acknowledged = to_be32(tcp->ack_seq);
    return 1;
}

/* Track the sequence numbers of a connection; 0 = the general path must handle this packet. An established UDP flow has
 * no state to update. */
INLINE int fast_path_track(const struct fast_path_packet *packet, struct translation *entry) {
    __u32 flags = flow_flags(entry);

    if (!(flags & FLOW_ESTABLISHED))
        return 0;
    if (packet->key.protocol != IPPROTO_TCP)
        return 1;
    return !(flags & (FLOW_FIN_FORWARD | FLOW_FIN_REPLY | FLOW_RST_FORWARD | FLOW_RST_REPLY | FLOW_RESTING)) &&
           follow(entry, packet->sequence_end, packet->acknowledged);
}

INLINE int fast_path_parse(void *data, void *end, struct fast_path_packet *packet) {
    struct ethhdr *ethernet = data;

    packet->key.pad[0] = packet->key.pad[1] = packet->key.pad[2] = 0;
    if ((void *)(ethernet + 1) > end)
        return 0;
    if (ethernet->h_proto == to_be16(ETH_P_IP))
        return fast_path_parse_ipv4(data, end, packet) && fast_path_parse_transport(end, packet);
    return ethernet->h_proto == to_be16(ETH_P_IPV6) && fast_path_parse_ipv6(data, end, packet) &&
           fast_path_parse_transport(end, packet);
}

/* True if the entry can be applied to the packet as it is, without any other look-up. */
INLINE int fast_path_usable(__u32 ifindex, void *data, const struct fast_path_packet *packet,
                            const struct translation *entry, __u64 now) {
    if (!(entry->flags & FLOW_SNAT) || (__s64)(entry->hop_until_ns - now) <= 0 || packet->size > entry->hop_mtu ||
        entry->hop_ifindex != ifindex || entry->ifindex != ifindex || !same_mac(data, entry->hop_source))
        return 0;
    if (entry->flags & FLOW_REPLY)
        return 1;
    return (entry->packets & CHECK_PACKETS) != CHECK_PACKETS && (__s64)(now - entry->last_ns) <= IDLE_NS &&
           (packet->key.protocol == IPPROTO_TCP ||
            live_backend(entry->backend, entry->backend_generation, BACKEND_SERVES));
}

/* 0 = header out of bounds. That cannot happen, but the verifier no longer knows the bounds. */
INLINE int fast_path_rewrite_addresses(void *data, void *end, const struct fast_path_packet *packet,
                                       const struct translation *entry) {
    if (packet->ipv4) {
        struct iphdr *ip = data + sizeof(struct ethhdr);

        if ((void *)(ip + 1) > end)
            return 0;
        ip->saddr = entry->source.word[3];
        ip->daddr = entry->destination.word[3];
        ip->check = adjusted(ip->check, entry->header_change);
        ip->ttl -= 1;
    } else {
        struct ipv6hdr *ip = data + sizeof(struct ethhdr);

        if ((void *)(ip + 1) > end)
            return 0;
        write_ipv6(&ip->saddr, &entry->source);
        write_ipv6(&ip->daddr, &entry->destination);
        ip->hop_limit -= 1;
    }
    return 1;
}

INLINE int fast_path_rewrite(void *data, void *end, const struct fast_path_packet *packet,
                             const struct translation *entry) {
    __u32 *macs = data;
    const __u32 *hop = (const void *)entry->hop_destination; /* and hop_source behind it */

    if (!fast_path_rewrite_addresses(data, end, packet, entry))
        return 0;
    packet->ports[0] = entry->source_port;
    packet->ports[1] = entry->destination_port;
    if (packet->key.protocol == IPPROTO_TCP)
        *packet->check = adjusted(*packet->check, entry->transport_change);
    else
        adjust_udp(packet->check, entry->transport_change);
    macs[0] = hop[0];
    macs[1] = hop[1];
    macs[2] = hop[2];
    return 1;
}

/* Store the checksum differences of a flow's translation, the same for each packet, beside its cached next hop. */
INLINE void note_changes(const struct packet *packet, struct translation *entry) {
    struct changes changes;

    describe_changes(packet, entry, &changes);
    entry->header_change = fold16(changes.addresses + difference16(to_be16(1 << 8), 0)); /* and one hop less */
    entry->transport_change = fold16(changes.addresses + changes.ports);
}

#endif
