/* Connect-time load balancing: connect(2) and sendmsg(2) to a frontend are redirected to a backend before any packet is
 * sent. Attached to a control group; IPv4, IPv6 and IPv4-mapped sockets share the code, since the maps store IPv4
 * addresses mapped. Every program returns 1 (allow): the slow path serves or rejects what the programs do not handle.
 */
#include "lookup.h"
#include "off.h"

enum socket_states {
    STATE_CONNECTED = 1, /* TCP_ESTABLISHED, of a UDP socket that has a peer */
};

/* Destination of a socket: the requested one, and after translate() the backend. */
struct target {
    struct address address;
    __be16 port;
    __u8 protocol;
};

/* 100::<cookie>, network order (the discard-only prefix of RFC 6666): represents, in events, the unknown source address
 * of sockets of a network namespace. */
INLINE struct address namespace_identity(__u64 cookie) {
    struct address identity = {.word = {to_be32(0x01000000), 0, to_be32(cookie >> 32), to_be32((__u32)cookie)}};
    return identity;
}

/* Describe the calling process as a client. A process in the node's own network namespace is the node; any other in
 * this control group is a local pod if the detector covers the address family. Routing to the backend chooses the
 * node's own source address, as masquerading would; a pod keeps its address unless kube-proxy parity is configured. The
 * socket has no address yet, except 127.0.0.1 or ::1 for loopback destinations. */
INLINE void describe_caller(const struct node *node, __u64 cookie, const struct address *target,
                            struct client *client) {
    __u32 detects = is_ipv4(target) ? NODE_DETECTS_IPV4 : NODE_DETECTS_IPV6;

    client->address_known = is_loopback(target);
    client->identity = client->address_known ? *target : namespace_identity(cookie);
    if (client->address_known && is_ipv4(target))
        client->identity.word[3] = to_be32(0x7f000001);
    client->source = cookie == node->netns_cookie ? SOURCE_NODE : (node->flags & detects) ? SOURCE_POD : SOURCE_OUTSIDE;
    client->accepts_masquerade = hide_on_stack(
        client->source == SOURCE_NODE ||
        (client->source == SOURCE_POD && !(node->flags & (NODE_MASQUERADE_ALL | NODE_KUBE_PROXY_PARITY))));
    client->address_known = hide_on_stack(client->address_known);
}

/* True for a loopback destination that is not a node port: only in the node's own network namespace, and only where
 * configured, do loopback addresses serve node ports. */
INLINE int stays_local(const struct node *node, const struct address *address, __u32 source) {
    if (!is_loopback(address))
        return 0;
    return source != SOURCE_NODE ||
           !(node->flags & (is_ipv4(address) ? NODE_LOOPBACK_NODE_PORTS : NODE_LOOPBACK_NODE_PORTS_IPV6));
}

/* Return the frontend key of a destination; all of 127.0.0.0/8 is looked up as 127.0.0.1. */
INLINE struct frontend_key key_of(const struct target *target) {
    struct frontend_key key = {.address = target->address, .port = target->port, .protocol = target->protocol};

    if (is_ipv4(&key.address) && is_loopback(&key.address))
        key.address.word[3] = to_be32(0x7f000001);
    return key;
}

INLINE void emit_event(enum hook hook, enum reason reason, const struct target *asked, const struct client *client,
                       const struct selection *chosen, __u64 now) {
    struct event event = {
        .ns = now,
        .tuple = {.source = client->identity,
                  .destination = asked->address,
                  .destination_port = asked->port,
                  .protocol = asked->protocol},
        .hook = hook,
        .reason = reason,
        .service = chosen->service,
    };

    if (reason == REASON_CONNECTED || reason == REASON_DATAGRAM) {
        event.backend = chosen->address;
        event.backend_port = chosen->port;
    }
    report(&event);
}

INLINE int same_target(const struct target *target, const struct address *address, __be16 port) {
    return target->port == port && same_address(&target->address, address);
}

