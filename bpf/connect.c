/* Connect-time balancing: a process that connects or sends to a frontend is pointed at a backend before the first
 * packet exists. Attached to a control group; IPv4, IPv6 and IPv4-mapped sockets share the code, since the maps store
 * IPv4 mapped. Every program returns 1 (go on): what cannot be done here is done, or refused, by the slow path. */
#include "lookup.h"

/* Where a socket wants to go, and, after translate(), where it shall go. */
struct target {
    struct address address;
    __be16 port;
    __u8 protocol;
};

/* 100::<cookie>: stands for the unknown address of every socket of a network namespace. */
INLINE struct address namespace_identity(__u64 cookie) {
    struct address identity = {.word = {to_be32(0x01000000), 0, to_be32(cookie >> 32), to_be32((__u32)cookie)}};
    return identity;
}

/* The caller as a client. A process of the node's own namespace is the node; any other in this control group is a pod
 * of this node wherever pods of the family can be recognised at all. The node's own source address is chosen by routing
 * towards the backend, which is what masquerading would choose; a pod keeps its address unless parity is asked for. */
INLINE void describe_caller(const struct node *node, __u64 cookie, int ipv4, struct client *client) {
    __u32 detects = ipv4 ? NODE_DETECTS_IPV4 : NODE_DETECTS_IPV6;

    client->identity = namespace_identity(cookie);
    client->address_known = 0;
    client->source = cookie == node->netns_cookie ? SOURCE_NODE : (node->flags & detects) ? SOURCE_POD : SOURCE_OUTSIDE;
    client->accepts_masquerade =
        client->source == SOURCE_NODE ||
        (client->source == SOURCE_POD && !(node->flags & (NODE_MASQUERADE_ALL | NODE_KUBE_PROXY_PARITY)));
}

/* Loopback belongs to the caller's own namespace; only the node's may stand for node ports, where that is switched on.
 */
INLINE int stays_local(const struct node *node, const struct address *address, __u32 source) {
    if (!is_loopback(address))
        return 0;
    return source != SOURCE_NODE || !is_ipv4(address) || !(node->flags & NODE_LOOPBACK_NODE_PORTS);
}

