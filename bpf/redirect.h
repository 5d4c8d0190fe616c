/* Sending on a packet that does not go by the stack. */
#ifndef HOTPLANE_REDIRECT_H
#define HOTPLANE_REDIRECT_H

#include "direct.h"
#include "send.h"
#include "skb.h"

/* Redirect a translated packet. */
INLINE long send(struct __sk_buff *skb, const struct packet *packet, const struct next_hop *hop, __u64 now) {
    __u32 device;
    int peer;

    if (remove_tag(skb, hop->fib.ifindex) || (!packet->l3 && add_link_layer(skb, packet)))
        return TC_ACT_SHOT;
    device = device_flags(hop->fib.ifindex);
    if (device & DEVICE_RAW_IP) /* a tunnel to many looks for its next hop in a route */
        return redirect_neighbour(hop->fib.ifindex, 0, 0, 0);
#ifdef NO_REDIRECT_PEER
    peer = 0;
#else
    peer = packet->l3 && (device & DEVICE_POD) && (device & DEVICE_HOST_ROUTING) && host_routing_is_on(now);
#endif
    if (!peer && (!hop->neighbour_known || !packet->l3 || !(bpf_get_prandom_u32() & NEIGHBOUR_PROBE)))
        return send_by_neighbour(skb, hop);
    if (store_macs(skb, &hop->fib)) /* into a pod they matter only to who looks at frames */
        return TC_ACT_SHOT;
#ifndef NO_REDIRECT_PEER
    if (peer)
        return bpf_redirect_peer(hop->fib.ifindex, 0);
#endif
    return bpf_redirect(hop->fib.ifindex, 0);
}

#endif
