/* From a parsed packet to the translation it needs, shared by all packet programs. */
#ifndef HOTPLANE_TRACK_H
#define HOTPLANE_TRACK_H

#include "capture.h"
#include "fragment.h"
#include "left.h"
#include "snat.h"
#include "tunnel.h"
#include "ways.h"

/* How a client gets to a backend of another node that must know its way back: FLOW_SNAT, or FLOW_FORWARDED, where the
 * Service has that and the backend's node takes such packets. Nodes as clients get SNAT: nobody takes packets of a
 * node's address from another node. */
INLINE __u32 way_to_other_node(const struct packet *packet, const struct selection *chosen) {
#ifdef RAW_IP
    return FLOW_SNAT;
#else
    if (likely(!chosen->tunnel) || !(chosen->frontend_flags & FRONTEND_FORWARD) ||
        packet->source_class != SOURCE_OUTSIDE || map_lookup(MAP(tunnel_nodes), &packet->tuple.source))
        return FLOW_SNAT;
    return chosen->frontend_flags & FRONTEND_DSR ? FLOW_FORWARDED | FLOW_DSR : FLOW_FORWARDED;
#endif
}

/* What the flow needs beyond a new destination. A client whose backend runs here keeps its address even where the
 * policy masquerades: the answers pass this node anyway. A client that meets itself would answer itself directly. What
 * is delivered to a process of this node itself does not leave, and has no address of its way out to be given. */
INLINE __u32 new_flow_flags(const struct node *node, const struct selection *chosen, const struct packet *packet) {
    __u32 flags = chosen->backend_flags & BACKEND_HERE ? FLOW_LOCAL_BACKEND : 0;

    if (same_address(&chosen->address, &packet->tuple.source))
        return flags | FLOW_SNAT;
    if (!(chosen->route & ROUTE_MASQUERADE))
        return flags;
    if ((flags && !(node->flags & NODE_KUBE_PROXY_PARITY)) || (address_flags(&chosen->address) & ADDRESS_LOCAL))
        return flags;
    return flags | (flags ? FLOW_SNAT : way_to_other_node(packet, chosen));
}

/* Whether a packet of a flow that leaves by redirect comes in where its flow does, or could. What goes through the
 * stack is checked there. The device of answers is learnt from the first of them. */
INLINE int comes_from_its_device(const struct arrival *arrival, const struct packet *packet,
                                 struct translation *entry) {
    if (!(entry->flags & (FLOW_SNAT | FLOW_FORWARDED)) || likely(entry->ifindex == arrival->ifindex))
        return 1;
    if (check_source(arrival, packet) != REASON_NONE)
        return 0;
    if (entry->flags & FLOW_REPLY)
        entry->ifindex = arrival->ifindex;
    return 1;
}

/* Describe the forward entry of a new flow in scratch->forward, all but a source that SNAT changes. */
INLINE void describe_forward(const struct arrival *arrival, const struct packet *packet, struct scratch *scratch,
                             const struct selection *chosen) {
    struct translation *forward = &scratch->forward;

    __builtin_memset(forward, 0, sizeof(*forward));
    forward->flags = new_flow_flags(arrival->node, chosen, packet);
    if (!host_time(HOST_ROUTING_UNTIL)) /* should host routing begin one day, it is for new flows */
        forward->flags |= FLOW_BY_STACK;
    if (arrival->hook == HOOK_XDP)
        forward->flags |= FLOW_BY_XDP;
    copy_address(&forward->destination, &chosen->address);
    copy_address(&forward->source, &packet->tuple.source);
    forward->destination_port = chosen->port;
    forward->source_port = packet->tuple.source_port;
    if (unlikely(forward->flags & FLOW_FORWARDED)) {
        forward->tunnel = chosen->tunnel;
        forward->endpoint = endpoint_digest(&chosen->address, chosen->port, packet->tuple.protocol);
        copy_address(&forward->destination, &packet->tuple.destination);
        forward->destination_port = packet->tuple.destination_port;
    }
    forward->backend = chosen->backend;
    forward->backend_generation = chosen->backend_generation;
    forward->service = chosen->service;
    forward->ifindex = arrival->ifindex;
    forward->last_ns = arrival->now;
    if (packet->protocol == IPPROTO_UDP)
        forward->begun = coarse_time(arrival->now);
}

