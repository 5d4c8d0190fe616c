/* Packets that other nodes forwarded (forward.c) in XDP, called by xdp_uplink: clients' packets that may come, and
 * answers of flows that are known. Everything else, and what cannot be sent from here, goes unchanged to tc, which has
 * the same tables: who is refused, say. So does what begins a flow where host routing is on: tc_host would take a SYN
 * to a pod for the first packet of a flow past the stack. */
#include "admit.h"
#include "forward_event.h"
#include "xdp_send.h"

/* One hop less, in place. Returns 0, or -1 when out of reach. */
INLINE int lower_hops_in_place(void *header, void *end, int ipv4) {
    struct ipv6hdr *ipv6 = header;
    struct iphdr *ip = header;

    if ((void *)(ip + 1) > end)
        return -1;
    if (ipv4)
        lower_ttl(ip);
    else
        ipv6->hop_limit -= 1;
    return 0;
}

/* Pass a packet of a local endpoint's flow on to the stack as the endpoint's, out of the tunnel. */
INLINE int deliver(void *inner, void *end, struct packet *packet, const struct ethhdr *outer,
                   struct translation *entry) {
    struct ethhdr *ethernet = inner;

    if ((void *)(ethernet + 1) > end || rewrite_packet(inner, end, packet, entry, 0)) {
        packet->reason = REASON_REWRITE_FAILED;
        return XDP_DROP;
    }
    copy_macs(ethernet->h_dest, outer->h_dest);
    ethernet->h_proto = outer->h_proto;
    packet->reason = REASON_FLOW;
    return XDP_PASS;
}

/* Send an answer that is in a packet on to its client. */
INLINE int send_answer(void *inner, void *end, struct packet *packet, const struct ethhdr *outer,
                       const struct translation *entry) {
    struct ethhdr *ethernet = inner;

    if ((void *)(ethernet + 1) > end || lower_hops_in_place(ethernet + 1, end, packet->ipv4)) {
        packet->reason = REASON_REWRITE_FAILED;
        return XDP_DROP;
    }
    copy_macs(ethernet->h_dest, entry->hop_destination);
    ethernet->h_proto = outer->h_proto;
    packet->reason = REASON_REPLY;
    return XDP_TX;
}

/* Whether the outer packet is one that may be taken out here; its node's number, and what its headers say. */
INLINE int reads_well(const struct arrival *arrival, const struct packet *packet, void *data, void *end, __u32 *node,
                      struct wrapper *wrapper) {
    __u32 *known = map_lookup(MAP(tunnel_nodes), &packet->tuple.source);
    struct tunnel_header *found = data + (packet->l4 & L4_OFFSETS);
    any_half *mark = data + sizeof(struct ethhdr) + mark_offset(packet->ipv4);

    if (!known || packet->l3 != sizeof(struct ethhdr) || packet->l4 != packet->l3 + ip_header_size(packet) ||
        !addressed_to_device(packet, arrival->ifindex) || check_source(arrival, packet) != REASON_NONE)
        return 0;
    *node = *known;
    if (is_ipip(packet))
        return (void *)(mark + 1) <= end && read_mark(packet, *mark, wrapper);
    return (void *)(found + 1) <= end && read_wrapper(arrival->node, packet, found, wrapper);
}

/* The flow of a client's packet that this node (of the map `tunnel_nodes`) forwarded; it may begin or come another way
 * from now on. `entry`: what is there. 0 = tc has to see the packet. */
INLINE struct translation *take_in(const struct arrival *arrival, struct packet *packet, struct scratch *scratch,
                                   struct translation *entry, __u32 node, const struct wrapper *wrapper) {
    __u32 back = wrapper->kind == TUNNEL_ASK ? FLOW_BACK : 0;
    int begins = opens_connection(packet);

    if (entry && unlikely(flow_flags(entry) & FLOW_BESIDE))
        return 0;
    if (entry && (entry->flags & (FLOW_REPLY | FLOW_TUNNELED | FLOW_BACK)) == (FLOW_TUNNELED | back) &&
        entry->tunnel == (node & TUNNEL_NUMBER) && !begins && usable(arrival->node, packet, entry, arrival->now))
        return entry;
    if (entry && begins && !near(segment_end(packet), entry->sequence_end, FOLLOW_WINDOW))
        return 0; /* tc could take it for one straight to the endpoint: see taken_out() */
    if ((entry && !(entry->flags & FLOW_TUNNELED)) || host_time(HOST_ROUTING_UNTIL) ||
        hide_reason(packet, admit_tunneled(arrival, packet, scratch, node, wrapper, entry)) != REASON_NONE)
        return 0;
    entry = find_flow(&packet->tuple); /* once more, so that to the verifier it is one */
    return entry && !(flow_flags(entry) & FLOW_BESIDE) && (!begins || other_is_there(packet, entry)) ? entry : 0;
}

