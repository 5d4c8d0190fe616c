/* Layouts of all map keys and values, written once: the programs compile them and the control plane reads them through
 * cffi (dataplane/planes/ebpf/maps/layout.py).
 *
 * Byte order: __be16 and __be32 are network order, as in packets; every other field is in the order of this machine.
 * Addresses are 16 bytes; IPv4 is stored IPv4-mapped (::ffff:a.b.c.d), so that both families share maps and code, and
 * an address names its family by itself. There is no implicit padding: pad fields exist and are zero, keys are compared
 * as bytes. */
#ifndef HOTPLANE_STRUCTS_H
#define HOTPLANE_STRUCTS_H

#include "consts.h"

struct address {
    __be32 word[4]; /* network order; IPv4: 0, 0, htonl(0xffff), address */
};

/* What a destination must be. A node port has the unspecified address of its family (0.0.0.0 mapped, or ::). */
struct frontend_key {
    struct address address;
    __be16 port;
    __u8 protocol; /* IPPROTO_* */
    __u8 pad;
};

/* What a frontend means. `generation` is new at each write of any frontend and of anything it refers to. */
struct frontend {
    __u32 generation;
    __u32 service;       /* index of `services`; owner of the backends it may choose */
    __u32 cluster_base;  /* first index in `slots` of the Cluster set */
    __u32 cluster_count; /* members of the Cluster set */
    __u32 local_base;
    __u32 local_count;
    __u32 affinity_seconds; /* 0 = none */
    __u32 range_set;        /* first part of the key of `source_ranges`, where FRONTEND_RANGES is set */
    __u8 routes[3];         /* enum route_bits, by enum source_class */
    __u8 flags;             /* enum frontend_flags */
    __u8 kind;              /* enum frontend_kind */
    __u8 order;             /* position among its Service port's frontends, for read-back */
    __u16 pad;
};

/* One member of a backend set. Eight bytes, so that one store replaces it. */
struct slot {
    __u32 backend; /* index of `backends` */
    __u32 pad;
};

/* An endpoint of one service. `generation` differs for every tenant an index ever has, so that whoever remembers
 * (index, generation) can tell that his backend went; 0 = never used. */
struct backend {
    struct address address;
    __be16 port;
    __u8 protocol;
    __u8 flags; /* enum backend_flags; 0 = dead. One store kills it. */
    __u32 generation;
    __u32 service;
    __u32 tunnel; /* number of its node in `tunnels`, if that takes forwarded packets; 0 = SNAT */
};

/* Name and settings of a service (a plan entry: a Service port in one family), for views and adoption. */
struct service {
    char name[144]; /* SERVICE_NAME_SIZE; namespace/name[:port], NUL-padded */
    __u32 cluster_base;
    __u32 cluster_count;
    __u32 local_base;
    __u32 local_count;
    __u32 affinity_seconds;
    __u8 protocol;
    __u8 family; /* 4 or 6 */
    __u8 flags;  /* enum service_flags */
    __u8 pad;
};

/* Per-CPU sums of one service. Forward is client to backend. */
struct service_counters {
    __u64 connections;
    __u64 packets;
    __u64 bytes;
    __u64 reply_packets;
    __u64 reply_bytes;
};

/* Who sticks to which backend. `client` is the client's address, which every hook and the slow path go by. */
struct affinity_key {
    struct address client;
    __u32 service;
};

struct affinity {
    __u32 backend;
    __u32 backend_generation;
    __u64 last_ns; /* bpf_ktime_get_ns() of the client's last new connection */
};

/* LPM key of `source_ranges`: prefix_length counts range_set's 32 bits, and 96 more for IPv4. */
struct range_key {
    __u32 prefix_length;
    __be32 range_set; /* network order, since a trie compares bits from the first byte on */
    struct address address;
};

/* LPM key of `detector`: the CIDRs whose addresses are pods. */
struct prefix_key {
    __u32 prefix_length; /* IPv4: 96 more */
    struct address address;
};

/* For whom connect time is off: a network namespace by its cookie, or all of a control group by its number. */
struct off_key {
    __u64 id;
    __u32 kind; /* enum off_kinds */
    __u32 pad;
};

