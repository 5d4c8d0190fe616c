/* Host routing in few steps, for most packets: those of a flow into a pod whose way is known, and the first ones of
 * connections between pods whose ways are. The same as route() in host.c would do. */
#ifndef HOTPLANE_QUICK_H
#define HOTPLANE_QUICK_H

#include "course.h"

/* What quick() reads of a packet. */
struct glance {
    struct tuple tuple;
    __u32 size; /* bytes of the largest packet, as packet_size() */
    __u32 tcp_flags;
    __u32 ipv4;
};

/* Read an untagged TCP or UDP packet without options or fragments, in the linear part. 0 = it is none. */
INLINE int look_at(struct __sk_buff *skb, struct glance *glance) {
    void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
    struct ethhdr *ethernet = data;
    struct ipv6hdr *ipv6 = (void *)(ethernet + 1);
    struct iphdr *ipv4 = (void *)(ethernet + 1);
    struct tcphdr *tcp;

    if ((void *)(ipv4 + 1) > end || skb->pkt_type || skb->vlan_present)
        return 0;
    glance->ipv4 = ethernet->h_proto == to_be16(ETH_P_IP);
    if (glance->ipv4) {
        if (*(__u8 *)ipv4 != 0x45 || (ipv4->frag_off & to_be16(IPV4_MORE_FRAGMENTS | IPV4_OFFSET)) || ipv4->ttl <= 1)
            return 0;
        set_mapped(&glance->tuple.source, ipv4->saddr);
        set_mapped(&glance->tuple.destination, ipv4->daddr);
        glance->tuple.protocol = ipv4->protocol;
        tcp = (void *)(ipv4 + 1);
    } else {
        if (ethernet->h_proto != to_be16(ETH_P_IPV6) || (void *)(ipv6 + 1) > end || ipv6->version != 6 ||
            ipv6->hop_limit <= 1)
            return 0;
        copy_ipv6(&glance->tuple.source, &ipv6->saddr);
        copy_ipv6(&glance->tuple.destination, &ipv6->daddr);
        if (is_ipv4(&glance->tuple.source) || is_ipv4(&glance->tuple.destination))
            return 0;
        glance->tuple.protocol = ipv6->nexthdr;
        tcp = (void *)(ipv6 + 1);
    }
    if ((void *)tcp + sizeof(struct udphdr) > end)
        return 0;
    glance->tuple.source_port = tcp->source;
    glance->tuple.destination_port = tcp->dest;
    glance->tuple.pad[0] = glance->tuple.pad[1] = glance->tuple.pad[2] = 0;
    glance->size = skb->len - sizeof(struct ethhdr);
    if (skb->gso_size)
        glance->size = skb->gso_size + (glance->ipv4 ? sizeof(*ipv4) : sizeof(*ipv6));
    if (glance->tuple.protocol == IPPROTO_UDP) {
        glance->tcp_flags = 0;
        glance->size += skb->gso_size ? sizeof(struct udphdr) : 0;
        return 1;
    }
    if (glance->tuple.protocol != IPPROTO_TCP || (void *)(tcp + 1) > end)
        return 0;
    glance->tcp_flags = ((__u8 *)tcp)[13];
    glance->size += skb->gso_size ? tcp->doff * 4 : 0;
    return 1;
}

/* Lower the hop limit in place and write link-layer addresses. Returns 0, or -1: out of reach. */
INLINE int quick_headers(struct __sk_buff *skb, const struct glance *glance, const void *macs, int summed) {
    void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
    __u8 *limit = data + sizeof(struct ethhdr) + 7, hops;

    if (data + sizeof(struct ethhdr) + sizeof(struct iphdr) > end)
        return -1;
    write_macs(data, macs);
    if (glance->ipv4) {
        lower_ttl(data + sizeof(struct ethhdr));
        return 0;
    }
    hops = *limit - 1;
    if (summed)
        return bpf_skb_store_bytes(skb, sizeof(struct ethhdr) + 7, &hops, 1, BPF_F_RECOMPUTE_CSUM) ? -1 : 0;
    *limit = hops;
    return 0;
}