/* Who asks, and whether flows of this source are opened here at all. */
INLINE enum reason describe_client(const struct arrival *arrival, struct packet *packet, struct client *client) {
    __u32 ifindex = arrival->ifindex;
    struct device *device = map_lookup(MAP(devices), &ifindex);
    __u32 roles = device ? device->flags : 0;

    if (arrival->hook == HOOK_XDP && !(device && same_mac(packet->mac, device->mac)))
        return REASON_NOT_FOR_US;
    packet->source_class = classify(arrival->node, &packet->tuple.source, !!(roles & DEVICE_DETECTED));
    barrier();
    client->source = packet->source_class;
    if (client->source == SOURCE_NODE)
        return REASON_OWN_SOURCE;
    /* A pod of another node may have been translated there when it asked for other frontends, and such flows pass here
     * addressed to the endpoint: only connection tracking has seen them, and knows which of the pod's ports are free.
     * Where no CIDR tells, pods of other nodes are strangers. To be decided before a backend is chosen: who left only
     * what goes to some backends to the slow path, which chooses again, would send too much to the others. */
    client->remote_pod = client->source == SOURCE_POD && !(roles & DEVICE_POD);
    client->masquerades_all = !!(arrival->node->flags & NODE_KUBE_PROXY_PARITY);
    return REASON_NONE;
}

/* True if a packet to a frontend on one of the node's own addresses may be for a local socket: UDP, which may be a
 * reply, or a process that listens on a Service's address (a node-local DNS cache, for example), which takes
 * precedence. A node port belongs to its Service alone. */
INLINE int may_be_a_sockets(const struct tuple *tuple, const struct frontend_key *key) {
    return (tuple->protocol == IPPROTO_UDP || !is_unspecified(&key->address)) &&
           (address_flags(&tuple->destination) & ADDRESS_LOCAL);
}

/* Fill in the key of the frontend that a packet is addressed to. */
INLINE void name_frontend(const struct tuple *tuple, struct frontend_key *key) {
    __builtin_memset(key, 0, sizeof(*key));
    copy_address(&key->address, &tuple->destination);
    key->port = tuple->destination_port;
    key->protocol = tuple->protocol;
}

/* Whether a segment without an entry may be of a connection that another node took: of a client from outside, to a
 * frontend for which every node chooses alike and forwards, and no flow of the slow path, of which there would be an
 * entry (left.h). Where two nodes hold different sets (policy Local), they do not choose alike. */
INLINE int may_take_over(const struct arrival *arrival, const struct packet *packet) {
    __u32 wanted = FRONTEND_MAGLEV | FRONTEND_FORWARD;
    struct scratch *scratch = this_scratch();
    struct frontend *frontend;
    struct frontend_key *key;

    if (likely(!(arrival->node->flags & NODE_TAKES_OVER)) || (packet->tcp_flags & TCP_SYN) ||
        !(packet->tcp_flags & (TCP_ACK | TCP_RST)) || !scratch)
        return 0;
    key = (struct frontend_key *)scratch->work; /* on the stack it would be one more state to the verifier */
    name_frontend(&packet->tuple, key);
    frontend = find_frontend(key);
    return frontend && (frontend->flags & wanted) == wanted &&
           (route_of(frontend, SOURCE_OUTSIDE) & (ROUTE_LOCAL | ROUTE_MASQUERADE)) == ROUTE_MASQUERADE;
}

/* Describe a connection that goes on here, of which the first node saw the beginning: as far as is known, all of it
 * has been heard of. Where answers do not pass, only another segment makes it last. REASON_TCP_NO_SYN: its endpoint
 * would take the client for another one. */
INLINE enum reason describe_taken_over(const struct packet *packet, struct translation *forward) {
    if (packet->source_class != SOURCE_OUTSIDE || (forward->flags & FLOW_SNAT))
        return REASON_TCP_NO_SYN;
    if (!(forward->flags & FLOW_DSR))
        forward->flags |= FLOW_SEEN_REPLY | FLOW_ESTABLISHED;
    forward->acknowledged = packet->acknowledged;
    forward->sequence_end = segment_end(packet);
    return REASON_NONE;
}

/* Count a flow that was stored just now, and return in *found the entry in the map, not the copy, so that the caller
 * updates the stored one. What was taken over is no new connection. */
INLINE enum reason count_flow(const struct arrival *arrival, const struct packet *packet, __u32 service,
                              struct translation **found) {
    struct service_counters *counters;

    *found = find_flow(&packet->tuple);
    if (!*found)
        return REASON_CHANGED;
    if (unlikely(packet->taken_over)) {
        count(arrival->hook, REASON_TAKEN_OVER);
        return REASON_FLOW;
    }
    counters = counters_of(service);
    if (counters)
        counters->connections += 1;
    return REASON_NEW_FLOW;
}

