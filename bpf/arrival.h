/* A packet at a hook: what is known of its device, and what the stack would say of its source and ports. */
#ifndef HOTPLANE_ARRIVAL_H
#define HOTPLANE_ARRIVAL_H

#include "fib.h"
#include "lookup.h"

/* What the hook knows besides the packet. */
struct arrival {
    void *context;
    struct node *node;
    __u64 now;
    __u32 ifindex;
    __u32 hook; /* enum hook */
};

INLINE __u32 device_flags(__u32 ifindex) {
    struct device *device = map_lookup(MAP(devices), &ifindex);
    return device ? device->flags : 0;
}

INLINE int same_mac(const void *a, const void *b) {
    const __u16 *left = a, *right = b;
    return !((left[0] ^ right[0]) | (left[1] ^ right[1]) | (left[2] ^ right[2]));
}

/* Both link-layer addresses, the destination's first, where they lie on whole words. */
INLINE void copy_macs(void *to, const void *from) {
    any_word *words = to;
    const any_word *both = from;

    words[0] = both[0];
    words[1] = both[1];
    words[2] = both[2];
}

/* Whether a frame is addressed to the device that it came in by: in promiscuous mode, and when a switch floods, there
 * are others. */
INLINE int addressed_to_device(const struct packet *packet, __u32 ifindex) {
    struct device *device = map_lookup(MAP(devices), &ifindex);
    return device && same_mac(packet->mac, device->mac);
}

/* Whether a socket of the node's own namespace would get a packet with this tuple. */
INLINE int has_socket(void *context, const struct tuple *tuple) {
    __u32 ipv4 = is_ipv4(&tuple->destination), size;
    struct bpf_sock_tuple ports;
    struct bpf_sock *found;

    if (ipv4) {
        ports.ipv4.saddr = tuple->source.word[3];
        ports.ipv4.daddr = tuple->destination.word[3];
        ports.ipv4.sport = tuple->source_port;
        ports.ipv4.dport = tuple->destination_port;
    } else {
        __builtin_memcpy(ports.ipv6.saddr, tuple->source.word, 16);
        __builtin_memcpy(ports.ipv6.daddr, tuple->destination.word, 16);
        ports.ipv6.sport = tuple->source_port;
        ports.ipv6.dport = tuple->destination_port;
    }
    size = ipv4 ? sizeof(ports.ipv4) : sizeof(ports.ipv6);
    if (tuple->protocol == IPPROTO_TCP)
        found = bpf_skc_lookup_tcp(context, &ports, size, BPF_F_CURRENT_NETNS, 0);
    else
        found = bpf_sk_lookup_udp(context, &ports, size, BPF_F_CURRENT_NETNS, 0);
    if (!found)
        return 0;
    bpf_sk_release(found);
    return 1;
}

/* Whether the stack would take a packet with this source from this device: no martian, and rp_filter (RFC 3704), which
 * IPv4 alone has. */
INLINE enum reason check_source(const struct arrival *arrival, const struct packet *packet) {
    __u32 ifindex = arrival->ifindex;
    struct device *device = map_lookup(MAP(devices), &ifindex);
    struct bpf_fib_lookup fib;
    long result;

    if (is_martian(&packet->tuple.source))
        return REASON_MARTIAN;
    if (!packet->ipv4 || !device || !(device->flags & (DEVICE_STRICT | DEVICE_LOOSE)))
        return REASON_NONE;
    result = find_route(arrival->context, packet, &packet->tuple.destination, &packet->tuple.source, device->ifindex, 0,
                        0, &fib);
    if (!route_found(result))
        return REASON_REVERSE_PATH;
    return (device->flags & DEVICE_LOOSE) || fib.ifindex == device->ifindex ? REASON_NONE : REASON_REVERSE_PATH;
}

#endif
