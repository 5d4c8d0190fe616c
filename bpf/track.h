/* From a parsed packet to the translation it needs, shared by all packet programs. */
#ifndef HOTPLANE_TRACK_H
#define HOTPLANE_TRACK_H

#include "fib.h"
#include "fragment.h"
#include "snat.h"

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

/* Whether a frame is addressed to the device that it came in by: in promiscuous mode, and when a switch floods, there
 * are others. */
INLINE int addressed_to_device(const struct packet *packet, __u32 ifindex) {
    struct device *device = map_lookup(MAP(devices), &ifindex);
    return device && same_mac(packet->mac, device->mac);
}

/* What the flow needs beyond a new destination. A client whose backend runs here keeps its address even where the
 * policy masquerades: the answers pass this node anyway. A client that meets itself would answer itself directly. */
INLINE __u32 flow_flags(const struct node *node, const struct selection *chosen, const struct address *client) {
    __u32 flags = chosen->backend_flags & BACKEND_HERE ? FLOW_LOCAL_BACKEND : 0;

    if (same_address(&chosen->address, client))
        return flags | FLOW_SNAT;
    if (!(chosen->route & ROUTE_MASQUERADE))
        return flags;
    if (!flags || (node->flags & NODE_KUBE_PROXY_PARITY))
        flags |= FLOW_SNAT;
    return flags;
}

/* Whether a socket of the node's own namespace would get a datagram that goes to a frontend on one of its addresses: it
 * may be the answer to a question of that socket's, whose port has the number of a node port. */
INLINE int has_own_port(const struct arrival *arrival, const struct tuple *tuple) {
    int ipv4 = is_ipv4(&tuple->destination);
    struct bpf_sock_tuple ports;
    struct bpf_sock *found;

    if (!own_datagram(tuple->protocol, &tuple->destination))
        return 0;
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
    found = bpf_sk_lookup_udp(arrival->context, &ports, ipv4 ? sizeof(ports.ipv4) : sizeof(ports.ipv6),
                              BPF_F_CURRENT_NETNS, 0);
    if (!found)
        return 0;
    bpf_sk_release(found);
    return 1;
}

/* Choose a backend for the first packet of a flow and store the flow. REASON_NEW_FLOW: *found is what to do with the
 * packet. Anything else: the packet is passed on, nothing was stored. */