/* Whether a SYN that is addressed to an endpoint is that of a flow from the tunnel, whose answers' entry is `holder`:
 * XDP takes it out, and translates it, before tc sees it. */
INLINE int taken_out(const struct packet *packet, struct scratch *scratch, struct translation *holder) {
    struct translation *other;

    if (likely(!(holder->flags & FLOW_TUNNELED)))
        return 0;
    other = find_other(&scratch->reply_key, holder, &scratch->forward_key);
    return other && near(segment_end(packet), other->sequence_end, FOLLOW_WINDOW);
}

/* A connection straight to an endpoint from a port that the client uses through a frontend, too: its answers would be
 * taken for that flow's, and the endpoint could not tell the two apart. So it becomes a flow to the same backend,
 * `chosen`, of no Service, from another port; also while that flow closes, as the endpoint may be behind what was seen
 * here. REASON_NONE: `chosen` is filled in, *holder is the entry of that flow's answers, under scratch->reply_key. */
INLINE enum reason beside_flow(const struct arrival *arrival, struct packet *packet, struct scratch *scratch,
                               struct selection *chosen, struct translation **holder) {
    struct translation *answers;

    if (packet->protocol != IPPROTO_TCP || !opens_connection(packet) || arrival->hook == HOOK_XDP)
        return REASON_NOT_SERVICE;
    reverse_tuple(&packet->tuple, &scratch->reply_key);
    answers = find_flow(&scratch->reply_key);
    if (likely(!answers) || !answers_client(answers) || !(flow_flags(answers) & FLOW_SEEN_REPLY) ||
        taken_out(packet, scratch, answers)) /* unanswered: the ends may be those of a connection that lives already */
        return REASON_NOT_SERVICE;
    __builtin_memset(chosen, 0, sizeof(*chosen));
    copy_address(&chosen->address, &packet->tuple.destination);
    chosen->port = packet->tuple.destination_port;
    chosen->backend = answers->backend;
    chosen->backend_generation = answers->backend_generation;
    chosen->service = ~0U;
    packet->port_taken = 1;
    *holder = answers;
    return REASON_NONE;
}

/* Have XDP leave a flow from the tunnel to tc, whose packets would look like those of the connection beside it. */
INLINE void note_beside(struct scratch *scratch, struct translation *holder) {
    struct translation *other;

    if (!(holder->flags & FLOW_TUNNELED))
        return;
    other = find_other(&scratch->reply_key, holder, &scratch->forward_key);
    if (other)
        note(other, holder, FLOW_BESIDE);
}

/* Choose the backend of a new flow. REASON_NONE: `chosen` has it, and *service is known; *holder as beside_flow() says,
 * 0 = the flow is a Service's. Everything else: the packet is passed on. */
INLINE enum reason choose(const struct arrival *arrival, struct packet *packet, struct scratch *scratch,
                          struct selection *chosen, __u32 *service, struct translation **holder) {
    const struct tuple *tuple = &packet->tuple;
    struct client client = {.identity = tuple->source, .address_known = 1, .accepts_masquerade = 1, .flow = tuple};
    struct frontend_key *key = (struct frontend_key *)&scratch->forward_key; /* not on the stack: see new_packet() */
    struct frontend *frontend;
    enum reason reason;

    _Static_assert(sizeof(struct balancing) <= sizeof(scratch->work), "struct balancing outgrew its room");
    name_frontend(tuple, key);
    frontend = find_frontend(key);
    if (likely(!frontend)) { /* most packets without a flow are no Service's: who sends them is not asked */
        reason = hide_reason(packet, beside_flow(arrival, packet, scratch, chosen, holder));
        if (likely(reason != REASON_NONE))
            return reason;
    }
    reason = hide_reason(packet, describe_client(arrival, packet, &client));
    if (reason != REASON_NONE || !frontend)
        return reason;
    client.remote_pod = hide_value(scratch, client.remote_pod);
    reason =
        hide_reason(packet, balance(key, frontend, &client, arrival->now, (struct balancing *)scratch->work, chosen));
    *service = chosen->service;
    if (reason != REASON_NONE)
        return reason;
    return may_be_a_sockets(tuple, key) && has_socket(arrival->context, tuple) ? REASON_OWN_PORT : REASON_NONE;
}