/* True if this backend is alive and still belongs to this frontend. */
INLINE int still_serves(const struct target *frontend, __u32 index, __u32 generation) {
    struct frontend_key key = key_of(frontend);
    struct frontend *found = find_frontend(&key);
    struct backend *backend = live_backend(index, generation, BACKEND_SERVES);

    return found && backend && backend->service == found->service;
}

/* Store the frontend that a socket addressed and the backend that it uses. `flags`: enum peer_flags. */
INLINE long store_peer(__u64 cookie, const struct target *asked, const struct selection *chosen, __u8 flags,
                       __u64 now) {
    struct peer peer = {
        .frontend = asked->address,
        .backend = chosen->address,
        .frontend_port = asked->port,
        .backend_port = chosen->port,
        .protocol = asked->protocol,
        .flags = flags,
        .backend_index = chosen->backend,
        .backend_generation = chosen->backend_generation,
        .service = chosen->service,
        .last_ns = now,
    };

    return map_update(MAP(peers), &cookie, &peer, BPF_ANY);
}

INLINE void set_key(struct socket_key *key, __u64 cookie, const struct address *address, __be16 port, __u8 protocol,
                    int reply) {
    key->cookie = cookie;
    key->address = *address;
    key->port = port;
    key->protocol = protocol;
    key->reply = reply;
    key->pad = 0;
}

/* Store one more frontend of an unconnected socket. `left`: the slow path serves it from now on. */
INLINE long store_more(__u64 cookie, const struct target *asked, const struct selection *chosen, int left, __u64 now) {
    struct socket_key key;
    struct socket_peer value = {
        .address = asked->address,
        .port = asked->port,
        .flags = left ? PEER_LEFT : 0,
        .backend = chosen->backend,
        .backend_generation = chosen->backend_generation,
        .service = chosen->service,
        .last_ns = now,
    };

    set_key(&key, cookie, &chosen->address, chosen->port, asked->protocol, 1);
    if (!left && map_update(MAP(sockets), &key, &value, BPF_ANY))
        return -1;
    set_key(&key, cookie, &asked->address, asked->port, asked->protocol, 0);
    value.address = chosen->address;
    value.port = chosen->port;
    return map_update(MAP(sockets), &key, &value, BPF_ANY);
}

/* Stored choice of a socket for the frontend of a datagram. */
enum choice {
    CHOICE_NONE,
    CHOICE_BACKEND,
    CHOICE_LEFT, /* to the slow path */
};

/* Look up the choice of an unconnected socket for a frontend other than its first. */
INLINE enum choice later_choice(const struct node *node, __u64 cookie, struct target *target, __u64 now) {
    struct socket_peer *found;
    struct socket_key key;

    set_key(&key, cookie, &target->address, target->port, target->protocol, 0);
    found = map_lookup(MAP(sockets), &key);
    if (!found || older_than(found->last_ns, now, node->udp_stream_seconds))
        return CHOICE_NONE;
    if (!(found->flags & PEER_LEFT) && !still_serves(target, found->backend, found->backend_generation))
        return CHOICE_NONE;
    found->last_ns = now;
    if (found->flags & PEER_LEFT)
        return CHOICE_LEFT;
    target->address = found->address;
    target->port = found->port;
    return CHOICE_BACKEND;
}

/* Look up a socket's earlier choice for this frontend, which is valid while the backend serves and the flow is not
 * idle, as in connection tracking for UDP. A connected socket that names its own frontend keeps its backend. */
INLINE enum choice earlier_choice(const struct node *node, __u64 cookie, struct peer *peer, struct target *target,
                                  __u64 now) {
    if (!same_target(target, &peer->frontend, peer->frontend_port) || peer->protocol != target->protocol)
        return peer->flags & PEER_MORE ? later_choice(node, cookie, target, now) : CHOICE_NONE;
    if (!(peer->flags & PEER_CONNECTED) && older_than(peer->last_ns, now, node->udp_stream_seconds))
        return CHOICE_NONE;
    if (!still_serves(target, peer->backend_index, peer->backend_generation))
        return CHOICE_NONE;
    if (!(peer->flags & PEER_CONNECTED))
        peer->last_ns = now;
    target->address = peer->backend;
    target->port = peer->backend_port;
    return CHOICE_BACKEND;
}