/* Take out a packet of a flow that is known or may begin. Returns the verdict; if that is to pass
 * with a reason other than REASON_FLOW, the packet is as it was. */
INLINE int unwrap(struct xdp_md *context, const struct arrival *arrival, struct packet *packet, struct scratch *scratch,
                  struct translation **found) {
    void *data = (void *)(long)context->data, *end = (void *)(long)context->data_end, *inner;
    struct wrapper wrapper = {};
    struct translation *entry;
    __u32 node, overhead, ipv4;
    __u16 mac[3];
    int action;

    if (!reads_well(arrival, packet, data, end, &node, &wrapper))
        return XDP_PASS;
    mac[0] = packet->mac[0];
    mac[1] = packet->mac[1];
    mac[2] = packet->mac[2];
    ipv4 = hide_value(scratch, packet->ipv4);
    overhead = hide_value(scratch, wrapper.overhead) & L4_OFFSETS;
    inner = data + overhead;
    packet = new_packet(scratch);
    if (inner > end || hide_reason(packet, parse_inside(inner, end, end - inner, 0, packet, ipv4)) != REASON_NONE ||
        packet->kind != PACKET_WHOLE)
        return XDP_PASS;
#ifdef NO_XDP_TX
    if (unfinished_packet(inner, end, packet))
        return XDP_PASS;
#endif
    entry = find_flow(&packet->tuple);
    if (wrapper.kind == TUNNEL_ANSWER) {
        if (!entry || (entry->flags & (FLOW_REPLY | FLOW_FORWARDED)) != (FLOW_REPLY | FLOW_FORWARDED) ||
            packet->hops <= 1 ||
            find_hop(context, packet, entry, &packet->tuple.source, &packet->tuple.destination, mac, packet->size,
                     arrival->now) != REASON_NONE)
            return XDP_PASS;
        action = send_answer(inner, end, packet, data, entry);
    } else {
        entry = take_in(arrival, packet, scratch, entry, node, &wrapper);
        if (!entry)
            return XDP_PASS;
        action = deliver(inner, end, packet, data, entry);
    }
    if (action != XDP_DROP && bpf_xdp_adjust_head(context, overhead)) {
        packet->reason = REASON_REWRITE_FAILED;
        return XDP_DROP;
    }
    packet->translated = action != XDP_DROP;
    *found = entry;
    return action == XDP_TX ? send(entry->hop_ifindex, arrival->ifindex) : action;
}

/* Called with a parsed packet that another node forwarded. */
PROGRAM(xdp_unwrap)(struct xdp_md *context) {
    struct arrival arrival = {
        .context = context, .node = this_node(), .hook = HOOK_XDP, .ifindex = context->ingress_ifindex};
    struct scratch *scratch = this_scratch();
    struct translation *entry = 0;
    struct packet *packet;
    int action;

    if (!scratch)
        return XDP_PASS;
    packet = (struct packet *)scratch->packet;
    arrival.now = coarse_now(scratch);
    action = hide_value(scratch, unwrap(context, &arrival, packet, scratch, &entry));
    if (!packet->translated && action == XDP_PASS)
        packet->reason = REASON_LEFT_TO_TC;
    count(HOOK_XDP, packet->reason);
    if (entry && packet->translated) {
        emit_forwarded_event(&arrival, packet, scratch, entry);
        touch(packet, entry, arrival.now);
    } else if (action == XDP_DROP) {
        emit_packet_event(&arrival, packet, ~0U, 0);
    }
    return action;
}