/* Describe the forward entry of a new flow in scratch->forward. */
INLINE enum reason describe_flow(const struct arrival *arrival, struct packet *packet, struct scratch *scratch,
                                 const struct selection *chosen, const struct translation *holder) {
    enum reason reason;

    describe_forward(arrival, packet, scratch, chosen);
    if (unlikely(packet->taken_over)) {
        reason = hide_reason(packet, describe_taken_over(packet, &scratch->forward));
        if (reason != REASON_NONE)
            return reason;
    }
    if (!holder && !(scratch->forward.flags & (FLOW_SNAT | FLOW_FORWARDED)))
        return REASON_NONE;
    reason = hide_reason(packet, check_source(arrival, packet));
    if (reason != REASON_NONE)
        return reason;
    return (scratch->forward.flags & FLOW_SNAT) &&
                   !own_address(arrival, packet, &chosen->address, &scratch->forward.source)
               ? REASON_FIB_MISS
               : REASON_NONE;
}

/* For tests: another processor stores a packet's flow after this one has reserved the tuple of its answers: the same
 * (-DOTHER_PROCESSOR=0), or one to another port. */
INLINE void open_window_for_flows(const struct packet *packet, struct scratch *scratch) {
#ifdef OTHER_PROCESSOR
    scratch->forward.destination_port += OTHER_PROCESSOR;
    insert_flow(&packet->tuple, &scratch->forward);
    scratch->forward.destination_port -= OTHER_PROCESSOR;
#endif
}

/* Whether the tuple of scratch->reply_key is that of a flow's answers. */
INLINE int has_answers(const struct translation *entry, struct scratch *scratch) {
    if (!entry)
        return 0;
    other_key(entry, scratch->reply_key.protocol, &scratch->forward_key);
    return same_ends(&scratch->forward_key, &scratch->reply_key);
}

/* Store the flow that scratch->forward describes. Returns as open_flow(). */
INLINE enum reason store_flow(const struct arrival *arrival, struct packet *packet, struct scratch *scratch,
                              __u32 service, struct translation **found) {
    enum reason reason, reserved = REASON_FLOW; /* nothing to take back */

    if (!(scratch->forward.flags & FLOW_DSR))
        reserved = hide_reason(packet, reserve_reply(arrival, packet, scratch));
    if (reserved != REASON_NONE && reserved != REASON_FLOW)
        return reserved;
    if (packet->protocol == IPPROTO_TCP)
        scratch->forward.sequence_end = segment_end(packet);
    open_window_for_flows(packet, scratch);
    reason = hide_reason(packet, insert_flow(&packet->tuple, &scratch->forward));
    if (reason == REASON_NONE)
        return count_flow(arrival, packet, service, found);
    *found = find_flow(&packet->tuple); /* another CPU was faster with a packet of this flow */
    if (reserved == REASON_NONE && !hide_value(scratch, has_answers(*found, scratch)))
        delete_flow(&scratch->reply_key);
    if (reason != REASON_TUPLE_TAKEN)
        return reason;
    return *found ? REASON_FLOW : REASON_CHANGED;
}

/* Choose a backend for the first packet of a flow and store the flow. REASON_NEW_FLOW: *found is the stored
 * entry; REASON_FLOW: likewise, of a flow that began elsewhere. Anything else: the packet is passed on, nothing was
 * stored. */
INLINE enum reason open_flow(const struct arrival *arrival, struct packet *packet, __u32 *service,
                             struct translation **found) {
    struct scratch *scratch = this_scratch();
    struct translation *holder = 0;
    struct selection *chosen;
    enum reason reason;

    if (!scratch)
        return REASON_INCONSISTENT;
    if (is_loopback(&packet->tuple.destination) || is_loopback(&packet->tuple.source))
        return REASON_LOOPBACK;
    _Static_assert(sizeof(*chosen) <= sizeof(scratch->chosen), "struct selection outgrew its room");
    chosen = (struct selection *)scratch->chosen;
    reason = choose(arrival, packet, scratch, chosen, service, &holder);
    if (reason != REASON_NONE)
        return reason;
    reason = describe_flow(arrival, packet, scratch, chosen, holder);
    if (reason != REASON_NONE)
        return reason;
    if (holder)
        note_beside(scratch, holder);
    return store_flow(arrival, packet, scratch, chosen->service, found);
}