/* The first packet of a connection between two pods of this node whose ways are known. */
INLINE int quick_begin(struct __sk_buff *skb, struct scratch *scratch, const struct glance *glance, __u64 now) {
    struct direct_flow *made = (struct direct_flow *)&scratch->forward;
    __u32 generation = host_time(HOST_GENERATION);
    struct frontend_key frontend = {.address = glance->tuple.destination,
                                    .port = glance->tuple.destination_port,
                                    .protocol = glance->tuple.protocol};
    struct pod *from = find_pod(&glance->tuple.source), *to;
    struct direct_hop *there, *back;
    int turned;

    if (!from || hide_value(scratch, answered_here(&glance->tuple, scratch)))
        return GO_ON;
    to = find_pod(&glance->tuple.destination);
    if (!to)
        return GO_ON;
    if (from->ifindex != skb->ifindex || to->ifindex == skb->ifindex || ((from->flags | to->flags) & POD_BRIDGED) ||
        to->found_from != skb->ifindex || now - to->found_ns >= FOUND_NS || glance->size > to->mtu ||
        !host_routing_is_on(now) || map_lookup(MAP(frontends), &frontend))
        return GO_ON;
    turned = hide_value(scratch, direct_key(&glance->tuple, &scratch->direct_key));
    __builtin_memset(made, 0, sizeof(*made));
    made->last_ns = now;
    there = turned ? &made->high : &made->low;
    back = turned ? &made->low : &made->high;
    remember_hop(there, from->ifindex, to, generation, 0);
    remember_hop(back, to->ifindex, from, generation, 0);
    if (map_update(MAP(direct_tcp), &scratch->direct_key, made, BPF_NOEXIST))
        return GO_ON;
    if (quick_headers(skb, glance, to->mac, 0))
        return TC_ACT_SHOT;
    count(HOOK_TC_INGRESS, REASON_INTO_POD);
    return bpf_redirect_peer(to->ifindex, 0);
}

/* The way of most packets: into a pod, of a flow whose way is known. The same as route() would do, in few steps. Sets
 * `unknown` where no such flow is the packet's. */
INLINE int quick(struct __sk_buff *skb, struct scratch *scratch, int *unknown) {
    __u64 now = coarse_now(scratch);
    struct direct_flow *flow;
    struct direct_hop *hop;
    struct glance *glance = (struct glance *)scratch->work; /* not on the stack: see new_packet() */
    int turned;
    __u32 to;

    _Static_assert(sizeof(*glance) <= sizeof(scratch->work), "no room for a glance");
    if (!hide_value(scratch, look_at(skb, glance)))
        return GO_ON;
    if ((glance->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) == TCP_SYN)
        return quick_begin(skb, scratch, glance, now);
    if ((glance->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN)
        return GO_ON;
    turned = hide_value(scratch, direct_key(&glance->tuple, &scratch->direct_key));
    flow = find_direct(&scratch->direct_key);
    if (!flow)
        *unknown = 1;
    if (!flow || (flow->flags & DIRECT_STACK))
        return GO_ON;
    hop = turned ? &flow->high : &flow->low;
    if (hop->generation != (__u32)host_time(HOST_GENERATION) || hop->from != skb->ifindex || glance->size > hop->mtu ||
        !host_routing_is_on(now))
        return GO_ON;
    to = hop->to;
    if (quick_headers(skb, glance, hop->mac, hop->summed))
        return TC_ACT_SHOT;
    note_direct(&scratch->direct_key, flow, glance->tcp_flags, turned, now);
    count(HOOK_TC_INGRESS, REASON_INTO_POD);
    return bpf_redirect_peer(to, 0);
}

#endif