/* True if a socket already uses this endpoint for another destination than `asked`: replies would be ambiguous. */
INLINE int known_by_another_name(const struct node *node, __u64 cookie, const struct peer *peer,
                                 const struct target *asked, const struct selection *chosen, __u64 now) {
    struct socket_peer *found;
    struct socket_key key;

    if (peer->backend_port == chosen->port && same_address(&peer->backend, &chosen->address))
        return 1;
    if (!(peer->flags & PEER_MORE))
        return 0;
    set_key(&key, cookie, &chosen->address, chosen->port, asked->protocol, 1);
    found = map_lookup(MAP(sockets), &key);
    return found && !same_target(asked, &found->address, found->port) &&
           !older_than(found->last_ns, now, node->udp_stream_seconds);
}

/* Store a new choice. Returns REASON_CONNECTED, REASON_DATAGRAM, or why the slow path must serve the socket. */
INLINE enum reason remember_choice(const struct node *node, __u64 cookie, int connected, const struct target *asked,
                                   const struct selection *chosen, __u64 now) {
    struct peer *peer = map_lookup(MAP(peers), &cookie);
    int left;

    if (connected || !peer || same_target(asked, &peer->frontend, peer->frontend_port)) {
        __u8 flags = (connected ? PEER_CONNECTED : 0) | (peer ? peer->flags & PEER_MORE : 0);

        if (store_peer(cookie, asked, chosen, flags, now))
            return REASON_PEERS_FULL;
        return connected ? REASON_CONNECTED : REASON_DATAGRAM;
    }
    left = known_by_another_name(node, cookie, peer, asked, chosen, now);
    if (store_more(cookie, asked, chosen, left, now))
        return REASON_SOCKETS_FULL;
    peer->flags |= PEER_MORE;
    return left ? REASON_TUPLE_TAKEN : REASON_DATAGRAM;
}

/* Handle a destination that is no frontend. A connecting socket's earlier peer is forgotten. If a datagram goes to an
 * endpoint that the socket already uses through a frontend, replies show the endpoint's own address from now on, and
 * the slow path serves the frontend. */
INLINE void talks_directly(__u64 cookie, int connected, const struct target *target, __u64 now) {
    struct peer *peer = map_lookup(MAP(peers), &cookie);
    struct socket_peer value = {.flags = PEER_LEFT, .last_ns = now};
    struct socket_key key;
    int first;

    if (likely(!peer))
        return;
    if (connected) {
        map_delete(MAP(peers), &cookie);
        return;
    }
    if (peer->flags & PEER_CONNECTED) /* it receives from its peer only */
        return;
    first = same_target(target, &peer->backend, peer->backend_port);
    if (first) {
        set_key(&key, cookie, &peer->frontend, peer->frontend_port, target->protocol, 0);
        map_update(MAP(sockets), &key, &value, BPF_ANY);
        __builtin_memset(&peer->backend, 0, sizeof(peer->backend));
        __builtin_memset(&peer->frontend, 0, sizeof(peer->frontend));
        peer->flags |= PEER_MORE;
    }
    if (!(peer->flags & PEER_MORE))
        return;
    set_key(&key, cookie, &target->address, target->port, target->protocol, 1);
    if (!first && !map_lookup(MAP(sockets), &key))
        return;
    value.flags = 0;
    value.address = target->address;
    value.port = target->port;
    map_update(MAP(sockets), &key, &value, BPF_ANY);
}

INLINE struct answer_key answer_key(struct bpf_sock_addr *context, const struct target *peer) {
    struct answer_key key = {.netns_cookie = bpf_get_netns_cookie(context),
                             .address = peer->address,
                             .port = peer->port,
                             .own_port = context->sk->src_port};
    return key;
}