/* Delete the flow of a local pod that now sends a datagram directly to the backend, from a port that it used through a
 * frontend before: replies would be ambiguous, and the direct path is the newer one. Only the pod that owns the flow
 * may do so; it is recognised by its device. */
INLINE void end_datagrams(const struct arrival *arrival, const struct packet *packet) {
    struct scratch *scratch = this_scratch();
    struct translation *entry;
    struct tuple *key;

    if (!scratch || packet->protocol != IPPROTO_UDP || !(device_flags(arrival->ifindex) & DEVICE_POD))
        return;
    key = &scratch->reply_key;
    reverse_tuple(&packet->tuple, key);
    entry = find_flow(key);
    if (likely(!entry) || (entry->flags & (FLOW_REPLY | FLOW_SNAT)) != FLOW_REPLY)
        return;
    entry = find_other(key, entry, &scratch->forward_key);
    if (!entry || entry->ifindex != arrival->ifindex)
        return;
    delete_flow(&scratch->forward_key);
    delete_flow(key);
}

/* Whether a packet, if it is a client's, is the stack's for its IPv4 options: that may be told what becomes of some
 * (accept_source_route). */
INLINE int asks_with_options(const struct arrival *arrival, const struct packet *packet) {
    return arrival->hook != HOOK_XDP && packet->extended && packet->ipv4;
}

/* What becomes of a client's flow that begins anew: from another port where the last one was taken. */
INLINE void note_port(struct packet *packet, const struct translation *entry) {
    packet->port_taken = !!(flow_flags(entry) & FLOW_PORT_TAKEN);
}

/* Classify a packet that arrived at a client-side hook by its flow's entry. REASON_NONE: the entry is obsolete. */
INLINE enum reason follow_entry(const struct arrival *arrival, struct packet *packet, struct translation *entry) {
    if (entry->flags & FLOW_FOREIGN)
        entry->last_ns = arrival->now;
    if (entry->flags & FLOW_LEFT)
        return packet->protocol == IPPROTO_TCP ? note_left_segment(packet, entry) : REASON_LEFT_FLOW;
    if ((entry->flags & FLOW_FOREIGN) || (entry->flags & (FLOW_REPLY | FLOW_SNAT)) == FLOW_REPLY)
        return REASON_OTHER_EDGE;
    if (packet->kind == PACKET_ICMP_ERROR)
        return REASON_ICMP_ERROR;
    if (unlikely(asks_with_options(arrival, packet)) && !(entry->flags & FLOW_REPLY))
        return REASON_IP_OPTIONS;
    if (!comes_from_its_device(arrival, packet, entry))
        return REASON_REVERSE_PATH;
    if (packet->kind == PACKET_LATER_FRAGMENT)
        return REASON_FRAGMENT;
    if (entry->flags & FLOW_REPLY)
        return flow_flags(entry) & FLOW_RESTING ? REASON_RESTING : REASON_REPLY;
    if (unlikely(flow_flags(entry) & FLOW_PORT_TAKEN) && !opens_connection(packet))
        return arrival->hook == HOOK_XDP ? REASON_LEFT_TO_TC : REASON_PORT_TAKEN;
    if (unlikely(!usable(arrival->node, packet, entry, arrival->now)))
        return REASON_NONE;
    if (unlikely((entry->packets & CHECK_PACKETS) == CHECK_PACKETS || opens_connection(packet)) &&
        !other_is_there(packet, entry))
        return REASON_NONE;
    return REASON_FLOW;
}

/* REASON_NONE: a flow may be opened for a packet without an entry. */
INLINE enum reason whether_opens(const struct arrival *arrival, struct packet *packet) {
    if (unlikely(asks_with_options(arrival, packet)))
        return REASON_IP_OPTIONS;
    if (packet->protocol != IPPROTO_TCP || opens_connection(packet))
        return REASON_NONE;
    packet->taken_over = may_take_over(arrival, packet);
    return packet->taken_over ? REASON_NONE : REASON_TCP_NO_SYN;
}

/* Find the translation of a packet at a hook where clients' packets arrive. *found is set with REASON_NEW_FLOW,
 * _MOVED, _FLOW, _REPLY, _FRAGMENT and _ICMP_ERROR; every other reason passes the packet on. */
