/* Every map, one line each: MAP(name, type, key, value, size, flags). The control plane reads these lines (they are the
 * only place where a map is described), creates and pins the maps, and puts their descriptors into the programs in
 * place of the numbers below. `size` in capitals is a constant of consts.h, a number stands for itself, anything else
 * is an option (dataplane/planes/ebpf/maps/layout.py: Sizes).
 *
 * How the control plane changes them without a reader ever seeing half a change: see lookup.h, balance(). */
#ifndef HOTPLANE_MAPS_H
#define HOTPLANE_MAPS_H

#include "structs.h"

/* clang-format off */
#define HOTPLANE_MAPS(MAP) \
    MAP(frontends, HASH, frontend_key, frontend, frontends, 0) \
    MAP(slots, ARRAY, u32, slot, slots, MMAPABLE) \
    MAP(backends, ARRAY, u32, backend, backends, MMAPABLE) \
    MAP(services, ARRAY, u32, service, services, MMAPABLE) \
    MAP(source_ranges, LPM_TRIE, range_key, u32, source_ranges, NO_PREALLOC) \
    MAP(detector, LPM_TRIE, prefix_key, u32, detector, NO_PREALLOC) \
    MAP(addresses, HASH, address, u32, addresses, 0) \
    MAP(node, ARRAY, u32, node, 1, 0) \
    MAP(connect_off, HASH, off_key, u32, connect_off, NO_PREALLOC) \
    MAP(monitor, ARRAY, u32, monitor, 1, 0) \
    MAP(devices, HASH, u32, device, devices, 0) \
    MAP(scratch, PERCPU_ARRAY, u32, scratch, 1, 0) \
    MAP(affinity, HASH, affinity_key, affinity, affinity, 0) \
    MAP(peers, HASH, u64, peer, peers, 0) \
    MAP(sockets, HASH, socket_key, socket_peer, sockets, 0) \
    MAP(answers, HASH, answer_key, answer, answers, 0) \
    MAP(tcp_flows, HASH, flow_key, translation, tcp_flows, 0) \
    MAP(udp_flows, HASH, flow_key, translation, udp_flows, 0) \
    MAP(flows, ARRAY_OF_MAPS, u32, u32, FLOWS_COUNT, 0) \
    MAP(ways, PERCPU_ARRAY, u32, way, WAYS, 0) \
    MAP(pods, HASH, address, pod, pods, 0) \
    MAP(host_times, ARRAY, u32, u64, HOST_TIMES, 0) \
    MAP(direct_tcp, HASH, tuple, direct_flow, direct_tcp, 0) \
    MAP(direct_udp, HASH, tuple, direct_flow, direct_udp, 0) \
    MAP(tunnels, ARRAY, u32, tunnel, tunnels, MMAPABLE) \
    MAP(tunnel_nodes, HASH, address, u32, tunnels, NO_PREALLOC) \
    MAP(forwarded, HASH, endpoint_key, u32, forwarded, NO_PREALLOC) \
    MAP(tail_calls, PROG_ARRAY, u32, u32, PROGRAM_COUNT, 0) \
    MAP(xdp_calls, PROG_ARRAY, u32, u32, XDP_PROGRAM_COUNT, 0) \
    MAP(fragments, HASH, fragment_key, fragment, fragments, 0) \
    MAP(held, HASH, held_key, held, held, NO_PREALLOC) \
    MAP(holding, PERCPU_ARRAY, u32, held, 1, 0) \
    MAP(counters, PERCPU_ARRAY, u32, u64, COUNTERS, 0) \
    MAP(service_counters, PERCPU_ARRAY, u32, service_counters, services, 0) \
    MAP(events, RINGBUF, none, none, events, 0) \
    MAP(capture, ARRAY, u32, capture, 1, 0) \
    MAP(captured, PERF_EVENT_ARRAY, u32, u32, CAPTURE_CPUS, 0)
/* clang-format on */

/* A number that cannot be a descriptor stands for each map until the program is loaded. */
enum map_reference {
    MAP_REFERENCE_BASE = 0x48500000,
};

#define HOTPLANE_MAP_INDEX(name, type, key, value, size, flags) MAP_INDEX_##name,
enum map_index { HOTPLANE_MAPS(HOTPLANE_MAP_INDEX) MAP_COUNT };

/* The map as helpers want it. BPF_PSEUDO_MAP_FD is 1. */
#define MAP(name) bpf_pseudo_fd(1, MAP_REFERENCE_BASE + MAP_INDEX_##name)

/* The address of the value of an array of one element, which takes no look-up. BPF_PSEUDO_MAP_VALUE is 2. */
#define ONLY_VALUE(name) ((void *)bpf_pseudo_fd(2, MAP_REFERENCE_BASE + MAP_INDEX_##name))

#endif
