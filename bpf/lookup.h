/* Backend selection for a destination: frontend look-up, source classes, source ranges, session affinity. Shared by all
 * hooks. */
#ifndef HOTPLANE_LOOKUP_H
#define HOTPLANE_LOOKUP_H

#include "helpers.h"

/* Description of a client before its frontend is looked up. */
struct client {
    struct address identity; /* its address, by which affinity and source ranges go; where that is not known, who it is
                                to those who watch */
    __u32 source;            /* enum source_class */
    __u8 address_known;      /* identity is its address */
    __u8 accepts_masquerade; /* this hook can masquerade */
    __u8 remote_pod;         /* a pod of another node, whose flows are left to the slow path unless all of a route's get
                                this node's address */
    __u8 masquerades_all;    /* a route that masquerades does so towards every backend */
    const struct tuple *flow; /* its packet as it arrived; 0 at connect time */
};

enum lookup_limits {
    OPEN_WINDOW = 48, /* tests: how many look-ups the reader makes where a change could meet it */
};

#define MIX 0x9e3779b97f4a7c15ULL   /* 2^64 / golden ratio: spreads what is multiplied by it over the high bits */
#define MIX_2 0xc2b2ae3d27d4eb4fULL /* two more with as many ones as zeros (xxHash's second and third) */
#define MIX_3 0x165667b19e3779f9ULL

/* hide_value() of packet.h for programs without memory of their own: the verifier keeps no value of what is stored in
 * the second half of eight bytes of the stack, but for zero. */
INLINE __u32 hide_on_stack(__u32 value) {
    struct {
        __u32 first, second;
    } __attribute__((aligned(8))) place;

    place.second = value + 1;
    asm volatile("" : : "r"(&place) : "memory");
    return place.second - 1;
}

/* The outcome of balance(). */
struct selection {
    struct address address;
    __be16 port;
    __u8 backend_flags; /* enum backend_flags */
    __u8 route;         /* enum route_bits, of the client's class */
    __u32 backend;
    __u32 backend_generation;
    __u32 service; /* valid whenever a frontend was found */
    __u32 frontend_flags;
    __u32 tunnel; /* of the backend */
};

INLINE int in_detector(const struct address *address) {
    struct prefix_key key = {.prefix_length = 128, .address = *address};
    return map_lookup(MAP(detector), &key) != 0;
}

INLINE __u32 address_flags(const struct address *address) {
    __u32 *flags = map_lookup(MAP(addresses), address);
    return flags ? *flags : 0;
}

/* True if UDP to or from an address may belong to a request from one of this node's own addresses: unlike a TCP
 * segment, a datagram does not show that it is a reply, and node ports are at these addresses. */
INLINE int own_datagram(__u8 protocol, const struct address *address) {
    return protocol == IPPROTO_UDP && (address_flags(address) & ADDRESS_LOCAL);
}

/* Class of a packet's source address. `pod_device`: the device it came in by is one of the detector's; only looked at
 * where pods are detected by device. POD is tested first, as in policy.node.NodeConfig.source. */
INLINE __u32 classify(const struct node *node, const struct address *source, int pod_device) {
    if (node->flags & NODE_DETECTS_BY_CIDR ? in_detector(source) : pod_device)
        return SOURCE_POD;
    return is_loopback(source) || (address_flags(source) & ADDRESS_LOCAL) ? SOURCE_NODE : SOURCE_OUTSIDE;
}

/* Find the frontend of a destination: by address, else as a node port if the address serves node ports. On success
 * `key` is the key that matched. */
INLINE struct frontend *find_frontend(struct frontend_key *key) {
    struct frontend *frontend;

    if (is_unspecified(&key->address)) /* the key of node ports, which nobody can ask for by this address */
        return 0;
    frontend = map_lookup(MAP(frontends), key);
    if (frontend)
        return frontend;
    if (!(address_flags(&key->address) & ADDRESS_NODE_PORT))
        return 0;
    key->address.word[3] = 0;
    if (!is_ipv4(&key->address))
        key->address.word[0] = key->address.word[1] = key->address.word[2] = 0;
    return map_lookup(MAP(frontends), key);
}

