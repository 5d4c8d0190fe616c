/* Whether connect time is switched off for the process that calls: by its network namespace, or by a control group that
 * it is in. */
#ifndef HOTPLANE_OFF_H
#define HOTPLANE_OFF_H

#include "helpers.h"

INLINE int is_off(__u64 id, __u32 kind) {
    struct off_key key = {.id = id, .kind = kind};

    return map_lookup(MAP(connect_off), &key) != 0;
}

/* One look-up for each depth at which there is such a group, and one where there is such a namespace. A group is known
 * by its number, and the caller by those of the groups around it, so one that was made inside later is off as well. */
INLINE int switched_off(const struct node *node, __u64 netns_cookie) {
    __u32 levels = node->connect_off;
    int level;

    if ((levels & 1) && is_off(netns_cookie, OFF_NETNS))
        return 1;
#pragma clang loop unroll(disable)
    for (level = 1; level < OFF_LEVELS; level++) {
        if ((levels >> level & 1) && is_off(bpf_get_current_ancestor_cgroup_id(level), OFF_CGROUP))
            return 1;
    }
    return 0;
}

#endif
