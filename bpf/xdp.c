/* XDP on uplinks, before the kernel allocates a socket buffer. It translates and redirects flows with SNAT: packets to
 * remote backends and their replies. Everything else goes unchanged to tc on the same device, which uses the same flow
 * tables: packets of a local backend need tc at egress anyway, and translating a GRO packet there once is cheaper than
 * translating each of its segments here; fragments and ICMP errors are rare. Packets of clients whose backend is of a
 * node that takes them as they are go into the tunnel to it (forward.c); what comes out of one has a program of its own
 * (xdp_forward.c).
 *
 * NO_XDP_TX is for veth, whose driver does not wake the other end after XDP_TX unless that has an XDP program too;
 * frames would lie there until something else is sent. It does after a redirect.
 *
 * ONLY_GENERAL is for tests: everything by the general code, without the short way of established.h.
 *
 * When XDP has chosen a backend but cannot send the packet on (the neighbour's address is not known, say), it stores
 * the flow all the same: choosing again in tc would favour backends that XDP cannot serve. */
#include "parse.h"

#include "established.h"
#include "forward_event.h"
#include "one_way.h"
#include "xdp_send.h"

/* Put a client's packet into the tunnel to the endpoint's node. Returns the verdict; if that is not to redirect,
 * packet->reason says why. */
INLINE int forward(struct xdp_md *context, const struct arrival *arrival, struct packet *packet,
                   struct translation *entry) {
    const struct address *from = tunnel_source(arrival->node, packet->ipv4);
    const struct tunnel *to = tunnel_to(entry->tunnel, packet->ipv4);
    __u32 format = to ? to->format : 0, size = packet->size + tunnel_overhead(packet, format);
    __be16 port = tunnel_source_port(&packet->tuple);
    enum reason found = packet->reason;

    packet->reason = REASON_LEFT_TO_TC;
    if (!to || packet->hops <= 1)
        return XDP_PASS;
    packet->reason = find_hop(context, packet, entry, from, &to->address, packet->mac, size, arrival->now);
    if (packet->reason != REASON_NONE)
        return XDP_PASS;
    packet->reason = REASON_REWRITE_FAILED;
    if (packet->ipv4 ? encapsulate(context, arrival->node, entry, &to->address, format, packet->size, port,
                                   tunnel_sum(from, &to->address), 1)
                     : encapsulate(context, arrival->node, entry, &to->address, format, packet->size, port, 0, 0))
        return XDP_DROP;
    packet->reason = found;
    packet->translated = 1;
    count(HOOK_XDP, REASON_FORWARDED);
    return send(entry->hop_ifindex, arrival->ifindex);
}

/* Translate and redirect, or forward. Returns as forward(). */
INLINE int translate(struct xdp_md *context, const struct arrival *arrival, struct packet *packet,
                     struct translation *entry) {
    enum reason found = packet->reason;
    struct ethhdr *ethernet;
    void *data, *end;

    if ((entry->flags & (FLOW_FORWARDED | FLOW_REPLY)) == FLOW_FORWARDED)
        return forward(context, arrival, packet, entry);
    packet->reason = REASON_LEFT_TO_TC;
    if (!(entry->flags & FLOW_SNAT))
        return XDP_PASS;
    packet->reason = REASON_TTL;
    if (packet->hops <= 1)
        return XDP_PASS;
    packet->reason =
        find_hop(context, packet, entry, &entry->source, &entry->destination, packet->mac, packet->size, arrival->now);
    if (packet->reason != REASON_NONE)
        return XDP_PASS;
    packet->reason = found;
    data = (void *)(long)context->data;
    end = (void *)(long)context->data_end;
    ethernet = data;
    if ((void *)(ethernet + 1) > end || rewrite_packet(data, end, packet, entry, 1)) {
        packet->reason = REASON_REWRITE_FAILED;
        return XDP_DROP;
    }
    copy_macs(ethernet->h_dest, entry->hop_destination);
    packet->translated = 1;
    return send(entry->hop_ifindex, arrival->ifindex);
}

/* Read a packet. REASON_NONE: it is one for here, of a flow perhaps; what another node may have forwarded is another
 * program's. */
