/* The first bytes of packets that a program drops, for who captures them. Nothing is handed over, and nothing looked up
 * for other packets, while nobody does. */
#ifndef HOTPLANE_CAPTURE_H
#define HOTPLANE_CAPTURE_H

#include "arrival.h"

/* Reasons of packets that end here. */
INLINE int drops(enum reason reason) {
    return reason == REASON_REWRITE_FAILED || reason == REASON_DROP_RANGE || reason == REASON_NO_WAY_OUT ||
           reason == REASON_DROP_POLICY || reason == REASON_HEADER_CHAIN || reason == REASON_PORT_TAKEN;
}

INLINE void capture_packet(const struct arrival *arrival, const struct packet *packet, __u32 service) {
    const struct capture *capture = ONLY_VALUE(capture);
    __u32 length = packet->l3 + packet->size;
    struct captured head = {.ns = arrival->now,
                            .hook = arrival->hook,
                            .reason = packet->reason,
                            .service = service,
                            .ifindex = arrival->ifindex,
                            .length = length};
    __u64 size = length;

    if (arrival->now >= capture->until_ns)
        return;
    if (size > capture->snaplen)
        size = capture->snaplen;
    bpf_perf_event_output(arrival->context, (void *)MAP(captured), size << 32 | BPF_F_CURRENT_CPU, &head, sizeof(head));
}

#endif