/* True if the frontend's source ranges contain this source. */
INLINE int in_ranges(const struct frontend *frontend, const struct address *source) {
    struct range_key key = {.prefix_length = 160, .range_set = to_be32(frontend->range_set), .address = *source};

    return map_lookup(MAP(source_ranges), &key) != 0;
}

/* Return a stored backend if it still serves: same generation, still a member of one of the sets in `wanted`; else 0.
 * Every stored entry is checked by this before it is used for UDP or for a new connection. */
INLINE struct backend *live_backend(__u32 index, __u32 generation, __u32 wanted) {
    struct backend *backend = map_lookup(MAP(backends), &index);

    if (!backend || backend->generation != generation || !(backend->flags & wanted))
        return 0;
    return backend;
}

/* Session affinity of a client. */
struct memory {
    __u32 good;  /* its backend may be used again */
    __u32 stale; /* its backend was removed, or it expired */
    __u32 draw;  /* when stale: what to choose by, so that several processors that choose anew agree */
};

/* Working memory of balance(). Packet programs have it in a map, for the verifier's sake: see new_packet(). */
struct balancing {
    struct frontend frontend;
    struct backend backend;
    struct memory memory;
    __u32 route;
    __u32 index; /* of the backend */
    __u32 refusal;
};

INLINE __u32 wanted_set(__u32 route) {
    return route & ROUTE_LOCAL ? BACKEND_IN_LOCAL : BACKEND_IN_CLUSTER;
}

/* The remembered backend of a client, if it is still good for this service and set. Its time runs from its last
 * connection on, which this is. */
INLINE struct backend *stuck_backend(struct balancing *work, const struct address *client, __u64 now) {
    struct affinity_key key = {.client = *client, .service = work->frontend.service};
    struct affinity *affinity = map_lookup(MAP(affinity), &key);
    struct backend *backend = 0;

    if (!affinity)
        return 0;
    if (!older_than(affinity->last_ns, now, work->frontend.affinity_seconds)) {
        backend = live_backend(affinity->backend, affinity->backend_generation, wanted_set(work->route));
        if (backend && backend->service == work->frontend.service) {
            work->index = affinity->backend;
            work->memory.good = 1;
            affinity->last_ns = now;
            return backend;
        }
    }
    work->memory.stale = 1;
    work->memory.draw =
        ((affinity->last_ns ^ ((__u64)affinity->backend_generation << 32) ^ client->word[3]) * MIX) >> 32;
    return 0;
}

/* Note a client's new choice. When several processors choose for one client at once, the first one's choice stands:
 * REASON_CHANGED, choose again and find it. */
INLINE enum reason remember(const struct selection *chosen, const struct address *client, const struct memory *memory,
                            __u64 now) {
    struct affinity_key key = {.client = *client, .service = chosen->service};
    struct affinity value = {
        .backend = chosen->backend, .backend_generation = chosen->backend_generation, .last_ns = now};
    long failed = map_update(MAP(affinity), &key, &value, memory->stale ? BPF_ANY : BPF_NOEXIST);

    if (likely(!failed))
        return REASON_NONE;
    return failed == ERROR_TOO_BIG ? REASON_AFFINITY_FULL : REASON_CHANGED;
}

INLINE __u64 mix_in(__u64 hash, __u64 word) {
    hash = (hash ^ word) * MIX;
    return hash ^ (hash >> 29);
}

/* A hash of a flow's first packet, with session affinity of its client's address alone, that is the same on every node.
 * The same as dataplane/policy/maglev.py, flow_hash(). */
INLINE __u32 flow_hash(const struct tuple *flow, __u32 by_client) {
    const any_long *words = (const void *)flow;
    __u64 hash = this_node()->hash_seed, rest = by_client;

    asm volatile("" : "+r"(rest));  /* or the compiler makes a branch of it */
    rest = (__s64)(rest - 1) >> 63; /* all ones, or with affinity zero */
    hash = mix_in(hash, words[0] * MIX_3 ^ words[1]);
    hash = mix_in(hash, (words[2] * MIX_3 ^ words[3]) & rest);
    hash = mix_in(hash, words[4] & rest); /* ports and protocol */
    return (hash * MIX_2) >> 32;
}