/* This node. One entry, replaced as a whole. */
struct node {
    __u64 netns_cookie; /* of the node's network namespace */
    __u32 flags;        /* enum node_flags */
    __u32 masquerade_mark;
    __u32 snat_ports; /* how many ports SNAT may use, in two runs; 0 = none */
    __u16 snat_first; /* the first run begins here; host order */
    __u16 snat_first_count;
    __u16 snat_second;
    __u16 pad;
    __u32 connect_off;     /* bit 0: for a network namespace, bit n: for a control group n levels below the root */
    __u32 tcp_syn_seconds; /* idle time after which an entry is forgotten */
    __u32 tcp_established_seconds;
    __u32 tcp_half_closed_seconds;  /* one end has sent FIN */
    __u32 tcp_closing_seconds;      /* both have, and the last acknowledgment was not seen */
    __u32 tcp_reset_seconds;        /* RST seen that its receiver may not have taken */
    __u32 tcp_rest_seconds;         /* how long a closed connection's SNAT port rests */
    __u32 udp_seconds;              /* no reply seen */
    __u32 udp_stream_seconds;       /* established */
    struct address masquerade_ipv4; /* primary address of each family; all zero = none */
    struct address masquerade_ipv6;
    __be32 tunnel_vni;  /* of forwarded packets, as in a VXLAN header */
    __be16 tunnel_port; /* their UDP port; 0 = none are taken */
    __u16 pad2;
    __u64 hash_seed; /* the same on every node of the cluster; host order */
};

/* Who watches. Written by the watcher, which renews until_ns: no watcher, no cost. */
struct monitor {
    __u64 until_ns; /* bpf_ktime_get_ns() clock; 0 = nobody */
    __u32 service;  /* with has_service: only this service */
    __u8 has_service;
    __u8 protocol; /* 0 = all */
    __u16 hooks;   /* bit 1 << enum hook; 0 = all */
};

/* What a socket was pointed at, by its cookie: the frontend that it believes to talk to, and the backend that it does
 * talk to. Of a connected socket, or of the first frontend that an unconnected one sent to; goes when the socket is
 * closed.
 */
struct peer {
    struct address frontend;
    struct address backend;
    __be16 frontend_port;
    __be16 backend_port;
    __u8 protocol;
    __u8 flags; /* enum peer_flags */
    __u16 pad;
    __u32 backend_index;
    __u32 backend_generation;
    __u32 service;
    __u32 pad2;
    __u64 last_ns; /* last datagram of an unconnected socket; when a connected one was connected */
};

/* What else an unconnected socket sends to. Forward (reply = 0): address and port are a frontend. Reply (reply = 1): a
 * backend that it was pointed at for that, or an endpoint that it talks to directly. */
struct socket_key {
    __u64 cookie;
    struct address address;
    __be16 port;
    __u8 protocol;
    __u8 reply;
    __u32 pad;
};

/* Forward: the backend; reply: the frontend, or the endpoint itself. */
struct socket_peer {
    struct address address;
    __be16 port;
    __u8 flags; /* enum peer_flags */
    __u8 pad;
    __u32 backend;
    __u32 backend_generation;
    __u32 service;
    __u64 last_ns;
};

/* Who sent a datagram to a local port, untranslated, from one of the node's own addresses at which a frontend is: the
 * key. What goes back there is an answer, not a request to the frontend.
 * Without a namespace: a socket on that port in one of the node's namespaces uses the frontend, by the packets' way,
 * besides others, at connect time. */
struct answer_key {
    __u64 netns_cookie; /* where the port is; 0 = see above */
    struct address address;
    __be16 port;
    __u16 own_port; /* host order */
    __u32 pad;
};

struct answer {
    __u64 last_ns; /* bpf_ktime_get_ns() of the last datagram */
};

/* A packet as it arrives, before translation. */
struct tuple {
    struct address source;
    struct address destination;
    __be16 source_port;
    __be16 destination_port;
    __u8 protocol;
    __u8 pad[3];
};

/* What a flow is found by, in the table of its protocol. IPv4: source, destination and both ports, as they are in a
 * packet. IPv6: a digest of those (flow.h, name_flow()); its first byte is 0, as of no IPv4 source of a flow. The entry
 * has the tuple itself. The shorter a key, the less there is to hash for each packet. */
struct flow_key {
    __be32 word[3];
};