/* True if a datagram replies to one that arrived from its destination: that port, though also a frontend's, is the
 * sender's own or was allocated by masquerading. Connection tracking knows replies; here the request is stored. */
INLINE int is_answer(struct bpf_sock_addr *context, const struct node *node, const struct target *target, __u64 now) {
    struct answer_key key;
    struct answer *answer;

    if (!own_datagram(target->protocol, &target->address))
        return 0;
    key = answer_key(context, target);
    answer = map_lookup(MAP(answers), &key);
    return answer && !older_than(answer->last_ns, now, node->udp_stream_seconds);
}

/* Store an untranslated datagram that arrived from the address and port of a frontend on the node's own addresses. */
INLINE enum reason remember_question(struct bpf_sock_addr *context, const struct target *sender) {
    struct frontend_key frontend = {.address = sender->address, .port = sender->port, .protocol = sender->protocol};
    struct answer_key key;
    struct answer answer;

    if (!own_datagram(sender->protocol, &sender->address) || !find_frontend(&frontend))
        return REASON_NOT_TRANSLATED;
    key = answer_key(context, sender);
    answer.last_ns = bpf_ktime_get_ns();
    return map_update(MAP(answers), &key, &answer, BPF_ANY) ? REASON_ANSWERS_FULL : REASON_NOT_TRANSLATED;
}

/* Have packet programs send a datagram that they are left with from another port, once its flow begins: the socket may
 * talk to the same endpoint from its own port, by another name. Without room for the note they do not, and an answer
 * may be taken for another frontend's. */
INLINE void note_left(struct bpf_sock_addr *context, const struct target *asked, __u64 now) {
    struct answer_key key = {.address = asked->address, .port = asked->port, .own_port = context->sk->src_port};
    struct answer note = {.last_ns = now};

    map_update(MAP(answers), &key, &note, BPF_ANY);
}

/* True if a local process may listen on a frontend at one of the node's own addresses; it takes precedence (a
 * node-local DNS cache on the Service's address, for example). The packet hooks check whether such a socket exists. */
INLINE int may_have_listener(const struct target *target) {
    struct frontend_key key = {.address = target->address, .port = target->port, .protocol = target->protocol};

    return (address_flags(&target->address) & ADDRESS_LOCAL) && map_lookup(MAP(frontends), &key);
}

/* True if a socket for a loopback destination is bound to a source address: packets from loopback cannot reach a
 * backend.
 */
INLINE int bound_to_loopback(struct bpf_sock_addr *context, const struct target *target) {
    if (!is_loopback(&target->address) || !context->sk)
        return 0;
    if (is_ipv4(&target->address))
        return context->sk->src_ip4 != 0;
    return (context->sk->src_ip6[0] | context->sk->src_ip6[1] | context->sk->src_ip6[2] | context->sk->src_ip6[3]) != 0;
}

/* Return why a socket cannot be balanced here; REASON_NONE = it can. */
INLINE enum reason refuse(struct bpf_sock_addr *context, const struct node *node, const struct target *target,
                          const struct client *client, int connected) {
    if (target->protocol != IPPROTO_TCP && target->protocol != IPPROTO_UDP)
        return REASON_PROTOCOL;
    if (stays_local(node, &target->address, client->source))
        return REASON_LOOPBACK;
    if (!is_loopback(&target->address) && may_have_listener(target)) /* a hostPort there is nobody else's */
        return REASON_OWN_PORT;
    if (connected && target->protocol == IPPROTO_TCP && context->sk && context->sk->src_port)
        return REASON_BOUND;
    if (bound_to_loopback(context, target))
        return REASON_BOUND;
    return REASON_NONE;
}

