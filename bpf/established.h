/* Fast path for the majority of packets: unfragmented, untagged TCP and UDP of an established flow that is redirected
 * to a known next hop. It looks up, rewrites and accounts such a packet in few steps. Everything else (closing
 * connections, idle entries, next hops due for a new look-up, watched flows) takes the general path, which gives the
 * same result.
 *
 * `ipv4` and `tcp` are constants wherever they are parameters: one source, of which the compiler makes the code of each
 * family and protocol, without the questions that those answer. */
#ifndef HOTPLANE_ESTABLISHED_H
#define HOTPLANE_ESTABLISHED_H

#include "parse.h"
#include "rewrite.h"
#include "track.h"

enum established_limits {
    IDLE_NS = 1000000000, /* an entry used within this time has not expired: no lifetime is shorter */
};

/* Pointers into the current packet, whose headers are known to be there, and the key of its flow. */
struct fast_path_packet {
    struct flow_key key;
    __u32 ports; /* as in the packet: the source's first */
    struct iphdr *ipv4;
    struct ipv6hdr *ipv6;
    struct tcphdr *tcp;
    struct udphdr *udp;
    __u32 size;         /* bytes, including the IP header */
    __u32 length;       /* bytes, from the transport header on */
    __u32 sequence_end; /* TCP: next sequence number; host order */
    __u32 acknowledged; /* TCP; host order */
    any_long ends[4];   /* IPv6: source and destination, two words each */
};

INLINE int fast_path_parse_ipv4(void *end, struct fast_path_packet *packet) {
    struct iphdr *ip = packet->ipv4;

    if (*(__u8 *)ip != 0x45 || (ip->frag_off & to_be16(IPV4_MORE_FRAGMENTS | IPV4_OFFSET)) || ip->ttl <= 1)
        return 0;
    packet->size = to_be16(ip->tot_len);
    packet->length = packet->size - sizeof(*ip);
    packet->key.word[0] = ip->saddr;
    packet->key.word[1] = ip->daddr;
    packet->key.word[2] = packet->ports;
    return packet->size >= sizeof(*ip) && packet->size <= end - (void *)ip && *(__u8 *)&ip->saddr;
}

INLINE int fast_path_parse_ipv6(void *end, struct fast_path_packet *packet) {
    struct ipv6hdr *ip = packet->ipv6;
    any_long *words = (void *)&ip->saddr; /* on whole words where the IP header is, as on all machines that need that */

    if (ip->version != 6 || ip->hop_limit <= 1)
        return 0;
    packet->length = to_be16(ip->payload_len);
    packet->size = packet->length + sizeof(*ip);
    packet->ends[0] = words[0];
    packet->ends[1] = words[1];
    packet->ends[2] = words[2];
    packet->ends[3] = words[3];
    digest_flow(packet->ends, packet->ports, &packet->key);
    return packet->size <= end - (void *)ip;
}

/* True if the transport header is complete and, for TCP, carries ACK without SYN, FIN or RST. */
INLINE int fast_path_parse_transport(struct fast_path_packet *packet, int tcp) {
    struct tcphdr *header = packet->tcp;

    if (!tcp)
        return packet->length >= sizeof(*packet->udp);
    if (header->doff < 5 || packet->length < header->doff * 4 ||
        (((__u8 *)header)[13] & (TCP_SYN | TCP_FIN | TCP_RST | TCP_ACK)) != TCP_ACK)
        return 0;
    packet->sequence_end = to_be32(header->seq) + packet->length - header->doff * 4;
    packet->acknowledged = to_be32(header->ack_seq);
    return 1;
}

/* True if the packet is one for the fast path, and all that it takes of it is read. */
INLINE int fast_path_parse(void *data, void *end, struct fast_path_packet *packet, int ipv4, int tcp) {
    void *ip = data + sizeof(struct ethhdr), *transport = ip + (ipv4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr));

    if (transport + (tcp ? sizeof(struct tcphdr) : sizeof(struct udphdr)) > end)
        return 0;
    packet->ipv4 = ip;
    packet->ipv6 = ip;
    packet->tcp = transport;
    packet->udp = transport;
    packet->ports = *(any_word *)transport;
    return (ipv4 ? fast_path_parse_ipv4(end, packet) : fast_path_parse_ipv6(end, packet)) &&
           fast_path_parse_transport(packet, tcp);
}

/* find_flow() without the map of maps. An IPv4 key is the tuple itself. */
INLINE struct translation *fast_path_flow(const struct fast_path_packet *packet, int ipv4, int tcp) {
    const struct flow_key *key = &packet->key;
    struct translation *entry = tcp ? map_lookup(MAP(tcp_flows), key) : map_lookup(MAP(udp_flows), key);

    const any_long *own;

    if (ipv4 || !entry)
        return entry;
    own = both_ends(&entry->own);
    return (own[0] ^ packet->ends[0]) | (own[1] ^ packet->ends[1]) | (own[2] ^ packet->ends[2]) |
                   (own[3] ^ packet->ends[3]) | (both_ports(&entry->own) ^ packet->ports)
               ? 0
               : entry;
}

/* unfinished() for a packet that was not put into a tuple. */
INLINE int fast_path_unfinished(const struct fast_path_packet *packet, int ipv4, int tcp) {
    struct tuple tuple = {.protocol = tcp ? IPPROTO_TCP : IPPROTO_UDP};

    if (ipv4) {
        tuple.source.word[3] = packet->ipv4->saddr;
        tuple.destination.word[3] = packet->ipv4->daddr;
    } else {
        copy_ipv6(&tuple.source, &packet->ipv6->saddr);
        copy_ipv6(&tuple.destination, &packet->ipv6->daddr);
    }
    return unfinished(&tuple, ipv4, packet->length, tcp ? packet->tcp->check : packet->udp->check);
}

