/* Packets between nodes that forward to each other's backends, on the wire (docs/forwarding.md): VXLAN (RFC 7348) in
 * UDP over the packet's own family, with DF set and no UDP checksum (RFC 6935). The packet inside is the client's own,
 * its destination still the frontend. Its Ethernet header, which no switch ever sees, says the rest:
 *
 *   destination  02:00 and the digest of the endpoint that was chosen, four bytes
 *   source       02:00:00:00:00 and what the packet is, enum tunnel_kinds
 */
#ifndef HOTPLANE_TUNNEL_H
#define HOTPLANE_TUNNEL_H

#include "arrival.h"
#include "checksum.h"
#include "parse.h"

enum tunnel_sizes {
    TUNNEL_HEADERS = 30,   /* UDP, VXLAN, Ethernet */
    TUNNEL_PORTS = 0xc000, /* the first of the source ports (RFC 6335, dynamic ports), host order */
    TUNNEL_PORT_BITS = 0x3fff,
    TUNNEL_HOPS = 64,
    TUNNEL_MAC = 2, /* first byte of both Ethernet addresses: locally administered */
    WHOLE_IPV4 = 0xffff,
};

#define VXLAN_HAS_VNI 0x08000000

/* What lies between the outer IP header and the packet inside. */
struct tunnel_header {
    __be16 source_port;
    __be16 destination_port;
    __be16 length;
    __be16 check;
    __be32 flags;
    __be32 vni;
    __u8 to[2];
    __be16 endpoint[2];
    __u8 from[5];
    __u8 kind; /* enum tunnel_kinds */
    __be16 type;
} __attribute__((packed));

_Static_assert(sizeof(struct tunnel_header) == TUNNEL_HEADERS, "a gap in the headers of the tunnel");

/* The name by which other nodes call a backend, together with its Service: the same as maps/tunnels.py,
 * endpoint_digest(). `address` lies on whole words. */
INLINE __u32 endpoint_digest(const struct address *address, __be16 port, __u8 protocol) {
    const any_long *half = (const void *)address;
    __u64 sum = ((half[0] * MIX_3) ^ half[1]) * MIX;

    sum ^= sum >> 32;
    sum = (sum + ((__u64)port << 8 | protocol)) * MIX_2;
    return sum >> 32;
}

/* Bytes that forwarding adds to a packet. */
INLINE __u32 tunnel_overhead(const struct packet *packet) {
    return ip_header_size(packet) + TUNNEL_HEADERS;
}

/* Whether a packet is one that another node forwarded, or says so. */
INLINE int is_wrapped(const struct node *node, const struct packet *packet) {
    return packet->tuple.destination_port == node->tunnel_port && packet->tuple.protocol == IPPROTO_UDP &&
           node->tunnel_port && packet->kind == PACKET_WHOLE &&
           (address_flags(&packet->tuple.destination) & ADDRESS_LOCAL);
}

/* Whether what is in front of a packet is what another node writes. `packet` describes the outer one. */
INLINE int is_ours(const struct node *node, const struct packet *packet, const struct tunnel_header *header) {
    return header->flags == to_be32(VXLAN_HAS_VNI) && header->vni == node->tunnel_vni &&
           header->type == to_be16(packet->ipv4 ? ETH_P_IP : ETH_P_IPV6) && header->to[0] == TUNNEL_MAC &&
           header->from[0] == TUNNEL_MAC && header->kind >= TUNNEL_ASK && header->kind <= TUNNEL_ANSWER;
}

/* The outer source port: the same for all packets of a flow, so that they take one of several ways. */
INLINE __be16 tunnel_source_port(const struct tuple *tuple) {
    const any_long *ends = (const void *)tuple;
    __u64 sum = (ends[0] ^ ends[1] ^ ends[2] ^ ends[3] ^ *(const any_word *)&tuple->source_port) * MIX;

    return to_be16(TUNNEL_PORTS | (__u16)(sum >> 50 & TUNNEL_PORT_BITS));
}

/* The address that this node forwards from, which the others know it by. */
INLINE const struct address *tunnel_source(const struct node *node, int ipv4) {
    return ipv4 ? &node->masquerade_ipv4 : &node->masquerade_ipv6;
}

/* Headers of a packet of `size` bytes, the outer IP header's not counted. */
INLINE void write_tunnel_header(struct tunnel_header *header, const struct node *node, const struct packet *packet,
                                __u32 size, __u32 endpoint, __u8 kind) {
    __u32 length = size + TUNNEL_HEADERS;

    __builtin_memset(header, 0, sizeof(*header));
    header->source_port = tunnel_source_port(&packet->tuple);
    header->destination_port = node->tunnel_port;
    header->length = length <= WHOLE_IPV4 ? to_be16(length) : 0;
    header->flags = to_be32(VXLAN_HAS_VNI);
    header->vni = node->tunnel_vni;
    header->to[0] = header->from[0] = TUNNEL_MAC;
    header->endpoint[0] = to_be16(endpoint >> 16);
    header->endpoint[1] = to_be16(endpoint);
    header->kind = kind;
    header->type = to_be16(packet->ipv4 ? ETH_P_IP : ETH_P_IPV6);
}

/* The outer IP header of a packet of `size` bytes altogether. An aggregate may have more than fit into the field. */
INLINE void write_tunnel_ipv4(struct iphdr *ip, const struct address *from, const struct address *to, __u32 size) {
    __builtin_memset(ip, 0, sizeof(*ip));
    ip->version = 4;
    ip->ihl = 5;
    ip->tot_len = size <= WHOLE_IPV4 ? to_be16(size) : 0;
    ip->frag_off = to_be16(IPV4_DONT_FRAGMENT);
    ip->ttl = TUNNEL_HOPS;
    ip->protocol = IPPROTO_UDP;
    ip->saddr = from->word[3];
    ip->daddr = to->word[3];
    ip->check = ~fold16((__u32)bpf_csum_diff(0, 0, (void *)ip, sizeof(*ip), 0));
}

INLINE void write_tunnel_ipv6(struct ipv6hdr *ip, const struct address *from, const struct address *to, __u32 size) {
    __u32 length = size - sizeof(*ip);

    __builtin_memset(ip, 0, sizeof(*ip));
    ip->version = 6;
    ip->payload_len = length <= WHOLE_IPV4 ? to_be16(length) : 0;
    ip->nexthdr = IPPROTO_UDP;
    ip->hop_limit = TUNNEL_HOPS;
    __builtin_memcpy(&ip->saddr, from, sizeof(*from));
    __builtin_memcpy(&ip->daddr, to, sizeof(*to));
}

#endif