/* What a backend is chosen by: a Maglev table by the flow's hash, for clients from outside; else chance. */
INLINE __u32 draw_for(const struct balancing *work, const struct client *client) {
    if ((work->frontend.flags & FRONTEND_MAGLEV) && (client->source & 3) == SOURCE_OUTSIDE && client->flow)
        return flow_hash(client->flow, work->frontend.affinity_seconds);
    return work->memory.stale ? work->memory.draw : bpf_get_prandom_u32();
}

/* A member of the set: the high half of draw * count is uniform over 0..count-1 up to count / 2^32, with no division.
 */
INLINE struct backend *drawn_backend(struct balancing *work, __u32 draw) {
    const struct frontend *frontend = &work->frontend;
    __u32 local = work->route & ROUTE_LOCAL;
    __u32 base = local ? frontend->local_base : frontend->cluster_base;
    __u32 members = local ? frontend->local_count : frontend->cluster_count;
    __u32 position = base + (__u32)(((__u64)draw * members) >> 32);
    struct slot *slot = map_lookup(MAP(slots), &position);

    if (!members || !slot)
        return 0;
    work->index = slot->backend;
    return map_lookup(MAP(backends), &work->index);
}

/* The route of a source class: routes[source], without an index that the verifier would have to follow. */
INLINE __u32 route_of(const struct frontend *frontend, __u32 source) {
    __u32 routes = frontend->routes[0] | frontend->routes[1] << 8 | frontend->routes[2] << 16;

    return (routes >> ((source & 3) * 8)) & 0xff;
}

/* Whether the client's route may be taken here; REASON_NONE = yes. What is known of the client is a mask each time, not
 * a condition of its own, which would be one more state to the verifier. */
INLINE enum reason admit(const struct frontend *frontend, const struct client *client, __u32 route) {
    __u32 unknown = (__u32)client->address_known - 1, masquerades = (route & ROUTE_MASQUERADE) / ROUTE_MASQUERADE;

    switch (route & ROUTE_ACTION) {
    case ROUTE_FORWARD:
        break;
    case ROUTE_DROP:
        return REASON_POLICY_DROP;
    default:
        return REASON_NO_ENDPOINT;
    }
    if (frontend->flags & FRONTEND_RANGES) {
        if (frontend->flags & FRONTEND_RANGES & unknown)
            return REASON_SOURCE_UNKNOWN;
        if (!in_ranges(frontend, &client->identity))
            return REASON_SOURCE_RANGE;
    }
    if (frontend->affinity_seconds & unknown)
        return REASON_AFFINITY;
    if (masquerades & ~client->accepts_masquerade)
        return REASON_MASQUERADE;
    if (client->remote_pod & ~(masquerades & client->masquerades_all))
        return REASON_REMOTE_POD;
    return REASON_NONE;
}

/* For tests (-DWIDE_WINDOW): wait where a change of the tables could go unnoticed, so that it happens. */
INLINE void open_window(void) {
#ifdef WIDE_WINDOW
    struct address address = {};
    int turn;

#pragma clang loop unroll(disable)
    for (turn = 0; turn < OPEN_WINDOW; turn++) {
        address.word[3] = turn;
        map_lookup(MAP(addresses), &address);
        barrier();
    }
#endif
}

/* The frontend of `key` as it is now that everything in `frontend` and `backend` has been read. A look-up begins with
 * its key: its address is computed from what was read, in such a way that neither compiler nor processor can do it
 * before (the result is the same: anything and 0 is 0). */
