/* struct packet: what a packet program has parsed of the current packet. */
#ifndef HOTPLANE_PACKET_H
#define HOTPLANE_PACKET_H

#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#include "helpers.h"

enum packet_limits {
    L3_OFFSETS = 31, /* mask: Ethernet and two VLAN tags */
};

enum packet_kind {
    PACKET_WHOLE,
    PACKET_FIRST_FRAGMENT, /* carries ports */
    PACKET_LATER_FRAGMENT, /* carries none */
    PACKET_ICMP_ERROR,
};

/* Whether something is between the IP header and the transport header (extension.h). */
enum extended {
    NOT_EXTENDED,
    EXTENDED,              /* IPv4 options, or IPv6 extension headers other than a fragment's alone */
    EXTENDED_ANY_PROTOCOL, /* a later fragment of such a packet, of whichever transport protocol */
};

/* Head of ICMP (RFC 792) and ICMPv6 (RFC 4443) messages; an error quotes the packet that it is about behind it. */
struct icmp_header {
    __u8 type;
    __u8 code;
    __be16 check;
    __be16 unused;
    __be16 mtu; /* IPv4, fragmentation needed; ICMPv6 has 32 bits for it, from `unused` on */
};

enum icmp_types {
    ICMP_UNREACHABLE = 3,
    ICMP_TIME_EXCEEDED = 11,
    ICMP_BAD_PARAMETER = 12,
    ICMPV6_UNREACHABLE = 1,
    ICMPV6_BAD_PARAMETER = 4,
};

enum tcp_flags {
    TCP_FIN = 1,
    TCP_SYN = 2,
    TCP_RST = 4,
    TCP_ACK = 16,
};

enum tcp_option_kinds {
    TCP_OPTION_END = 0,
    TCP_OPTION_NOP = 1,
    TCP_OPTION_TIMESTAMPS = 8,
};

/* What is known of a segment's timestamp option. */
enum timestamps {
    UNKNOWN_TIMESTAMP,
    NO_TIMESTAMP,
    HAS_TIMESTAMP,
};

/* `tuple` is what flows are looked up by: the packet's own addresses and ports; for an ICMP error those of the quoted
 * packet turned round, since the error travels the way that answers to that packet would. */
struct packet {
    struct tuple tuple;
    __u16 mac[3]; /* link-layer destination */
    __u16 pad;
    __u32 l3;           /* offset of the IP header; 0 where the device has no link-layer header */
    __u32 l4;           /* offset of the transport or ICMP header; in a later fragment, of its data */
    __u32 size;         /* bytes from the IP header on */
    __u32 reason;       /* enum reason, so far */
    __u32 source_class; /* enum source_class */
    __u32 quoted_l4;    /* ICMP errors: offset of the quoted packet's transport header */
    __u32 sequence;     /* TCP: of the first byte; host order */
    __u32 acknowledged; /* TCP, with ACK: host order */
    __u32 timestamp;    /* TCP, with HAS_TIMESTAMP: TSval (RFC 7323); host order */
    __be32 identification;
    __u8 ipv4;
    __u8 kind;     /* enum packet_kind */
    __u8 protocol; /* of the packet itself; tuple.protocol is that of the flow */
    __u8 hops;     /* TTL or hop limit */
    __u8 tcp_flags;
    __u8 keep_whole;     /* must not be fragmented: DF, or IPv6 */
    __u8 transport_size; /* of the transport header, options included */
    __u8 moved;          /* the flow's backend was removed */
    __u8 tagged;         /* bears a VLAN tag */
    __u8 no_flow;        /* its flow was looked up already and not found */
    __u8 timestamps;     /* enum timestamps */
    __u8 translated;     /* rewritten; its flow entry is not updated yet */
    __u8 taken_over;     /* a segment that goes on with a connection of which nothing is known here */
    __u8 extended;       /* enum extended */
    __u8 port_taken;     /* the client's port is that of another connection to the same endpoint */
};

_Static_assert(sizeof(struct packet) <= sizeof(((struct scratch *)0)->packet), "struct packet outgrew its room");

INLINE struct scratch *this_scratch(void) {
    __u32 zero = 0;
    return map_lookup(MAP(scratch), &zero);
}

/* Return zeroed memory for the current packet. It lies in a map, not on the stack, because the verifier treats values
 * read from a map as unknown, so after parsing all kinds of packets are one state to it. Packet programs on one CPU do
 * not interrupt each other. */
INLINE struct packet *new_packet(struct scratch *scratch) {
    __builtin_memset(scratch->packet, 0, sizeof(struct packet));
    return (struct packet *)scratch->packet;
}

/* Store a packet's reason and read it back, so that neither the compiler nor the verifier tracks where it came from:
 * the code after it is then verified once, not once per path. */
INLINE enum reason hide_reason(struct packet *packet, enum reason reason) {
    packet->reason = reason;
    barrier();
    return packet->reason;
}

/* hide_reason() for any other value. */
INLINE __u32 hide_value(struct scratch *scratch, __u32 value) {
    scratch->settled = value;
    barrier();
    return scratch->settled;
}

INLINE void copy_address(struct address *to, const struct address *from) {
    to->word[0] = from->word[0];
    to->word[1] = from->word[1];
    to->word[2] = from->word[2];
    to->word[3] = from->word[3];
}

INLINE void copy_ipv6(struct address *to, const struct in6_addr *from) {
    to->word[0] = from->s6_addr32[0];
    to->word[1] = from->s6_addr32[1];
    to->word[2] = from->s6_addr32[2];
    to->word[3] = from->s6_addr32[3];
}

INLINE void set_mapped(struct address *to, __be32 ipv4) {
    to->word[0] = 0;
    to->word[1] = 0;
    to->word[2] = to_be32(0xffff);
    to->word[3] = ipv4;
}

/* Source addresses that the stack drops whatever its settings: multicast, broadcast, unspecified and "this network"
 * (RFC 1812, section 5.3.7; RFC 4291, section 2.7). Loopback has a reason of its own. */
INLINE int is_martian(const struct address *source) {
    __u32 first = to_be32(source->word[3]);

    if (is_ipv4(source))
        return (first >> 28) == 14 || first == 0xffffffff || (first >> 24) == 0;
    return (to_be32(source->word[0]) >> 24) == 0xff || is_unspecified(source);
}

/* Size of the fixed IP header. */
INLINE __u32 ip_header_size(const struct packet *packet) {
    return packet->ipv4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);
}

#endif