INLINE enum reason open_flow(const struct arrival *arrival, struct packet *packet, __u32 *service,
                             struct translation **found) {
    const struct node *node = arrival->node;
    const struct tuple *tuple = &packet->tuple;
    struct frontend_key key = {
        .address = tuple->destination, .port = tuple->destination_port, .protocol = tuple->protocol};
    struct client client = {.identity = tuple->source, .address_known = 1, .accepts_masquerade = 1};
    struct scratch *scratch = this_scratch();
    __u32 device = device_flags(arrival->ifindex);
    struct service_counters *counters;
    struct selection *chosen;
    enum reason reason;
    int shared = 0, pending;

    if (!scratch)
        return REASON_INCONSISTENT;
    _Static_assert(sizeof(*chosen) <= sizeof(scratch->chosen), "struct selection outgrew its room");
    chosen = (struct selection *)scratch->chosen;
    if (arrival->hook == HOOK_XDP && !addressed_to_device(packet, arrival->ifindex))
        return REASON_NOT_FOR_US;
    if (is_loopback(&tuple->destination) || is_loopback(&tuple->source))
        return REASON_LOOPBACK;
    packet->source_class = classify(node, &tuple->source, !!(device & DEVICE_DETECTED));
    barrier();
    client.source = packet->source_class;
    if (client.source == SOURCE_NODE)
        return REASON_OWN_SOURCE;
    /* A pod of another node may have been translated there when it asked for other frontends, and such flows pass here
     * addressed to the endpoint: only connection tracking has seen them, and knows which of the pod's ports are free.
     * Where no CIDR tells, pods of other nodes are strangers. To be decided before a backend is chosen: who left only
     * what goes to some backends to the slow path, which chooses again, would send too much to the others. */
    client.remote_pod = client.source == SOURCE_POD && !(device & DEVICE_POD);
    client.masquerades_all = !!(node->flags & NODE_KUBE_PROXY_PARITY);
    reason = settle(packet, balance(&key, &client, arrival->now, chosen));
    *service = chosen->service;
    if (reason != REASON_NONE)
        return reason;
    if (has_own_port(arrival, tuple))
        return REASON_OWN_PORT;
    scratch->forward.flags = flow_flags(node, chosen, &tuple->source);
    if (arrival->hook == HOOK_XDP)
        scratch->forward.flags |= FLOW_BY_XDP;
    copy_address(&scratch->forward.destination, &chosen->address);
    copy_address(&scratch->forward.source, &tuple->source);
    scratch->forward.destination_port = chosen->port;
    scratch->forward.source_port = tuple->source_port;
    scratch->forward.backend = chosen->backend;
    scratch->forward.backend_generation = chosen->backend_generation;
    scratch->forward.service = chosen->service;
    scratch->forward.ifindex = arrival->ifindex;
    scratch->forward.last_ns = arrival->now;
    scratch->forward.packets = scratch->forward.bytes = 0;
    scratch->forward.hop_until_ns = 0;
    if ((scratch->forward.flags & FLOW_SNAT) && !masquerade_address(arrival->context, node, packet, &chosen->address,
                                                                    arrival->ifindex, &scratch->forward.source))
        return REASON_FIB_MISS;
    reason = settle(packet, reserve_reply(node, tuple, scratch, arrival->now, &shared));
    if (reason != REASON_NONE)
        return reason;
    if (map_update(MAP(pending), tuple, &scratch->forward, BPF_NOEXIST)) {
        if (!shared)
            map_delete(MAP(pending), &scratch->reply_key);
        *found = find_flow(tuple, &pending); /* another CPU was faster with a packet of this flow */
        return *found ? REASON_FLOW : REASON_MAP_FULL;
    }
    counters = counters_of(chosen->service);
    if (counters)
        counters->connections += 1;
    /* What the caller gets must be the stored entry, so that what it notes there stays. */
    *found = map_lookup(MAP(pending), tuple);
    return *found ? REASON_NEW_FLOW : REASON_MAP_FULL;
}

/* A client that talks to a backend directly from a port from which it came through a frontend before: the answers could
 * be either's, and the direct way is the newer one. */
INLINE void make_way(const struct packet *packet) {
    struct scratch *scratch = this_scratch();
    struct translation *entry;
    struct tuple *key;
    int pending;

    if (!scratch)
        return;
    key = &scratch->reply_key;
    copy_address(&key->source, &packet->tuple.destination);
    copy_address(&key->destination, &packet->tuple.source);
    key->source_port = packet->tuple.destination_port;
    key->destination_port = packet->tuple.source_port;
    key->protocol = packet->tuple.protocol;
    key->pad[0] = key->pad[1] = key->pad[2] = 0;
    entry = find_flow(key, &pending);
    if (unlikely(entry) && (entry->flags & (FLOW_REPLY | FLOW_SNAT)) == FLOW_REPLY &&
        (packet->protocol != IPPROTO_TCP || closed(entry->flags)))
        forget_flow(key, entry, &scratch->forward_key);
}

/* The translation that a packet needs at a hook where clients' packets come in. *found is set with REASON_NEW_FLOW,
 * _MOVED, _FLOW, _REPLY, _FRAGMENT and _ICMP_ERROR; every other reason passes the packet on. */
