/* Fast path for the majority of packets: unfragmented, untagged TCP and UDP of an established flow that is redirected
 * to a known next hop, translated or through the tunnel to the endpoint's node. It looks up, rewrites and accounts such
 * a packet in few steps. Everything else (closing connections, idle entries, next hops due for a new look-up, watched
 * flows) takes the general path, which gives the same result. TCP segments in the middle of a connection that is no
 * flow's pass by here, too.
 *
 * `ipv4` and `tcp` are constants wherever they are parameters: one source, of which the compiler makes the code of each
 * family and protocol, without the questions that those answer. */
#ifndef HOTPLANE_ESTABLISHED_H
#define HOTPLANE_ESTABLISHED_H

#include "encapsulate.h"
#include "parse.h"
#include "rewrite.h"
#include "track.h"

enum established_limits {
    IDLE_NS = 1000000000, /* an entry used within this time has not expired: no lifetime is shorter */
};

/* Pointers into the current packet, whose headers are known to be there. The key of its flow is no part of this: what
 * helpers have the address of lies in memory as a whole. */
struct fast_path_packet {
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

INLINE int fast_path_parse_ipv4(void *end, struct fast_path_packet *packet, struct flow_key *key) {
    struct iphdr *ip = packet->ipv4;

    if (*(__u8 *)ip != 0x45 || (ip->frag_off & to_be16(IPV4_MORE_FRAGMENTS | IPV4_OFFSET)) || ip->ttl <= 1)
        return 0;
    packet->size = to_be16(ip->tot_len);
    packet->length = packet->size - sizeof(*ip);
    key->word[0] = ip->saddr;
    key->word[1] = ip->daddr;
    key->word[2] = packet->ports;
    return packet->size >= sizeof(*ip) && packet->size <= end - (void *)ip && *(__u8 *)&ip->saddr;
}

INLINE int fast_path_parse_ipv6(void *end, struct fast_path_packet *packet, struct flow_key *key) {
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
    digest_flow(packet->ends, packet->ports, key);
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
INLINE int fast_path_parse(void *data, void *end, struct fast_path_packet *packet, struct flow_key *key, int ipv4,
                           int tcp) {
    void *ip = data + sizeof(struct ethhdr), *transport = ip + (ipv4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr));

    if (transport + (tcp ? sizeof(struct tcphdr) : sizeof(struct udphdr)) > end)
        return 0;
    packet->ipv4 = ip;
    packet->ipv6 = ip;
    packet->tcp = transport;
    packet->udp = transport;
    packet->ports = *(any_word *)transport;
    return (ipv4 ? fast_path_parse_ipv4(end, packet, key) : fast_path_parse_ipv6(end, packet, key)) &&
           fast_path_parse_transport(packet, tcp);
}

/* find_flow() without the map of maps. An IPv4 key is the tuple itself. */
INLINE struct translation *fast_path_flow(const struct fast_path_packet *packet, const struct flow_key *key, int ipv4,
                                          int tcp) {
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

/* same_mac() where both addresses begin two bytes before a whole word. */
INLINE int same_frame_mac(const void *a, const void *b) {
    return !((*(const any_half *)a ^ *(const any_half *)b) | (*(const any_word *)(a + 2) ^ *(const any_word *)(b + 2)));
}

/* True if the entry can be applied to the packet as it is, without any other look-up. `size`: of what is sent out. */
INLINE int fast_path_usable(__u32 ifindex, void *data, const struct translation *entry, __u32 size, __u64 now,
                            int tcp) {
    __u32 flags = flow_flags(entry);

    if (!(flags & FLOW_ESTABLISHED) || !(flags & (FLOW_SNAT | FLOW_FORWARDED)) ||
        (__s64)(entry->hop_until_ns - now) <= 0 || size > entry->hop_mtu || entry->hop_ifindex != ifindex ||
        entry->ifindex != ifindex || !same_frame_mac(data, entry->hop_source))
        return 0;
    if (tcp && (flags & (FLOW_FIN_FORWARD | FLOW_FIN_REPLY | FLOW_RST_FORWARD | FLOW_RST_REPLY | FLOW_RESTING)))
        return 0;
    if (flags & FLOW_REPLY)
        return !(flags & FLOW_FORWARDED);
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

/* Put a packet into the tunnel, if there is room for it. */
INLINE int fast_path_forward(struct xdp_md *context, const struct fast_path_packet *packet,
                             const struct translation *entry, const struct tunnel *to, __u32 format, int ipv4) {
    return !encapsulate(context, this_node(), entry, &to->address, format, packet->size, entry->transport_change,
                        entry->header_change, ipv4);
}

/* Account and count a packet of an established flow. */
INLINE void fast_path_account(struct translation *entry, __u32 size, __u64 now, __u32 flags) {
    account_as(entry, flags & FLOW_REPLY, size, now);
    count(HOOK_XDP, flags & FLOW_REPLY ? REASON_REPLY : REASON_FLOW);
}

/* Whether a segment without an entry, which has no SYN, passes by; it is counted then. Else the general path has more
 * to do with it. */
INLINE int passes_by(const void *data, __u64 now) {
    if (unlikely(this_node()->flags & NODE_TAKES_OVER) || unlikely(*(const __u8 *)data & 1) ||
        unlikely(watched(HOOK_XDP, IPPROTO_TCP, ~0U, now)))
        return 0;
    count(HOOK_XDP, REASON_TCP_NO_SYN);
    return 1;
}

/* Translate a packet of an established flow, or put it into the tunnel. Returns XDP_TX; XDP_PASS for one of no flow
 * that passes by; or 0, for the general path: the packet is as it was, but whoever has pointers into it must read them
 * again. */
INLINE int send_established(struct xdp_md *context, void *data, void *end, __u32 ifindex, __u64 now,
                            struct scratch *scratch, int ipv4, int tcp) {
    struct fast_path_packet packet;
    const struct tunnel *to = 0;
    struct translation *entry;
    struct flow_key key;
    __u32 flags, format = 0, overhead = 0;

    if (!fast_path_parse(data, end, &packet, &key, ipv4, tcp))
        return 0;
    if (!tcp &&
        unlikely(packet.udp->dest == this_node()->tunnel_port)) /* what comes out of a tunnel is no flow's yet */
        return 0;
#ifdef NO_XDP_TX
    if (fast_path_unfinished(&packet, ipv4, tcp))
        return 0;
#endif
    entry = fast_path_flow(&packet, &key, ipv4, tcp);
    if (!entry) {
        scratch->no_flow = 1;
        return tcp && passes_by(data, now) ? XDP_PASS : 0;
    }
    flags = entry->flags;
    if (flags & FLOW_FORWARDED) {
        to = tunnel_to(entry->tunnel, ipv4);
        if (!to)
            return 0;
        format = to->format;
        overhead = (ipv4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr)) + tunnel_headers(format);
    }
    if (!fast_path_usable(ifindex, data, entry, packet.size + overhead, now, tcp) ||
        unlikely(watched(HOOK_XDP, tcp ? IPPROTO_TCP : IPPROTO_UDP, entry->service, now)) ||
        (tcp && !(flags & FLOW_DSR) && !follow(entry, packet.sequence_end, packet.acknowledged)))
        return 0;
    if (to) {
        if (!fast_path_forward(context, &packet, entry, to, format, ipv4))
            return 0;
        fast_path_account(entry, packet.size, now, 0);
        count(HOOK_XDP, REASON_FORWARDED);
        return XDP_TX;
    }
    fast_path_rewrite(data, &packet, entry, ipv4, tcp);
    fast_path_account(entry, packet.size, now, flags);
    return XDP_TX;
}

/* The same for whatever the packet is. Sets scratch->no_flow where it is known to have none. */
INLINE int forward_established(struct xdp_md *context, void *data, void *end, __u32 ifindex, __u64 now,
                               struct scratch *scratch) {
    __be16 type;

    scratch->no_flow = 0;
    if (data + sizeof(struct ethhdr) + sizeof(struct iphdr) > end)
        return 0;
    type = ((any_half *)data)[ETH_ALEN];
    if (type == to_be16(ETH_P_IP)) {
        struct iphdr *ip = data + sizeof(struct ethhdr);

        if (ip->protocol == IPPROTO_TCP)
            return send_established(context, data, end, ifindex, now, scratch, 1, 1);
        return ip->protocol == IPPROTO_UDP ? send_established(context, data, end, ifindex, now, scratch, 1, 0) : 0;
    } else {
        struct ipv6hdr *ip = data + sizeof(struct ethhdr);

        if (type != to_be16(ETH_P_IPV6))
            return 0;
        if (ip->nexthdr == IPPROTO_TCP)
            return send_established(context, data, end, ifindex, now, scratch, 0, 1);
        return ip->nexthdr == IPPROTO_UDP ? send_established(context, data, end, ifindex, now, scratch, 0, 0) : 0;
    }
}

/* Store what is the same for each packet of a flow beside its cached next hop: what its translation changes in
 * checksums; of one that is forwarded, between these nodes, the sum and the port of the headers in front. */
INLINE void note_changes(const struct packet *packet, struct translation *entry, const struct address *from,
                         const struct address *to) {
    struct changes changes;

    if ((entry->flags & (FLOW_FORWARDED | FLOW_REPLY)) == FLOW_FORWARDED) {
        entry->header_change = tunnel_sum(from, to);
        entry->transport_change = tunnel_source_port(&packet->tuple);
        return;
    }
    describe_changes(packet, entry, &changes);
    entry->header_change = fold16(changes.addresses + one_hop_less());
    entry->transport_change = fold16(changes.addresses + changes.ports);
}

#endif