INLINE enum reason read_frame(struct xdp_md *context, const struct arrival *arrival, struct packet *packet) {
    void *data = (void *)(long)context->data, *end = (void *)(long)context->data_end;
    enum reason reason = hide_reason(packet, parse(data, end, end - data, 0, packet));

    if (unlikely(reason == REASON_PROTOCOL) && may_be_ipip(arrival->node, packet) && !(*(__u8 *)packet->mac & 1)) {
        call_xdp(context, XDP_PROGRAM_UNWRAP);
        reason = REASON_LEFT_TO_TC;
    }
    reason = hide_reason(packet, reason);
    if (reason != REASON_NONE)
        return reason;
    if (packet->kind != PACKET_WHOLE || packet->tagged)
        return REASON_LEFT_TO_TC;
    if (*(__u8 *)packet->mac & 1)
        return REASON_NOT_FOR_US; /* a group address */
#ifdef NO_XDP_TX
    if (unfinished_packet(data, end, packet))
        return REASON_LEFT_TO_TC;
#endif
    if (unlikely(is_wrapped(arrival->node, packet))) {
        call_xdp(context, XDP_PROGRAM_UNWRAP);
        return REASON_LEFT_TO_TC;
    }
    return REASON_NONE;
}

/* Count and report what became of a packet, and keep its flow's account. `reason`: of its flow. */
INLINE void tell(const struct arrival *arrival, struct packet *packet, struct scratch *scratch,
                 struct translation *entry, __u32 service, enum reason reason, int action) {
    /* Who watches is told of a flow that begins here and is left to tc: to tc it goes on. */
    int begins = action == XDP_PASS && (reason == REASON_NEW_FLOW || reason == REASON_MOVED);

    count(HOOK_XDP, packet->reason);
    if (begins)
        packet->reason = REASON_BEGUN;
    if (entry && (entry->flags & FLOW_FORWARDED) && action != XDP_DROP)
        emit_forwarded_event(arrival, packet, scratch, entry);
    else
        emit_packet_event(arrival, packet, service, begins || packet->translated ? entry : 0);
    if (!entry || !packet->translated)
        return;
    if (packet->reason == REASON_NEW_FLOW ||
        packet->reason == REASON_MOVED) /* its entry has the first numbers already */
        account(entry, packet->size, arrival->now);
    else
        touch_forwarded(packet, entry, arrival->now);
}

/* A packet that the short way is not for. Returns the verdict. */
INLINE int handle(struct xdp_md *context, const struct arrival *arrival, struct scratch *scratch) {
    struct packet *packet = new_packet(scratch);
    struct translation *entry = 0;
    int action = XDP_PASS;
    __u32 service = ~0U;
    enum reason reason;

#ifndef ONLY_GENERAL
    packet->no_flow = scratch->no_flow;
#endif
    reason = read_frame(context, arrival, packet);
    if (reason == REASON_NONE)
        reason = track(arrival, packet, &service, &entry);
    reason = hide_reason(packet, reason);
    if (entry && translates(reason)) {
        service = entry->service;
        action = translate(context, arrival, packet, entry);
    }
    tell(arrival, packet, scratch, entry, service, reason, action);
    return action;
}

PROGRAM(xdp_uplink)(struct xdp_md *context) {
    struct arrival arrival = {
        .context = context, .node = this_node(), .hook = HOOK_XDP, .ifindex = context->ingress_ifindex};
    struct scratch *scratch = this_scratch();

    if (!scratch || !(arrival.node->flags & NODE_READY)) {
        count(HOOK_XDP, REASON_NOT_READY);
        return XDP_PASS;
    }
    arrival.now = coarse_now(scratch);
#ifndef ONLY_GENERAL
    void *data = (void *)(long)context->data, *end = (void *)(long)context->data_end;
    int action = forward_established(context, data, end, arrival.ifindex, arrival.now, scratch);

    if (likely(action == XDP_TX))
        return send(arrival.ifindex, arrival.ifindex); /* the hop's device, see fast_path_usable() */
    if (action == XDP_PASS)
        return XDP_PASS;
#endif
    return handle(context, &arrival, scratch);
}
