/* What every program needs: kernel types, helper calls, addresses, counters, events. */
#ifndef HOTPLANE_HELPERS_H
#define HOTPLANE_HELPERS_H

#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/in6.h>

#include "maps.h"

#ifdef NO_COARSE_CLOCK
#define bpf_ktime_get_coarse_ns bpf_ktime_get_ns
#endif

/* The compiler front end emits whatever lies in such a section as one program of this name. */
#define PROGRAM(name) __attribute__((section(".bpf.fn." #name), used)) int name
#define INLINE static __attribute__((always_inline)) inline

#ifndef likely
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
#endif

#define SECOND_NS 1000000000ULL

/* What several smaller fields are read or written by at once. */
typedef __u16 __attribute__((may_alias)) any_half;
typedef __u32 __attribute__((may_alias)) any_word;
typedef __u64 __attribute__((may_alias)) any_long;

enum map_errors {
    ERROR_TOO_BIG = -7, /* E2BIG: the map is full */
};

/* Declared here where the front end's own declaration cuts the result to 32 bits. */
static __u64 (*socket_cookie)(void *context) = (void *)BPF_FUNC_get_socket_cookie;

static void *(*table_lookup)(void *table, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static long (*table_update)(void *table, const void *key, const void *value,
                            __u64 flags) = (void *)BPF_FUNC_map_update_elem;
static long (*table_delete)(void *table, const void *key) = (void *)BPF_FUNC_map_delete_elem;

INLINE void *map_lookup(__u64 map, const void *key) {
    return ((void *(*)(__u64, const void *))BPF_FUNC_map_lookup_elem)(map, key);
}

INLINE long map_update(__u64 map, const void *key, const void *value, __u64 flags) {
    return ((long (*)(__u64, const void *, const void *, __u64))BPF_FUNC_map_update_elem)(map, key, value, flags);
}

INLINE long map_delete(__u64 map, const void *key) {
    return ((long (*)(__u64, const void *))BPF_FUNC_map_delete_elem)(map, key);
}

/* bpf_htons and friends on constants and variables alike. */
INLINE __be16 to_be16(__u16 value) {
    return __builtin_bswap16(value);
}

INLINE __be32 to_be32(__u32 value) {
    return __builtin_bswap32(value);
}

/* Keeps the compiler from moving reads across this point. Where the processor must not either, see second_look() in
 * lookup.h. */
#define barrier() asm volatile("" ::: "memory")

INLINE struct address mapped(__be32 ipv4) {
    struct address result = {.word = {0, 0, to_be32(0xffff), ipv4}};
    return result;
}

/* Comparisons without branches: each branch would double what the verifier has to follow. */
INLINE int is_ipv4(const struct address *address) {
    return !(address->word[0] | address->word[1] | (address->word[2] ^ to_be32(0xffff)));
}

INLINE int same_address(const struct address *a, const struct address *b) {
    return !((a->word[0] ^ b->word[0]) | (a->word[1] ^ b->word[1]) | (a->word[2] ^ b->word[2]) |
             (a->word[3] ^ b->word[3]));
}

/* 0.0.0.0 or :: */
INLINE int is_unspecified(const struct address *address) {
    return !(address->word[0] | address->word[1] | address->word[3]) &&
           (!address->word[2] || address->word[2] == to_be32(0xffff));
}

/* 127.0.0.0/8 or ::1 */
INLINE int is_loopback(const struct address *address) {
    if (is_ipv4(address))
        return (to_be32(address->word[3]) >> 24) == 127;
    return !(address->word[0] | address->word[1] | address->word[2] | (address->word[3] ^ to_be32(1)));
}

INLINE struct node *this_node(void) {
    return ONLY_VALUE(node);
}

/* Whether `then` is more than so many seconds before `now`. Another CPU's reading of the clock may be a little ahead of
 * ours: then it is not. */
INLINE int older_than(__u64 then, __u64 now, __u64 seconds) {
    return (__s64)(now - then) > (__s64)(seconds * SECOND_NS);
}

/* Count one way out of a program. */
INLINE void count(enum hook hook, enum reason reason) {
    __u32 index = hook * REASON_COUNT + reason;
    __u64 *counter = map_lookup(MAP(counters), &index);

    if (counter)
        *counter += 1; /* per CPU: no other writer */
}

INLINE struct service_counters *counters_of(__u32 service) {
    return map_lookup(MAP(service_counters), &service);
}

/* Whether somebody watches events of this kind. */
INLINE int watched(enum hook hook, __u8 protocol, __u32 service, __u64 now) {
    const struct monitor *monitor = ONLY_VALUE(monitor);

    if (likely(now >= monitor->until_ns))
        return 0;
    if (monitor->protocol && monitor->protocol != protocol)
        return 0;
    if (monitor->has_service && monitor->service != service)
        return 0;
    return !monitor->hooks || (monitor->hooks & (1 << hook));
}

/* Hand an event to the watcher; a full ring loses it, traffic never waits. */
INLINE void report(struct event *event) {
    bpf_ringbuf_output((void *)MAP(events), event, sizeof(*event), 0);
}

#endif
