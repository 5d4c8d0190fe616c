/* Packets between nodes that forward to each other's backends, on the wire (docs/forwarding.md): VXLAN (RFC 7348) or
 * Geneve (RFC 8926) in UDP over the packet's own family, with DF set and no UDP checksum (RFC 6935), both to one port.
 * The packet inside is the client's own, its destination still the frontend. What it is, enum tunnel_kinds, and the
 * digest of the endpoint that was chosen are told beside it. In VXLAN by its Ethernet header, which no switch ever
 * sees:
 *
 *   destination  02:00 and the digest, four bytes
 *   source       02:00:00:00:00 and what the packet is
 *
 * In Geneve, which has no Ethernet inside, by an option of the experimental class: its type says what the packet is,
 * its data are the digest. Nobody else has to understand it, so it is not critical.
 *
 * Or IP in IP (RFC 2003, RFC 2473), which has no header of its own: 16 bits of the outer one say what the packet is and
 * the digest's low bits, SHORT_NAME. In IPv4 they are the identification, which means nothing in a packet that cannot
 * be fragmented (RFC 6864); in IPv6 of the flow label. Others send IP in IP between the same nodes, so what is inside
 * decides whose a packet is (forward.c). */
#ifndef HOTPLANE_TUNNEL_H
#define HOTPLANE_TUNNEL_H

#include "arrival.h"
#include "checksum.h"
#include "flow.h"
#include "parse.h"
#include "rewrite.h"

enum tunnel_sizes {
    VXLAN_HEADERS = 30,    /* UDP, VXLAN, Ethernet */
    GENEVE_HEADERS = 24,   /* UDP, Geneve, our option */
    IPIP_KIND_SHIFT = 14,  /* the bit below it is a guard: cutting an aggregate counts the identification up */
    TUNNEL_PORTS = 0xc000, /* the first of the source ports (RFC 6335, dynamic ports), host order */
    TUNNEL_PORT_BITS = 0x3fff,
    TUNNEL_HOPS = 64,
    TUNNEL_MAC = 2, /* first byte of both Ethernet addresses: locally administered */
    WHOLE_IPV4 = 0xffff,
};

/* First words of the headers behind UDP, host order. VXLAN never has a protocol in the low half, Geneve always. */
#define VXLAN_HAS_VNI 0x08000000
#define GENEVE_OURS 0x02000000 /* version 0, and eight bytes of options: ours alone */

enum geneve_bits {
    GENEVE_VERSION = 3 << 30,
    GENEVE_CONTROL = 1 << 23, /* not to be sent on */
    GENEVE_WORDS = 63,        /* mask of the length of all options, in units of four bytes, once it is shifted */
    GENEVE_WORDS_SHIFT = 24,
    GENEVE_BASE = 16, /* bytes: UDP and Geneve without options */
    GENEVE_VNI_SHIFT = 8,
    OPTION_CLASS = 0xff68, /* RFC 8926, section 3.5.1: experimental */
    OPTION_CRITICAL = 128, /* of an option's type */
    OPTION_WORDS = 31,     /* mask of the length of its data */
};

/* The first words of an outer IPv4 header, host order: version, size and DSCP; DF; hop limit and protocol. */
#define OUTER_IPV4 0x45000000
#define OUTER_FLAGS IPV4_DONT_FRAGMENT
#define OUTER_HOPS (TUNNEL_HOPS << 24 | IPPROTO_UDP << 16)
#define OUTER_HOPS_IPIP (TUNNEL_HOPS << 24 | IPPROTO_IPIP << 16)

/* What lies between the outer IP header and the packet inside, and first bytes of that, so that no field has to be put
 * together from bytes. */
struct tunnel_header {
    __be16 source_port;
    __be16 destination_port;
    __be16 length;
    __be16 check;
    __be32 first;
    __be32 vni;
    union {
        struct {
            __be16 to;
            __be16 endpoint[2];
            __be16 from[2];
            __be16 kind; /* enum tunnel_kinds */
            __be16 type;
            __be16 inside;
        } vxlan;
        struct {
            __be16 class;
            __be16 kind; /* enum tunnel_kinds in the first byte; the second is the length of the data */
            __be16 endpoint[2];
            __be16 inside[4];
        } geneve;
    };
};

_Static_assert(__builtin_offsetof(struct tunnel_header, vxlan.inside) == VXLAN_HEADERS, "a gap in the headers");
_Static_assert(__builtin_offsetof(struct tunnel_header, geneve.inside) == GENEVE_HEADERS, "a gap in the headers");

/* What the headers in front of a forwarded packet say. */
struct wrapper {
    __u32 overhead; /* bytes in front of the packet inside, from the outer IP header on */
    __u32 kind;     /* enum tunnel_kinds */
    __u32 endpoint; /* digest of the endpoint, 0 in an answer */
    __u32 named;    /* the bits of the digest that are known */
};