/* True if the entry can be applied to the packet as it is, without any other look-up. */
INLINE int fast_path_usable(__u32 ifindex, void *data, const struct fast_path_packet *packet,
                            const struct translation *entry, __u64 now, int tcp) {
    __u32 flags = flow_flags(entry);

    if ((flags & (FLOW_SNAT | FLOW_ESTABLISHED)) != (FLOW_SNAT | FLOW_ESTABLISHED) ||
        (__s64)(entry->hop_until_ns - now) <= 0 || packet->size > entry->hop_mtu || entry->hop_ifindex != ifindex ||
        entry->ifindex != ifindex || !same_mac(data, entry->hop_source))
        return 0;
    if (tcp && (flags & (FLOW_FIN_FORWARD | FLOW_FIN_REPLY | FLOW_RST_FORWARD | FLOW_RST_REPLY | FLOW_RESTING)))
        return 0;
    if (flags & FLOW_REPLY)
        return 1;
    return (entry->packets & CHECK_PACKETS) != CHECK_PACKETS && (__s64)(now - entry->last_ns) <= IDLE_NS &&
           (tcp || live_backend(entry->backend, entry->backend_generation, BACKEND_SERVES));
}

INLINE void fast_path_rewrite_ip(const struct fast_path_packet *packet, const struct translation *entry, int ipv4) {
    if (ipv4) {
        struct iphdr *ip = packet->ipv4;

        ip->saddr = entry->source.word[3];
        ip->daddr = entry->destination.word[3];
        ip->check = adjusted16(ip->check, entry->header_change);
        ip->ttl -= 1;
    } else {
        struct ipv6hdr *ip = packet->ipv6;

        any_long *ends = (void *)&ip->saddr;
        const any_long *new = (const void *)&entry->source; /* and destination behind it */

        ends[0] = new[0];
        ends[1] = new[1];
        ends[2] = new[2];
        ends[3] = new[3];
        ip->hop_limit -= 1;
    }
}

INLINE void fast_path_rewrite(void *data, const struct fast_path_packet *packet, const struct translation *entry,
                              int ipv4, int tcp) {
    fast_path_rewrite_ip(packet, entry, ipv4);
    packet->udp->source = entry->source_port;
    packet->udp->dest = entry->destination_port;
    if (tcp)
        packet->tcp->check = adjusted16(packet->tcp->check, entry->transport_change);
    else
        adjust_udp(&packet->udp->check, entry->transport_change);
    copy_macs(data, entry->hop_destination);
}

/* Translate a packet of an established flow. Returns 1; or 0, for the general path, with the packet as it was.
 * `missing`: it has no flow. */
INLINE int translate_established(void *data, void *end, __u32 ifindex, __u64 now, int *missing, int ipv4, int tcp) {
    struct fast_path_packet packet;
    struct translation *entry;

    if (!fast_path_parse(data, end, &packet, ipv4, tcp))
        return 0;
#ifdef NO_XDP_TX
    if (fast_path_unfinished(&packet, ipv4, tcp))
        return 0;
#endif
    entry = fast_path_flow(&packet, ipv4, tcp);
    *missing = !entry;
    if (!entry || !fast_path_usable(ifindex, data, &packet, entry, now, tcp) ||
        unlikely(watched(HOOK_XDP, tcp ? IPPROTO_TCP : IPPROTO_UDP, entry->service, now)) ||
        (tcp && !follow(entry, packet.sequence_end, packet.acknowledged)))
        return 0;
    fast_path_rewrite(data, &packet, entry, ipv4, tcp);
    account(entry, packet.size, now);
    count(HOOK_XDP, entry->flags & FLOW_REPLY ? REASON_REPLY : REASON_FLOW);
    return 1;
}

/* The same for whatever the packet is. */
INLINE int forward_established(void *data, void *end, __u32 ifindex, __u64 now, int *missing) {
    struct ethhdr *ethernet = data;
    struct ipv6hdr *ipv6 = (void *)(ethernet + 1);
    struct iphdr *ipv4 = (void *)(ethernet + 1);

    if ((void *)(ipv4 + 1) > end)
        return 0;
    if (ethernet->h_proto == to_be16(ETH_P_IP)) {
        if (ipv4->protocol == IPPROTO_TCP)
            return translate_established(data, end, ifindex, now, missing, 1, 1);
        return ipv4->protocol == IPPROTO_UDP && translate_established(data, end, ifindex, now, missing, 1, 0);
    }
    if (ethernet->h_proto != to_be16(ETH_P_IPV6))
        return 0;
    if (ipv6->nexthdr == IPPROTO_TCP)
        return translate_established(data, end, ifindex, now, missing, 0, 1);
    return ipv6->nexthdr == IPPROTO_UDP && translate_established(data, end, ifindex, now, missing, 0, 0);
}

/* Store the checksum differences of a flow's translation, the same for each packet, beside its cached next hop. */
INLINE void note_changes(const struct packet *packet, struct translation *entry) {
    struct changes changes;

    describe_changes(packet, entry, &changes);
    entry->header_change = fold16(changes.addresses + difference16(to_be16(1 << 8), 0)); /* and one hop less */
    entry->transport_change = fold16(changes.addresses + changes.ports);
}

#endif