INLINE enum reason track(const struct arrival *arrival, struct packet *packet, __u32 *service,
                         struct translation **found) {
    struct translation *entry;
    struct scratch *scratch;
    int pending;
    enum reason reason;

    if (packet->kind == PACKET_LATER_FRAGMENT && !recall_fragment(packet, arrival->now))
        return REASON_FRAGMENT_UNKNOWN;
    pending = 1;
    entry = packet->not_established ? map_lookup(MAP(pending), &packet->tuple) : find_flow(&packet->tuple, &pending);
    if (entry) {
        if ((entry->flags & (FLOW_REPLY | FLOW_SNAT)) == FLOW_REPLY)
            return REASON_OTHER_EDGE;
        *found = entry;
        if (packet->kind == PACKET_ICMP_ERROR)
            return REASON_ICMP_ERROR;
        if (packet->kind == PACKET_LATER_FRAGMENT)
            return REASON_FRAGMENT;
        if (entry->flags & FLOW_REPLY) {
            if (pending)
                note_answer(&packet->tuple, entry);
            else if (unlikely((packet->tcp_flags & TCP_SYN) && closed(entry->flags)))
                return REASON_NOT_TRANSLATED; /* another's connection, from the port of one that is over */
            return REASON_REPLY;
        }
        if (likely(usable(arrival->node, packet, entry, arrival->now))) {
            if (pending && maybe_answered(packet, entry) && promote(packet, entry, arrival->hook)) {
                entry = *found = map_lookup(MAP(connections), &packet->tuple);
                if (!entry)
                    return REASON_MAP_FULL;
            }
            if (likely((entry->packets & CHECK_PACKETS) != CHECK_PACKETS) || other_is_there(packet, entry))
                return REASON_FLOW;
        }
        scratch = this_scratch();
        if (scratch)
            forget_flow(&packet->tuple, entry, &scratch->reply_key);
    }
    if (packet->kind == PACKET_ICMP_ERROR)
        return REASON_ICMP_UNRELATED;
    if (packet->kind == PACKET_LATER_FRAGMENT)
        return REASON_FRAGMENT_UNKNOWN;
    if (packet->protocol == IPPROTO_TCP && !opens_connection(packet))
        return REASON_TCP_NO_SYN;
    reason = open_flow(arrival, packet, service, found);
    if (reason == REASON_NOT_SERVICE && arrival->hook != HOOK_XDP)
        make_way(packet);
    return reason == REASON_NEW_FLOW && packet->moved ? REASON_MOVED : reason;
}

/* The translation of an answer where it leaves towards its client. */
INLINE enum reason track_leaving(const struct arrival *arrival, struct packet *packet, struct translation **found) {
    struct translation *entry;
    int pending;

    if (packet->kind == PACKET_LATER_FRAGMENT && !recall_fragment(packet, arrival->now))
        return REASON_FRAGMENT_UNKNOWN;
    entry = find_flow(&packet->tuple, &pending);
    if (!entry || (entry->flags & (FLOW_REPLY | FLOW_SNAT)) != FLOW_REPLY)
        return packet->kind == PACKET_ICMP_ERROR ? REASON_ICMP_UNRELATED : REASON_NOT_TRANSLATED;
    *found = entry;
    if (packet->kind == PACKET_ICMP_ERROR)
        return REASON_ICMP_ERROR;
    if (packet->kind == PACKET_LATER_FRAGMENT)
        return REASON_FRAGMENT;
    if (pending)
        note_answer(&packet->tuple, entry);
    return REASON_REPLY;
}

/* Whether `reason` comes with a translation. */
INLINE int translates(enum reason reason) {
    return reason == REASON_FLOW || reason == REASON_REPLY || reason == REASON_NEW_FLOW || reason == REASON_MOVED ||
           reason == REASON_FRAGMENT || reason == REASON_ICMP_ERROR;
}

/* Hand an event to the watcher, if there is one. */
INLINE void tell_packet(const struct arrival *arrival, const struct packet *packet, __u32 service,
                        const struct translation *entry) {
    struct event *event;

    if (likely(!watched(arrival->hook, packet->protocol, service, arrival->now)))
        return;
    event = bpf_ringbuf_reserve((void *)MAP(events), sizeof(*event), 0);
    if (!event)
        return;
    event->ns = arrival->now;
    event->tuple = packet->tuple;
    __builtin_memset(&event->backend, 0, sizeof(event->backend));
    event->backend_port = 0;
    if (entry) {
        int reply = !!(entry->flags & FLOW_REPLY);

        event->backend = reply ? packet->tuple.source : entry->destination;
        event->backend_port = reply ? packet->tuple.source_port : entry->destination_port;
    }
    event->hook = arrival->hook;
    event->reason = packet->reason;
    event->service = service;
    event->ifindex = arrival->ifindex;
    event->length = packet->size;
    bpf_ringbuf_submit(event, 0);
}

#endif