/* The name by which other nodes call a backend, together with its Service: the same as maps/tunnels.py,
 * endpoint_digest(). `address` lies on whole words. */
INLINE __u32 endpoint_digest(const struct address *address, __be16 port, __u8 protocol) {
    const any_long *half = (const void *)address;
    __u64 sum = ((half[0] * MIX_3) ^ half[1]) * MIX;

    sum ^= sum >> 32;
    sum = (sum + ((__u64)port << 8 | protocol)) * MIX_2;
    return sum >> 32;
}

/* Bytes between the outer IP header and the packet inside. */
INLINE __u32 tunnel_headers(__u32 format) {
    if (likely(format == FORMAT_VXLAN))
        return VXLAN_HEADERS;
    return format == FORMAT_GENEVE ? GENEVE_HEADERS : 0;
}

/* Bytes that forwarding adds to a packet. */
INLINE __u32 tunnel_overhead(const struct packet *packet, __u32 format) {
    return ip_header_size(packet) + tunnel_headers(format);
}

/* Whether a packet is IP in IP of its own family. */
INLINE int is_ipip(const struct packet *packet) {
    return packet->protocol == (packet->ipv4 ? IPPROTO_IPIP : IPPROTO_IPV6);
}

/* Whether a packet that the parser leaves alone (REASON_PROTOCOL) may be one that another node forwarded in IP in IP.
 */
INLINE int may_be_ipip(const struct node *node, const struct packet *packet) {
    return is_ipip(packet) && node->tunnel_port && packet->kind == PACKET_WHOLE && !packet->tagged &&
           (address_flags(&packet->tuple.destination) & ADDRESS_LOCAL) &&
           map_lookup(MAP(tunnel_nodes), &packet->tuple.source);
}

/* Whether a packet is one that another node forwarded in UDP, or says so. */
INLINE int is_wrapped(const struct node *node, const struct packet *packet) {
    return packet->tuple.destination_port == node->tunnel_port && packet->tuple.protocol == IPPROTO_UDP &&
           node->tunnel_port && packet->kind == PACKET_WHOLE &&
           (address_flags(&packet->tuple.destination) & ADDRESS_LOCAL);
}

INLINE __u8 first_byte(__be16 both) {
    return to_be16(both) >> 8;
}

INLINE __u32 both_halves(const __be16 *halves) {
    return (__u32)to_be16(halves[0]) << 16 | to_be16(halves[1]);
}

INLINE int is_kind(__u32 kind) {
    return kind >= TUNNEL_ASK && kind <= TUNNEL_ANSWER;
}

/* Read the headers in front of a packet. `packet`: the outer one. Returns whether they are what another node writes. */
INLINE int read_wrapper(const struct node *node, const struct packet *packet, const struct tunnel_header *header,
                        struct wrapper *wrapper) {
    __be16 type = to_be16(packet->ipv4 ? ETH_P_IP : ETH_P_IPV6);

    wrapper->named = ~0U;
    if (header->vni != node->tunnel_vni)
        return 0;
    if (header->first == to_be32(VXLAN_HAS_VNI)) {
        wrapper->overhead = tunnel_overhead(packet, FORMAT_VXLAN);
        wrapper->kind = (__u8)to_be16(header->vxlan.kind);
        wrapper->endpoint = both_halves(header->vxlan.endpoint);
        return header->vxlan.type == type && first_byte(header->vxlan.to) == TUNNEL_MAC &&
               first_byte(header->vxlan.from[0]) == TUNNEL_MAC && is_kind(wrapper->kind);
    }
    wrapper->overhead = tunnel_overhead(packet, FORMAT_GENEVE);
    wrapper->kind = first_byte(header->geneve.kind);
    wrapper->endpoint = both_halves(header->geneve.endpoint);
    return header->first == (to_be32(GENEVE_OURS) | to_be32(to_be16(type))) &&
           header->geneve.class == to_be16(OPTION_CLASS) && (__u8)to_be16(header->geneve.kind) == 1 &&
           is_kind(wrapper->kind);
}

/* The same for IP in IP, of which `mark` is what its outer header says. */
INLINE int read_mark(const struct packet *packet, __be16 mark, struct wrapper *wrapper) {
    __u16 bits = to_be16(mark);

    wrapper->overhead = ip_header_size(packet);
    wrapper->kind = bits >> IPIP_KIND_SHIFT;
    wrapper->endpoint = bits & SHORT_NAME;
    wrapper->named = SHORT_NAME;
    return is_kind(wrapper->kind);
}

/* Where that is in the outer header. */
INLINE __u32 mark_offset(int ipv4) {
    return ipv4 ? 4 : 2;
}

/* Whether a digest is that of the endpoint that a packet names. */
INLINE int names(const struct wrapper *wrapper, __u32 digest) {
    return !((digest ^ wrapper->endpoint) & wrapper->named);
}

INLINE __u16 mark_of(__u32 kind, __u32 endpoint) {
    return kind << IPIP_KIND_SHIFT | (endpoint & SHORT_NAME);
}

