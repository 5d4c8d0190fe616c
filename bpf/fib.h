/* The way out of the node: the kernel's own routing tables and neighbours. */
#ifndef HOTPLANE_FIB_H
#define HOTPLANE_FIB_H

#include "packet.h"

/* Newer than the compiler's own header. */
enum fib_flags {
    FIB_SOURCE = 16, /* Linux 6.7: tell the source address that the node would use */
};

enum fib_families {
    FAMILY_IPV4 = 2,
    FAMILY_IPV6 = 10,
};

#ifdef NO_FIB_MTU
enum unknown_mtus {
    LEAST_MTU = 1280, /* what every IPv6 link carries, and every IPv4 link that matters */
};

/* For kernels that do not tell the MTU of a route: that of the device, as the control plane noted it. Where the packet
 * was too big they do not tell the device either, but without its size they do. */
INLINE void note_mtu(void *context, struct bpf_fib_lookup *fib, __u32 flags, long result) {
    struct device *device;
    __u32 ifindex;

    fib->tot_len = 0;
    if (result == BPF_FIB_LKUP_RET_FRAG_NEEDED)
        bpf_fib_lookup(context, fib, sizeof(*fib), flags);
    ifindex = fib->ifindex;
    device = map_lookup(MAP(devices), &ifindex);
    fib->tot_len = device && device->mtu ? device->mtu : LEAST_MTU;
}
#endif

/* Look up the way to `destination`. `size`: of the packet with its IP header, to compare with the route's MTU, 0 = do
 * not; `ifindex`: the device that the packet came in by. With a size, `fib->tot_len` is the MTU afterwards. Returns
 * BPF_FIB_LKUP_RET_*, or negative. */
INLINE long find_route(void *context, const struct packet *packet, const struct address *source,
                       const struct address *destination, __u32 ifindex, __u32 size, __u32 flags,
                       struct bpf_fib_lookup *fib) {
    long result;

    __builtin_memset(fib, 0, sizeof(*fib));
    fib->ifindex = ifindex;
    fib->l4_protocol = packet->protocol;
    fib->tot_len = size;
    if (packet->ipv4) {
        fib->family = FAMILY_IPV4;
        fib->ipv4_src = source ? source->word[3] : 0;
        fib->ipv4_dst = destination->word[3];
    } else {
        fib->family = FAMILY_IPV6;
        if (source)
            __builtin_memcpy(fib->ipv6_src, source, sizeof(*source));
        __builtin_memcpy(fib->ipv6_dst, destination, sizeof(*destination));
    }
    result = bpf_fib_lookup(context, fib, sizeof(*fib), flags);
#ifdef NO_FIB_MTU
    if (size)
        note_mtu(context, fib, flags, result);
#endif
    return result;
}

#ifdef NO_FIB_SOURCE
/* For kernels that do not tell: the address of the device that a packet leaves by, as the control plane noted it, or
 * the node's primary one where the device has none. All zero = neither. */
INLINE void device_source(const struct node *node, __u32 ifindex, int ipv4, struct address *source) {
    struct device *device = map_lookup(MAP(devices), &ifindex);

    *source = ipv4 ? node->masquerade_ipv4 : node->masquerade_ipv6;
    if (device && ipv4 && device->source_ipv4.word[3])
        *source = device->source_ipv4;
    else if (device && !ipv4 && device->source_ipv6.word[0])
        *source = device->source_ipv6;
}
#endif

/* Whether a look-up without a size found its way. The kernel compares the packet at hand with the device all the same,
 * when all else is done. */
INLINE int route_found(long result) {
    return result == BPF_FIB_LKUP_RET_SUCCESS || result == BPF_FIB_LKUP_RET_NO_NEIGH ||
           result == BPF_FIB_LKUP_RET_FRAG_NEEDED;
}

/* Why a packet cannot take a way that was looked up with its size. REASON_NONE: it can, though the link-layer address
 * of its next hop may have to be resolved. */
INLINE enum reason why_no_route(long result) {
    if (result == BPF_FIB_LKUP_RET_FRAG_NEEDED)
        return REASON_MTU;
    return result == BPF_FIB_LKUP_RET_SUCCESS || result == BPF_FIB_LKUP_RET_NO_NEIGH ? REASON_NONE : REASON_FIB_MISS;
}

/* The address that this node would send from towards a backend: what masquerading would choose. 0 when there is no
 * way to it by forwarding (REASON_FIB_MISS), e.g. since it is this node's own. */
INLINE int masquerade_address(void *context, const struct node *node, const struct packet *packet,
                              const struct address *destination, __u32 ifindex, struct address *source) {
    struct bpf_fib_lookup fib;
    long result;

#ifdef NO_FIB_SOURCE
    result = find_route(context, packet, 0, destination, ifindex, 0, 0, &fib);
    device_source(node, fib.ifindex, packet->ipv4, source);
    if (!source->word[0] && !source->word[3])
        return 0;
#else
    result = find_route(context, packet, 0, destination, ifindex, 0, FIB_SOURCE, &fib);
    if (packet->ipv4)
        set_mapped(source, fib.ipv4_src);
    else
        __builtin_memcpy(source, fib.ipv6_src, sizeof(*source));
#endif
    return route_found(result);
}

#endif