/* Choose a backend for a socket and store it. Changes `target` with REASON_CONNECTED and REASON_DATAGRAM. */
INLINE enum reason choose(const struct node *node, __u64 cookie, const struct client *client, int connected,
                          struct target *target, struct selection *chosen, __u64 now) {
    struct frontend_key key = key_of(target);
    struct service_counters *counters;
    struct balancing work;
    enum reason reason = balance(&key, 0, client, now, &work, chosen);

    if (reason == REASON_NOT_SERVICE)
        talks_directly(cookie, connected, target, now);
    if (reason != REASON_NONE)
        return reason;
    reason = remember_choice(node, cookie, connected, target, chosen, now);
    if (reason != REASON_CONNECTED && reason != REASON_DATAGRAM)
        return reason;
    counters = counters_of(chosen->service);
    if (counters)
        counters->connections += 1;
    target->address = chosen->address;
    target->port = chosen->port;
    return reason;
}

/* True if connect-time balancing is off for the process. A connected UDP socket that names its frontend keeps its
 * backend nevertheless, since it receives from nothing else. */
INLINE int left_alone(struct bpf_sock_addr *context, const struct node *node, __u64 netns_cookie,
                      const struct target *target, int connected) {
    struct peer *peer;
    __u64 cookie;

    if (likely(!(node->flags & NODE_CONNECT_OFF)) || !switched_off(node, netns_cookie))
        return 0;
    cookie = socket_cookie(context);
    peer = connected ? 0 : map_lookup(MAP(peers), &cookie);
    if (peer && (peer->flags & PEER_CONNECTED) && context->sk && context->sk->state == STATE_CONNECTED &&
        same_target(target, &peer->frontend, peer->frontend_port))
        return 0;
    talks_directly(cookie, connected, target, bpf_ktime_get_ns());
    return 1;
}

/* Redirect a socket, or one datagram of it, to a backend. Returns 1 if `target` was changed. */
INLINE int translate(struct bpf_sock_addr *context, struct target *target, enum hook hook) {
    struct node *node = this_node();
    int connected = hook == HOOK_CONNECT;
    struct target asked = *target;
    struct selection chosen = {.service = ~0U};
    struct client client = {};
    enum choice choice = CHOICE_NONE;
    struct peer *peer;
    __u64 cookie, netns_cookie, now;
    enum reason reason;

    if (!node || !(node->flags & NODE_READY)) {
        count(hook, REASON_NOT_READY);
        return 0;
    }
    netns_cookie = bpf_get_netns_cookie(context);
    reason = REASON_SWITCHED_OFF;
    if (likely(!left_alone(context, node, netns_cookie, target, connected))) {
        describe_caller(node, netns_cookie, &target->address, &client);
        reason = refuse(context, node, target, &client, connected);
    }
    if (reason != REASON_NONE) {
        count(hook, reason);
        return 0;
    }
    now = bpf_ktime_get_ns();
    cookie = socket_cookie(context);
    if (!connected) {
        peer = map_lookup(MAP(peers), &cookie);
        if (peer && (peer->flags & PEER_CONNECTED) && context->sk && context->sk->state != STATE_CONNECTED) {
            peer->flags &= ~PEER_CONNECTED; /* after connect(2) with AF_UNSPEC, for which no program runs */
            peer->last_ns = now;
        }
        choice = peer ? earlier_choice(node, cookie, peer, target, now) : CHOICE_NONE;
    }
    if (choice != CHOICE_NONE)
        reason = choice == CHOICE_LEFT ? REASON_TUPLE_TAKEN : REASON_DATAGRAM;
    else if (is_answer(context, node, target, now))
        reason = REASON_ANSWER;
    else
        reason = choose(node, cookie, &client, connected, target, &chosen, now);
    count(hook, reason);
    if (reason == REASON_NOT_SERVICE || reason == REASON_ANSWER)
        return 0;
    if (!connected && reason != REASON_DATAGRAM && map_lookup(MAP(peers), &cookie))
        note_left(context, target, now);
    if (choice == CHOICE_NONE && unlikely(watched(hook, asked.protocol, chosen.service, now)))
        emit_event(hook, reason, &asked, &client, &chosen, now);
    return reason == REASON_CONNECTED || reason == REASON_DATAGRAM;
}