INLINE void tell(enum hook hook, enum reason reason, const struct target *asked, const struct client *client,
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

/* Remember what the socket believes, under what it really talks to; and, for single datagrams, the choice. */
INLINE long store_peers(__u64 cookie, const struct target *asked, const struct selection *chosen, int connected,
                        __u64 now) {
    struct socket_key key = {
        .cookie = cookie, .address = chosen->address, .port = chosen->port, .protocol = asked->protocol, .reply = 1};
    struct socket_peer peer = {
        .address = asked->address,
        .port = asked->port,
        .connected = connected,
        .backend = chosen->backend,
        .backend_generation = chosen->backend_generation,
        .service = chosen->service,
        .last_ns = now,
    };
    long failed = map_update(MAP(sockets), &key, &peer, BPF_ANY);

    if (connected || failed)
        return failed;
    key.address = asked->address;
    key.port = asked->port;
    key.reply = 0;
    peer.address = chosen->address;
    peer.port = chosen->port;
    return map_update(MAP(sockets), &key, &peer, BPF_ANY);
}

/* An unconnected socket's earlier choice for this frontend, as long as its backend serves and datagrams keep coming:
 * what connection tracking does for UDP. */
INLINE int earlier_choice(const struct node *node, __u64 cookie, struct target *target, __u64 now) {
    struct socket_key key = {
        .cookie = cookie, .address = target->address, .port = target->port, .protocol = target->protocol};
    struct socket_peer *peer = map_lookup(MAP(sockets), &key);
    struct frontend_key frontend_key = {.address = target->address, .port = target->port, .protocol = target->protocol};
    struct frontend *frontend;
    struct backend *backend;

    if (!peer || now - peer->last_ns > node->udp_stream_seconds * SECOND_NS)
        return 0;
    frontend = find_frontend(&frontend_key);
    backend = live_backend(peer->backend, peer->backend_generation, BACKEND_USABLE);
    if (!frontend || !backend || backend->service != frontend->service)
        return 0;
    key.address = peer->address;
    key.port = peer->port;
    key.reply = 1;
    if (!map_lookup(MAP(sockets), &key)) /* evicted: the sender could not be shown its frontend */
        return 0;
    peer->last_ns = now;
    target->address = key.address;
    target->port = key.port;
    return 1;
}

INLINE struct answer_key answer_key(struct bpf_sock_addr *context, const struct target *peer) {
    struct answer_key key = {.netns_cookie = bpf_get_netns_cookie(context),
                             .address = peer->address,
                             .port = peer->port,
                             .own_port = context->sk->src_port};
    return key;
}

/* Whether a datagram goes back to where one came from: its port, though it is a frontend's, is the sender's own, or one
 * that masquerading gave it. Connection tracking knows such an answer; here the question is remembered. */
INLINE int is_answer(struct bpf_sock_addr *context, const struct node *node, const struct target *target, __u64 now) {
    struct answer_key key;
    struct answer *answer;

    if (!own_datagram(target->protocol, &target->address))
        return 0;
    key = answer_key(context, target);
    answer = map_lookup(MAP(answers), &key);
    return answer && now - answer->last_ns <= node->udp_stream_seconds * SECOND_NS;
}

/* Remember a datagram that came from a frontend on one of this node's own addresses without being translated. */
INLINE enum reason remember_question(struct bpf_sock_addr *context, const struct target *sender) {
    struct frontend_key frontend = {.address = sender->address, .port = sender->port, .protocol = sender->protocol};
    struct answer_key key;
    struct answer answer;

    if (!own_datagram(sender->protocol, &sender->address) || !find_frontend(&frontend))
        return REASON_NOT_TRANSLATED;
    key = answer_key(context, sender);
    answer.last_ns = bpf_ktime_get_ns();
    return map_update(MAP(answers), &key, &answer, BPF_ANY) ? REASON_MAP_FULL : REASON_NOT_TRANSLATED;
}

/* Point a socket (or one datagram of it) at a backend. Returns whether `target` was changed. */
INLINE int translate(struct bpf_sock_addr *context, struct target *target, enum hook hook) {
    struct node *node = this_node();
    int connected = hook == HOOK_CONNECT;
    struct target asked = *target;
    struct selection chosen = {.service = ~0U};
    struct client client = {};
    struct service_counters *counters;
    struct frontend_key key = {.address = target->address, .port = target->port, .protocol = target->protocol};
    __u64 cookie, now;
    enum reason reason;

    if (!node || !(node->flags & NODE_READY)) {
        count(hook, REASON_NOT_READY);
        return 0;
    }
    if (target->protocol != IPPROTO_TCP && target->protocol != IPPROTO_UDP) {
        count(hook, REASON_PROTOCOL);
        return 0;
    }
    describe_caller(node, bpf_get_netns_cookie(context), is_ipv4(&target->address), &client);
    if (stays_local(node, &target->address, client.source)) {
        count(hook, REASON_LOOPBACK);
        return 0;
    }
    now = bpf_ktime_get_ns();
    cookie = socket_cookie(context);
    if (!connected && earlier_choice(node, cookie, target, now)) {
        count(hook, REASON_DATAGRAM);
        return 1;
    }
    if (is_answer(context, node, target, now)) {
        count(hook, REASON_ANSWER);
        return 0;
    }
    reason = balance(&key, &client, now, &chosen);
    if (reason == REASON_NONE)
        reason = store_peers(cookie, &asked, &chosen, connected, now) ? REASON_MAP_FULL
                 : connected                                          ? REASON_CONNECTED
                                                                      : REASON_DATAGRAM;
    count(hook, reason);
    if (reason != REASON_NOT_SERVICE && unlikely(watched(hook, asked.protocol, chosen.service, now)))
        tell(hook, reason, &asked, &client, &chosen, now);
    if (reason != REASON_CONNECTED && reason != REASON_DATAGRAM)
        return 0;
    counters = counters_of(chosen.service);
    if (counters)
        counters->connections += 1;
    target->address = chosen.address;
    target->port = chosen.port;
    return 1;
}

/* Show a socket the frontend it asked for instead of the backend it talks to. Returns whether `target` was changed. */
INLINE int rename(struct bpf_sock_addr *context, struct target *target, enum hook hook) {
    struct socket_key key = {.cookie = socket_cookie(context),
                             .address = target->address,
                             .port = target->port,
                             .protocol = target->protocol,
                             .reply = 1};
    struct socket_peer *peer = map_lookup(MAP(sockets), &key);

    if (!peer) {
        count(hook, hook == HOOK_RECVMSG ? remember_question(context, target) : REASON_NOT_TRANSLATED);
        return 0;
    }
    target->address = peer->address;
    target->port = peer->port;
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

SOCKET_PROGRAM(connect4, ipv4, translate, HOOK_CONNECT)
SOCKET_PROGRAM(connect6, ipv6, translate, HOOK_CONNECT)
SOCKET_PROGRAM(sendmsg4, ipv4, translate, HOOK_SENDMSG)
SOCKET_PROGRAM(sendmsg6, ipv6, translate, HOOK_SENDMSG)
SOCKET_PROGRAM(recvmsg4, ipv4, rename, HOOK_RECVMSG)
SOCKET_PROGRAM(recvmsg6, ipv6, rename, HOOK_RECVMSG)
SOCKET_PROGRAM(getpeername4, ipv4, rename, HOOK_GETPEERNAME)
SOCKET_PROGRAM(getpeername6, ipv6, rename, HOOK_GETPEERNAME)
