/* Sending a packet out by redirect: to a next hop that routes gave, and into a pod. */
#ifndef HOTPLANE_SEND_H
#define HOTPLANE_SEND_H

#include <linux/pkt_cls.h>

#include "arrival.h"

/* Declared here since the front end's own declaration lacks the flags. */
static long (*redirect_neighbour)(__u32 ifindex, struct bpf_redir_neigh *next, int size,
                                  __u64 flags) = (void *)BPF_FUNC_redirect_neigh;

enum send_errors {
    ERROR_NOT_SUPPORTED = -524, /* ENOTSUPP */
};

enum neighbour_limits {
    NEIGHBOUR_PROBE = 31, /* mask: of so many packets one goes by the stack's neighbour code, since only its own use of
                             an entry makes it ask whether the neighbour is still there */
};

/* Next hop of a packet that is redirected. */
struct next_hop {
    struct bpf_fib_lookup fib;
    int neighbour_known;
};

/* Add a link-layer header to a packet from a device without one, since a redirect needs it; the function that sends the
 * packet fills it in or removes it. */
INLINE long add_link_layer(struct __sk_buff *skb, const struct packet *packet) {
    __be16 type = to_be16(packet->ipv4 ? ETH_P_IP : ETH_P_IPV6);

    return bpf_skb_change_head(skb, sizeof(struct ethhdr), 0) ||
           bpf_skb_store_bytes(skb, 2 * ETH_ALEN, &type, sizeof(type), 0);
}

/* Clear CHECKSUM_COMPLETE, the device's sum over a received packet, which the stack's neighbour code does not update
 * when it replaces the link-layer header: the next receiver would drop UDP that arrived through a tunnel. Growing the
 * packet does it. GSO packets never have that sum, nor do those in a tunnel that no device has seen, which the kernel
 * does not let grow. Returns 0, or negative. */
INLINE long forget_sum(struct __sk_buff *skb) {
    __u32 length = skb->len;
    long failed;

    if (skb->gso_size)
        return 0;
    failed = bpf_skb_change_tail(skb, length + 1, 0);
    if (failed)
        return failed == ERROR_NOT_SUPPORTED ? 0 : -1;
    return bpf_skb_change_tail(skb, length, 0);
}

/* Remove a priority tag unless the packet leaves by the device it came from. Returns 0, or negative. */
INLINE long remove_tag(struct __sk_buff *skb, __u32 ifindex) {
    return skb->vlan_present && ifindex != skb->ifindex && bpf_skb_vlan_pop(skb);
}

/* Write the link-layer addresses that a look-up found. Returns 0, or negative. */
INLINE long store_macs(struct __sk_buff *skb, const struct bpf_fib_lookup *fib) {
    __u8 header[2 * ETH_ALEN];

    __builtin_memcpy(header, fib->dmac, ETH_ALEN);
    __builtin_memcpy(header + ETH_ALEN, fib->smac, ETH_ALEN);
    return bpf_skb_store_bytes(skb, 0, header, sizeof(header), 0);
}

/* Redirect through the stack's neighbour code, which resolves the next hop's address if necessary. */
INLINE long redirect_by_neighbour(const struct next_hop *hop) {
    struct bpf_redir_neigh next = {.nh_family = hop->fib.family};

    if (hop->fib.family == FAMILY_IPV4)
        next.ipv4_nh = hop->fib.ipv4_dst;
    else
        __builtin_memcpy(next.ipv6_nh, hop->fib.ipv6_dst, sizeof(next.ipv6_nh));
    return redirect_neighbour(hop->fib.ifindex, &next, sizeof(next), 0);
}

INLINE long send_by_neighbour(struct __sk_buff *skb, const struct next_hop *hop) {
    return forget_sum(skb) ? TC_ACT_SHOT : redirect_by_neighbour(hop);
}

#endif