/* What becomes of packets with a tuple: every field of the new tuple, changed or not. Each tracked flow has two
 * entries, forward and reply, each under the tuple its packets arrive with. What an entry says of sequence numbers it
 * has from packets of its own direction alone, so that no processor waits for another's. */
struct translation {
    struct address source;
    struct address destination;
    __be16 source_port;
    __be16 destination_port;
    __u32 flags; /* enum translation_flags: what it began with, and what this direction's packets said */
    __u32 noted; /* the same, said by the other direction's packets: each word has one writer */
    __u32 backend;
    __u32 backend_generation;
    __u32 service;
    __u32 ifindex; /* device on which this direction's packets come in; 0 = not known */
    __u64 last_ns; /* last packet in this direction */
    __u64 packets; /* of this direction; approximate when CPUs race */
    __u64 bytes;
    __u32 sequence_end;      /* TCP: what follows the highest sequence number sent; host order */
    __u32 acknowledged;      /* TCP: highest acknowledgment number sent; host order */
    __u32 timestamp;         /* TCP, with FLOW_TIMESTAMPS: last TSval while it closed (RFC 7323); host order */
    __u32 begun;             /* UDP: when the flow began. TCP: when a SYN met it that its backend did not answer yet.
                                In units of 2^30 ns, modulo 2^32; 0 = never */
    __u64 hop_until_ns;      /* XDP: how long the next hop below counts as known; 0 = not known */
    __u32 hop_ifindex;       /* 0 = XDP cannot send there */
    __u8 hop_destination[6]; /* link-layer addresses, in a frame's order */
    __u8 hop_source[6];
    __u16 hop_mtu;
    __u16 header_change;    /* known as long as the next hop: what the translation and one hop less add to the sum of */
    __u16 transport_change; /* the IPv4 header, and to that of TCP or UDP; in the order that checksums are in. With
                               FLOW_FORWARDED, of a client's: the sum of the outer IPv4 header without its length, and
                               the outer source port, network order */
    __u16 tunnel;           /* FLOW_FORWARDED, FLOW_BACK: number in `tunnels` of where packets are sent */
    __u32 endpoint;         /* FLOW_FORWARDED, FLOW_TUNNELED: digest of the backend (tunnel.h) */
    struct tuple own;       /* that of its packets; what names another flow by the same key is none of this one */
};

/* A way out of the node that XDP has found (ways.h). Its place in the map comes from both addresses. */
struct way {
    struct address source; /* all zero: what the node would send from is asked */
    struct address destination;
    struct address own; /* the answer to that; else not used, but all of the rest */
    __u64 until_ns;     /* how long it is believed; 0 = never was */
    __u32 from;         /* ifindex: where packets come in */
    __u32 ifindex;      /* 0 = XDP cannot send there */
    __u8 hop_destination[6];
    __u8 hop_source[6];
    __u16 mtu;
    __u8 protocol;
    __u8 pad;
};

/* A device that carries packet programs, by ifindex. */
struct device {
    __u32 flags;                /* enum device_flags */
    __u32 ifindex;              /* of the device that routes see: the bridge of a bridge's port, else its own */
    __u8 mac[6];                /* all zero = none */
    __u16 mtu;                  /* 0 = not known, or more than any packet has */
    struct address source_ipv4; /* what masquerading chooses for what leaves here (fib.h); all zero = the node's */
    struct address source_ipv6;
};

/* A pod of this node that packets may reach, and leave, past the node's stack, by its address. The entry is the
 * permission: without it everything goes by the stack. */
struct pod {
    __u64 found_ns;   /* when routes last led to it, asked by a program */
    __u32 found_from; /* from this device */
    __u32 ifindex;    /* of its device on the node */
    __u32 routed;     /* of the device that routes to it name: the bridge of a bridge's port, else the same */
    __u32 flags;      /* enum pod_flags */
    __u32 mtu;        /* of the way to it, bytes of an IP packet */
    __u8 mac[6];      /* of the pod */
    __u8 gateway[6];  /* of the node towards the pod, behind `mac` as in a frame to it */
};

/* The way of one direction's packets of a flow past the stack, into a pod, as long as `generation` is that of the map
 * `host_times`. */
