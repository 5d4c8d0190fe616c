/* Events about packets of flows that are forwarded: what their entries translate to is the frontend itself, and who
 * watches is to be told the endpoint. */
#ifndef HOTPLANE_FORWARD_EVENT_H
#define HOTPLANE_FORWARD_EVENT_H

#include "track.h"

/* emit_packet_event() for a flow between nodes. Uses scratch->forward. */
INLINE void emit_forwarded_event(const struct arrival *arrival, const struct packet *packet, struct scratch *scratch,
                                 const struct translation *entry) {
    struct translation *told = &scratch->forward;
    __u32 index = entry->backend;
    struct backend *backend;

    if (likely(!watched(arrival->hook, packet->protocol, entry->service, arrival->now)))
        return;
    backend = map_lookup(MAP(backends), &index);
    told->flags = 0;
    if (backend && backend->generation == entry->backend_generation) {
        copy_address(&told->destination, &backend->address);
        told->destination_port = backend->port;
    } else {
        __builtin_memset(&told->destination, 0, sizeof(told->destination));
        told->destination_port = 0;
    }
    emit_packet_event(arrival, packet, entry->service, told);
}

#endif