/* The outer source port: the same for all packets of a flow, so that they take one of several ways. */
INLINE __be16 tunnel_source_port(const struct tuple *tuple) {
    const any_long *ends = both_ends(tuple);
    __u64 sum = (ends[0] ^ ends[1] ^ ends[2] ^ ends[3] ^ both_ports(tuple)) * MIX;

    return to_be16(TUNNEL_PORTS | (__u16)(sum >> 50 & TUNNEL_PORT_BITS));
}

/* The node of this number, which packets of this family are sent to; 0 = there is none. */
INLINE const struct tunnel *tunnel_to(__u32 number, int ipv4) {
    const struct tunnel *to = map_lookup(MAP(tunnels), &number);

    return to && (ipv4 ? to->address.word[3] : to->address.word[0]) ? to : 0;
}

/* The length of a packet in a header. An aggregate may have more than fits: then it is 0. */
INLINE __be16 length_field(__u32 size) {
    return size <= WHOLE_IPV4 ? to_be16(size) : 0;
}

/* The address that this node forwards from, which the others know it by. */
INLINE const struct address *tunnel_source(const struct node *node, int ipv4) {
    return ipv4 ? &node->masquerade_ipv4 : &node->masquerade_ipv6;
}

/* What follows the outer IP header, as long as tunnel_headers() says. `length`: from here on, as it is written;
 * `format`: a constant. */
INLINE void write_tunnel_header(struct tunnel_header *header, const struct node *node, __be16 source_port,
                                __be16 length, __u32 endpoint, __u8 kind, int ipv4, __u32 format) {
    __u16 type = ipv4 ? ETH_P_IP : ETH_P_IPV6;

    header->source_port = source_port;
    header->destination_port = node->tunnel_port;
    header->length = length;
    header->check = 0;
    header->vni = node->tunnel_vni;
    if (format == FORMAT_GENEVE) {
        header->first = to_be32(GENEVE_OURS | type);
        header->geneve.class = to_be16(OPTION_CLASS);
        header->geneve.kind = to_be16(kind << 8 | 1);
        header->geneve.endpoint[0] = to_be16(endpoint >> 16);
        header->geneve.endpoint[1] = to_be16(endpoint);
        return;
    }
    header->first = to_be32(VXLAN_HAS_VNI);
    header->vxlan.to = to_be16(TUNNEL_MAC << 8);
    header->vxlan.endpoint[0] = to_be16(endpoint >> 16);
    header->vxlan.endpoint[1] = to_be16(endpoint);
    header->vxlan.from[0] = to_be16(TUNNEL_MAC << 8);
    header->vxlan.from[1] = 0;
    header->vxlan.kind = to_be16(kind);
    header->vxlan.type = to_be16(type);
}

/* The sum of an outer IPv4 header in front of UDP, without its length. */
INLINE __u16 tunnel_sum(const struct address *from, const struct address *to) {
    __u64 words = (__u64)to_be32(OUTER_IPV4) + to_be32(OUTER_FLAGS) + to_be32(OUTER_HOPS);

    return fold16(words + from->word[3] + to->word[3]);
}

/* The outer IP header. `length`: as it is written, with this header or without, as the family has it; `sum`: as
 * above; `mark`: of IP in IP; `format`: a constant. */
INLINE void write_tunnel_ipv4(struct iphdr *ip, const struct address *from, const struct address *to, __be16 length,
                              __u16 sum, __u16 mark, __u32 format) {
    any_word *words = (void *)ip;

    words[0] = to_be32(OUTER_IPV4);
    ip->tot_len = length;
    if (format == FORMAT_IPIP) {
        words[1] = to_be32((__u32)mark << 16 | OUTER_FLAGS);
        words[2] = to_be32(OUTER_HOPS_IPIP);
        ip->check =
            ~fold16((__u64)sum + length + to_be16(mark) + difference(to_be32(OUTER_HOPS), to_be32(OUTER_HOPS_IPIP)));
    } else {
        words[1] = to_be32(OUTER_FLAGS);
        words[2] = to_be32(OUTER_HOPS);
        ip->check = adjusted16(~sum, length);
    }
    ip->saddr = from->word[3];
    ip->daddr = to->word[3];
}

INLINE void write_tunnel_ipv6(struct ipv6hdr *ip, const struct address *from, const struct address *to, __be16 length,
                              __u16 mark, __u32 format) {
    __u8 next = format == FORMAT_IPIP ? IPPROTO_IPV6 : IPPROTO_UDP;
    any_word *words = (void *)ip;
    any_half *halves = (void *)ip;

    words[0] = to_be32(6 << 28 | (format == FORMAT_IPIP ? mark : 0));
    halves[2] = length;
    halves[3] = to_be16(next << 8 | TUNNEL_HOPS);
    write_ipv6(&ip->saddr, from);
    write_ipv6(&ip->daddr, to);
}

#endif