struct direct_hop {
    __u32 generation; /* 0 = not known */
    __u32 from;       /* device that they come in by, addressed to it */
    __u32 to;         /* the pod's device */
    __u16 mtu;        /* as struct pod */
    __u8 summed;      /* they may carry a device's sum over the packet */
    __u8 pad;
    __u8 mac[6]; /* as struct pod */
    __u8 gateway[6];
    __u32 pad2;
};

/* A flow of pods of this node that is not translated here: it goes past the stack, or with DIRECT_STACK by the stack.
 * TCP has an entry when its SYN was seen. */
struct direct_flow {
    __u64 last_ns;
    __u32 flags;   /* enum direct_flags */
    __u32 ifindex; /* by which packets from outside come in; 0 = none did */
    __u32 begun;   /* in units of 2^30 ns, modulo 2^32 (flow.h) */
    __u32 pad;
    struct direct_hop low; /* of packets from the end that comes first in the key */
    struct direct_hop high;
};

/* Working memory of the packet programs, one per CPU: what does not fit on their stack. */
struct scratch {
    __u64 now_ns;     /* time of the tick below */
    __u64 tick;       /* bpf_jiffies64() */
    __u64 settled;    /* see hide_value() in packet.h */
    __u64 handed;     /* what one program has of `packet` for the next (direct.h) */
    __u64 no_flow;    /* of XDP's packet: its flow was looked up and is not there (established.h) */
    __u64 packet[16]; /* struct packet (packet.h) */
    __u64 chosen[6];  /* struct selection (lookup.h) */
    __u64 work[16];   /* struct balancing (lookup.h) */
    struct tuple forward_key;
    struct tuple reply_key;
    struct tuple direct_key;
    struct translation forward;
    struct translation reply;
};

/* Another node that packets are forwarded to. */
struct tunnel {
    struct address address;
    __u32 format; /* enum tunnel_formats; may change at any time, so it is read once for each packet */
    __u32 always; /* it never changes: another number of the same node, for backends that IP in IP cannot tell apart */
};

/* A backend of this node as nodes that forward to it name it: a digest of its address, port and protocol (tunnel.h), or
 * SHORT_NAME of it, with SHORT_NAME_SERVICE in `service`. The value in `forwarded` is its index in `backends`. */
struct endpoint_key {
    __u32 service;
    __u32 endpoint;
};

/* Identity of a fragmented datagram, and the ports that only its first fragment carries. */
struct fragment_key {
    struct address source;
    struct address destination;
    __be32 identification; /* IPv4: 16 bits in the low end of a network-order word */
    __u8 protocol;
    __u8 pad[3];
};

struct fragment {
    __be16 source_port;
    __be16 destination_port; /* both 0: there is no first fragment that is translated */
    __u32 held;              /* how many came before the first, as long as that is missing; numbers of held_key */
    __u64 last_ns;
};

/* A fragment that came before the first of its datagram, to be sent on behind that one. */
struct held_key {
    struct fragment_key datagram;
    __u32 number; /* from 0 */
};

struct held {
    __u64 last_ns;
    __u32 length;     /* of the frame */
    __u32 instead;    /* the stack did not get it */
    __u8 bytes[2048]; /* HELD_BYTES */
};

/* One record of the ring `events`. */
struct event {
    __u64 ns;               /* bpf_ktime_get_ns() */
    struct tuple tuple;     /* as it arrived; connect time: source is 100::<namespace cookie>, port 0 */
    struct address backend; /* chosen backend, all zero = none */
    __be16 backend_port;
    __u8 hook;
    __u8 reason;
    __u32 service; /* valid when a frontend was found, else 0xffffffff */
    __u32 ifindex; /* 0 = none (sockets) */
    __u32 length;  /* bytes on the wire; 0 for sockets */
};

/* Who captures packets that are dropped. Written by him, who renews until_ns. */
struct capture {
    __u64 until_ns; /* bpf_ktime_get_ns() clock; 0 = nobody */
    __u32 snaplen;  /* bytes of a packet that are wanted */
    __u32 pad;
};

/* What comes before a packet's bytes in the records of `captured`. */
struct captured {
    __u64 ns; /* bpf_ktime_get_ns() */
    __u32 hook;
    __u32 reason;
    __u32 service; /* valid when a frontend was found, else 0xffffffff */
    __u32 ifindex;
    __u32 length; /* bytes of the whole packet, its link-layer header included */
    __u32 pad;
};

#endif
