/* Taking in a client's packet that another node forwarded, at the endpoint's node: whether it may come, and its flow.
 */
#ifndef HOTPLANE_ADMIT_H
#define HOTPLANE_ADMIT_H

#include "track.h"

/* The Service of a forwarded packet's frontend, ~0 = none. A node port is at addresses of the node that the client
 * talks to, which are not known here, but no pod's and none of this node's own. */
INLINE __u32 service_of_frontend(const struct packet *packet) {
    struct frontend_key key = {.address = packet->tuple.destination,
                               .port = packet->tuple.destination_port,
                               .protocol = packet->tuple.protocol};
    struct frontend *frontend = map_lookup(MAP(frontends), &key);

    if (!frontend) {
        if (is_loopback(&key.address) || in_detector(&key.address) || is_martian(&key.address))
            return ~0U;
        key.address.word[3] = 0;
        if (!packet->ipv4)
            key.address.word[0] = key.address.word[1] = key.address.word[2] = 0;
        frontend = map_lookup(MAP(frontends), &key);
    }
    return frontend ? frontend->service : ~0U;
}

/* Whether a client may have this address: a node's and a pod's own packets are not forwarded. */
INLINE int may_be_client(const struct address *source) {
    return !is_martian(source) && !is_loopback(source) && !in_detector(source) &&
           !(address_flags(source) & ADDRESS_LOCAL) && !map_lookup(MAP(tunnel_nodes), source);
}

/* The backend of this node that another one means. 0 = it has gone. */
INLINE struct backend *find_endpoint(__u32 service, const struct wrapper *wrapper, __u8 protocol, __u32 wanted,
                                     __u32 *index) {
    struct endpoint_key key = {.service = service, .endpoint = wrapper->endpoint};
    struct backend *backend;
    __u32 *found;

    if (wrapper->named == SHORT_NAME)
        key.service |= SHORT_NAME_SERVICE;
    found = map_lookup(MAP(forwarded), &key);

    if (!found)
        return 0;
    *index = *found;
    backend = map_lookup(MAP(backends), index);
    if (!backend || backend->service != service || !(backend->flags & wanted) ||
        !names(wrapper, endpoint_digest(&backend->address, backend->port, protocol)))
        return 0;
    return backend;
}

/* Whether a backend's answers to a client will leave by a device with programs, without which nobody would translate
 * them, and whether the stack takes the client's packets from the device at hand (rp_filter, RFC 3704). */
INLINE enum reason check_way_back(const struct arrival *arrival, const struct packet *packet,
                                  const struct backend *backend) {
    __u32 ifindex = arrival->ifindex;
    struct device *device = map_lookup(MAP(devices), &ifindex);
    struct bpf_fib_lookup fib;

    if (!route_found(
            find_route(arrival->context, packet, &backend->address, &packet->tuple.source, ifindex, 0, 0, &fib)))
        return REASON_NO_WAY_OUT;
    if (device && fib.ifindex == device->ifindex) /* that of the bridge, on one of its ports */
        return REASON_NONE;
    if (!device_flags(fib.ifindex))
        return REASON_NO_WAY_OUT;
    return packet->ipv4 && device && (device->flags & DEVICE_STRICT) ? REASON_REVERSE_PATH : REASON_NONE;
}

/* Store the flow of a forwarded packet: the client's with a backend of this node. A connection that this node does not
 * know, of which another node's entry or table says that it lives, is continued: its endpoint knows best. */