INLINE enum reason track(const struct arrival *arrival, struct packet *packet, __u32 *service,
                         struct translation **found) {
    struct translation *entry;
    struct scratch *scratch;
    enum reason reason;

    if (packet->kind == PACKET_LATER_FRAGMENT && !recall_fragment(packet, arrival->now))
        return REASON_FRAGMENT_UNKNOWN;
    entry = packet->no_flow ? 0 : find_flow(&packet->tuple);
    if (entry) {
        reason = hide_reason(packet, follow_entry(arrival, packet, entry));
        if (reason != REASON_NONE) {
            *found = entry;
            return reason;
        }
        scratch = this_scratch();
        note_port(packet, entry);
        if (scratch)
            forget_flow(&packet->tuple, entry, &scratch->reply_key);
    }
    if (packet->kind == PACKET_ICMP_ERROR)
        return REASON_ICMP_UNRELATED;
    if (packet->kind == PACKET_LATER_FRAGMENT)
        return REASON_FRAGMENT_UNKNOWN;
    reason = hide_reason(packet, whether_opens(arrival, packet));
    if (reason != REASON_NONE)
        return reason;
    reason = open_flow(arrival, packet, service, found);
    if (reason == REASON_NOT_SERVICE && arrival->hook != HOOK_XDP)
        end_datagrams(arrival, packet);
    return reason == REASON_NEW_FLOW && packet->moved ? REASON_MOVED : reason;
}

/* Whether a segment that comes by the tuple of a flow's answers may be of another connection between the same ends.
 * Until the backend has acknowledged the client's SYN it sends nothing but that, or a reset; a living connection
 * acknowledges its own numbers (RFC 5961, section 4) or sends data. */
INLINE int may_be_another(const struct packet *packet, const struct translation *entry) {
    return packet->protocol == IPPROTO_TCP && unlikely(!(flow_flags(entry) & FLOW_SEEN_REPLY)) &&
           (packet->tcp_flags & (TCP_SYN | TCP_RST | TCP_ACK)) == TCP_ACK;
}

/* Whether it is, and not to be translated. The first such segment still goes to the flow's client, which resets what it
 * never asked for and sends its SYN again at once (RFC 9293, section 3.10.7.3). The reset must not reach the other
 * connection (REASON_PORT_TAKEN), and the SYN gets another port. */
INLINE int another_connection(const struct packet *packet, struct translation *entry) {
    struct scratch *scratch = this_scratch();

    if (flow_flags(entry) & FLOW_PORT_TAKEN)
        return 1;
    if (may_be_another(packet, entry) && packet->kind == PACKET_WHOLE && scratch)
        note(entry, find_other(&packet->tuple, entry, &scratch->forward_key), FLOW_PORT_TAKEN | FLOW_RST_REPLY);
    return 0;
}

/* Find the translation of a reply at the hook where it leaves towards its client. */
INLINE enum reason track_leaving(const struct arrival *arrival, struct packet *packet, struct translation **found) {
    struct translation *entry;

    if (packet->kind == PACKET_LATER_FRAGMENT && !recall_fragment(packet, arrival->now))
        return REASON_FRAGMENT_UNKNOWN;
    entry = find_flow(&packet->tuple);
    if (!entry || !answers_client(entry) || unlikely(another_connection(packet, entry))) {
        note_leaving(arrival->node, packet, arrival->now);
        return packet->kind == PACKET_ICMP_ERROR ? REASON_ICMP_UNRELATED : REASON_NOT_TRANSLATED;
    }
    *found = entry;
    if (packet->kind == PACKET_ICMP_ERROR)
        return REASON_ICMP_ERROR;
    return packet->kind == PACKET_LATER_FRAGMENT ? REASON_FRAGMENT : REASON_REPLY;
}

/* True if a packet with this reason is translated. */
INLINE int translates(enum reason reason) {
    return reason == REASON_FLOW || reason == REASON_REPLY || reason == REASON_NEW_FLOW || reason == REASON_MOVED ||
           reason == REASON_FRAGMENT || reason == REASON_ICMP_ERROR;
}

/* Write an event to the ring buffer if this packet is watched. */
INLINE void emit_packet_event(const struct arrival *arrival, const struct packet *packet, __u32 service,
                              const struct translation *entry) {
    struct event *event;

    if (unlikely(drops(packet->reason)))
        capture_packet(arrival, packet, service);
    if (likely(!watched(arrival->hook, packet->protocol, service, arrival->now)))
        return;
    event = bpf_ringbuf_reserve((void *)MAP(events), sizeof(*event), 0);
    if (!event)
        return;
    event->ns = bpf_ktime_get_ns(); /* arrival->now is a tick's */
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