INLINE struct frontend *second_look(const struct frontend_key *key, const struct frontend *frontend,
                                    const struct backend *backend) {
    __u64 read = frontend->generation | frontend->service | frontend->cluster_base | frontend->cluster_count |
                 frontend->local_base | frontend->local_count | frontend->affinity_seconds | frontend->range_set |
                 frontend->flags | route_of(frontend, 0) | backend->address.word[0] | backend->address.word[1] |
                 backend->address.word[2] | backend->address.word[3] | backend->port | backend->flags |
                 backend->generation | backend->service | backend->tunnel;

#ifdef NO_GENERATION_CHECK
    return (struct frontend *)frontend; /* for tests: as if the look had found nothing changed */
#endif
    asm volatile("%0 &= 0" : "+r"(read)::"memory");
    return map_lookup(MAP(frontends), (const void *)key + read);
}

/* Choose a backend for a new connection of `client` to the frontend of `key`. `known`: what find_frontend() found for
 * it, or 0, which is to look it up here. REASON_NONE: `chosen` is filled in. Otherwise the reason to pass the packet or
 * socket on.
 *
 * Why a reader never acts on half a change, though it reads three tables without a lock: the control plane writes
 *   1. new backends, into indices that nothing refers to;
 *   2. slots. In the ranges in use each holds a member of the old or of the new set at any time;
 *   3. the frontends, each in one update, each with a generation never used before;
 *   4. death of the removed backends (flags = 0), and only now may their indices and freed ranges find new tenants.
 * Removal of frontends comes as step 3 as well. The reader copies the frontend, follows it, copies the backend, and
 * looks the frontend up again: is the generation the one it started with, then step 4 of any change to this service had
 * not begun when the backend was copied, so everything copied belonged together. Otherwise it starts again. That also
 * covers the kernel's reuse of a deleted element's memory while this program still reads it: such an element was
 * unlinked before, so the second look finds another generation or nothing.
 *
 * For this the second look must come after all reads before it, also on processors that do not keep the order of reads
 * (arm64): its key is made to depend on everything that was read (second_look()). The control plane's stores are kept
 * in order by the kernel's own (a map update publishes with release semantics) and by a barrier before step 4
 * (tables.py). */
INLINE enum reason balance(struct frontend_key *key, struct frontend *known, const struct client *client, __u64 now,
                           struct balancing *work, struct selection *chosen) {
    int attempt;

    chosen->service = ~0U;
    for (attempt = 0; attempt < BALANCE_ATTEMPTS; attempt++) {
        struct frontend *found = attempt ? map_lookup(MAP(frontends), key) : known ? known : find_frontend(key);
        struct backend *backend = 0;
        enum reason refusal;

        if (!found)
            return REASON_NOT_SERVICE;
        open_window();
        work->frontend = *found;
        __builtin_memset(&work->backend, 0, sizeof(work->backend));
        work->memory.good = work->memory.stale = work->index = 0;
        work->route = route_of(&work->frontend, client->source);
        work->refusal = admit(&work->frontend, client, work->route);
        barrier();
        if (work->refusal == REASON_NONE) {
            if (work->frontend.affinity_seconds)
                backend = stuck_backend(work, &client->identity, now);
            if (!backend)
                backend = drawn_backend(work, draw_for(work, client));
            if (backend)
                work->backend = *backend;
            else
                work->refusal = REASON_INCONSISTENT;
        }
        barrier();
        open_window();
        found = second_look(key, &work->frontend, &work->backend);
        if (!found || found->generation != work->frontend.generation)
            continue;
        chosen->service = work->frontend.service;
        chosen->route = work->route;
        chosen->frontend_flags = work->frontend.flags;
        if (work->refusal != REASON_NONE)
            return work->refusal;
        if (work->backend.service != work->frontend.service)
            return REASON_INCONSISTENT;
        chosen->address = work->backend.address;
        chosen->port = work->backend.port;
        chosen->backend_flags = work->backend.flags;
        chosen->backend = work->index;
        chosen->backend_generation = work->backend.generation;
        chosen->tunnel = work->backend.tunnel;
        if (!work->frontend.affinity_seconds || work->memory.good)
            return REASON_NONE;
        refusal = remember(chosen, &client->identity, &work->memory, now);
        if (refusal != REASON_CHANGED)
            return refusal;
    }
    return REASON_CHANGED;
}

#endif