INLINE enum reason open_tunneled(const struct arrival *arrival, struct packet *packet, struct scratch *scratch,
                                 __u32 service, const struct wrapper *wrapper) {
    int tcp = packet->protocol == IPPROTO_TCP, begins = !tcp || opens_connection(packet);
    __u32 wanted = !tcp ? BACKEND_SERVES : begins ? BACKEND_USABLE : ~0U;
    struct selection *chosen = (struct selection *)scratch->chosen;
    struct translation *forward = &scratch->forward;
    struct backend *backend;
    enum reason reason;
    __u32 index;

    backend = find_endpoint(service, wrapper, packet->protocol, wanted, &index);
    if (!backend)
        return REASON_TUNNEL_ENDPOINT;
    reason = hide_reason(packet, check_way_back(arrival, packet, backend));
    if (reason != REASON_NONE)
        return reason;
    __builtin_memset(chosen, 0, sizeof(*chosen));
    copy_address(&chosen->address, &backend->address);
    chosen->port = backend->port;
    chosen->backend_flags = BACKEND_HERE;
    chosen->backend = index;
    chosen->backend_generation = backend->generation;
    chosen->service = service;
    describe_forward(arrival, packet, scratch, chosen);
    forward->flags = FLOW_LOCAL_BACKEND | FLOW_TUNNELED;
    forward->endpoint = endpoint_digest(&backend->address, backend->port, packet->protocol);
    if (tcp) {
        forward->sequence_end = segment_end(packet);
        if (!begins) {
            forward->flags |= FLOW_SEEN_REPLY | FLOW_ESTABLISHED;
            forward->acknowledged = packet->acknowledged;
        }
    }
    reason = hide_reason(packet, reserve_answers(arrival, packet, scratch));
    if (reason != REASON_NONE && reason != REASON_FLOW)
        return reason;
    reverse_tuple(&scratch->reply_key, &scratch->forward_key);
    if (unlikely(find_flow(&scratch->forward_key) != 0)) /* of a connection beside this one: see note_beside() */
        forward->flags |= FLOW_BESIDE;
    reason = hide_reason(packet, insert_flow(&packet->tuple, forward));
    return reason == REASON_TUPLE_TAKEN ? REASON_NONE : reason; /* another processor was faster */
}

/* Whether a flow that is there stands for a forwarded packet, too. What begins goes to the endpoint that the other node
 * chose; what goes on stays where it is. */
INLINE int continues(const struct arrival *arrival, struct packet *packet, struct translation *entry,
                     const struct wrapper *wrapper) {
    if (entry->flags & (FLOW_REPLY | FLOW_FOREIGN))
        return 0;
    if (packet->protocol == IPPROTO_TCP && !opens_connection(packet))
        return !(flow_flags(entry) & FLOW_RESTING);
    return (entry->flags & FLOW_TUNNELED) && names(wrapper, entry->endpoint) &&
           usable(arrival->node, packet, entry, arrival->now);
}

/* Note where answers go. */
INLINE void note_way_back(const struct packet *packet, struct translation *entry, struct scratch *scratch, __u32 number,
                          __u32 kind) {
    __u32 back = kind == TUNNEL_ASK ? FLOW_BACK : 0;
    struct translation *reply;

    if (!(entry->flags & FLOW_TUNNELED))
        return;
    if (likely((entry->flags & FLOW_BACK) == back && entry->tunnel == number))
        return;
    reply = find_other(&packet->tuple, entry, &scratch->reply_key);
    if (!reply)
        return;
    reply->tunnel = number;
    reply->flags = (reply->flags & ~FLOW_BACK) | FLOW_TUNNELED | back;
    entry->tunnel = number;
    entry->flags = (entry->flags & ~FLOW_BACK) | back;
}

/* Take in a client's packet at the endpoint's node, whose ports are known. `entry`: of its tuple, if there is one.
 * REASON_NONE: now there is one for this packet. */
INLINE enum reason admit_tunneled(const struct arrival *arrival, struct packet *packet, struct scratch *scratch,
                                  __u32 node, const struct wrapper *wrapper, struct translation *entry) {
    enum reason reason;
    __u32 service;

    if (packet->kind == PACKET_ICMP_ERROR || packet->kind == PACKET_LATER_FRAGMENT)
        return entry ? REASON_NONE : REASON_ICMP_UNRELATED;
    if (!may_be_client(&packet->tuple.source))
        return REASON_TUNNEL_SOURCE;
    if (entry && (flow_flags(entry) & FLOW_PORT_TAKEN) && !opens_connection(packet))
        return REASON_PORT_TAKEN;
    if (entry && !hide_value(scratch, continues(arrival, packet, entry, wrapper))) {
        note_port(packet, entry);
        forget_flow(&packet->tuple, entry, &scratch->reply_key);
        entry = 0;
    }
    if (!entry) {
        if (node & TUNNEL_RETIRED)
            return REASON_TUNNEL_SENDER;
        service = hide_value(scratch, service_of_frontend(packet));
        if (service == ~0U)
            return REASON_TUNNEL_FRONTEND;
        reason = hide_reason(packet, open_tunneled(arrival, packet, scratch, service, wrapper));
        if (reason != REASON_NONE)
            return reason;
        entry = find_flow(&packet->tuple);
        if (!entry)
            return REASON_CHANGED;
    }
    note_way_back(packet, entry, scratch, node & TUNNEL_NUMBER, wrapper->kind);
    return REASON_NONE;
}

#endif