/* Replace a backend in `target` by the frontend that the socket addressed; 0 = the socket uses the real address. */
INLINE int known_as(__u64 cookie, struct target *target, __u64 now) {
    struct peer *peer = map_lookup(MAP(peers), &cookie);
    struct socket_key key;
    struct socket_peer *found;

    if (!peer)
        return 0;
    if (same_target(target, &peer->backend, peer->backend_port) && peer->protocol == target->protocol) {
        target->address = peer->frontend;
        target->port = peer->frontend_port;
        if (!(peer->flags & PEER_CONNECTED))
            peer->last_ns = now;
        return 1;
    }
    if (!(peer->flags & PEER_MORE))
        return 0;
    set_key(&key, cookie, &target->address, target->port, target->protocol, 1);
    found = map_lookup(MAP(sockets), &key);
    if (!found)
        return 0;
    found->last_ns = now;
    if (same_target(target, &found->address, found->port))
        return 0;
    target->address = found->address;
    target->port = found->port;
    return 1;
}

/* Report the frontend that a socket addressed instead of its backend. Returns 1 if `target` was changed. */
INLINE int rename(struct bpf_sock_addr *context, struct target *target, enum hook hook) {
    if (!known_as(socket_cookie(context), target, bpf_ktime_get_ns())) {
        count(hook, hook == HOOK_RECVMSG ? remember_question(context, target) : REASON_NOT_TRANSLATED);
        return 0;
    }
    count(hook, REASON_RENAMED);
    return 1;
}

INLINE struct target target_ipv4(struct bpf_sock_addr *context) {
    struct target target = {
        .address = mapped(context->user_ip4), .port = context->user_port, .protocol = context->protocol};
    return target;
}

INLINE struct target target_ipv6(struct bpf_sock_addr *context) {
    struct target target = {.port = context->user_port, .protocol = context->protocol};

    target.address.word[0] = context->user_ip6[0];
    target.address.word[1] = context->user_ip6[1];
    target.address.word[2] = context->user_ip6[2];
    target.address.word[3] = context->user_ip6[3];
    return target;
}

INLINE void aim_ipv4(struct bpf_sock_addr *context, const struct target *target) {
    context->user_ip4 = target->address.word[3];
    context->user_port = target->port;
}

INLINE void aim_ipv6(struct bpf_sock_addr *context, const struct target *target) {
    context->user_ip6[0] = target->address.word[0];
    context->user_ip6[1] = target->address.word[1];
    context->user_ip6[2] = target->address.word[2];
    context->user_ip6[3] = target->address.word[3];
    context->user_port = target->port;
}

#define SOCKET_PROGRAM(name, family, action, hook)                                                                     \
    PROGRAM(name)(struct bpf_sock_addr * context) {                                                                    \
        struct target target = target_##family(context);                                                               \
                                                                                                                       \
        if (action(context, &target, hook))                                                                            \
            aim_##family(context, &target);                                                                            \
        return 1;                                                                                                      \
    }

/* Remove a closed socket's entry. */
PROGRAM(sock_release)(struct bpf_sock *context) {
    __u64 cookie = socket_cookie(context);

    if (!map_delete(MAP(peers), &cookie))
        count(HOOK_RELEASE, REASON_RELEASED);
    return 1;
}

SOCKET_PROGRAM(connect4, ipv4, translate, HOOK_CONNECT)
SOCKET_PROGRAM(connect6, ipv6, translate, HOOK_CONNECT)
SOCKET_PROGRAM(sendmsg4, ipv4, translate, HOOK_SENDMSG)
SOCKET_PROGRAM(sendmsg6, ipv6, translate, HOOK_SENDMSG)
SOCKET_PROGRAM(recvmsg4, ipv4, rename, HOOK_RECVMSG)
SOCKET_PROGRAM(recvmsg6, ipv6, rename, HOOK_RECVMSG)
SOCKET_PROGRAM(getpeername4, ipv4, rename, HOOK_GETPEERNAME)
SOCKET_PROGRAM(getpeername6, ipv6, rename, HOOK_GETPEERNAME)
