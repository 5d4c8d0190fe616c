/* Packet programs at the devices where clients' packets come in: translation at the client's edge. At ingress a packet
 * to a frontend gets its backend's address, and answers to this node's SNAT ports are turned back; at egress answers
 * of backends get the frontend's address. Everything between sees one pod-addressed flow. A packet that now has this
 * node's own address as source cannot go through the stack, which takes it for forged: it leaves by redirect, and so
 * do the answers to it, which otherwise would be taken for this node's own. */
#include "cut.h"
#include "hold.h"
#include "parse.h"
#include "rewrite_skb.h"
#include "too_big.h"
#include "track.h"

enum socket_buffer {
    TO_ANOTHER_HOST = 3, /* PACKET_OTHERHOST */
    VLAN_NUMBER = 0xfff, /* mask of vlan_tci; 0 = a priority tag, which belongs to no VLAN (IEEE 802.1Q) */
};

/* Declared here since the front end's own declaration lacks the flags. */
static long (*redirect_neighbour)(__u32 ifindex, struct bpf_redir_neigh *next, int size,
                                  __u64 flags) = (void *)BPF_FUNC_redirect_neigh;

/* Whether a frame belongs to a VLAN: it concerns the VLAN's own device, if the node has one, which has programs of its
 * own. Tags inside the packet are those below the first one. */
INLINE int of_a_vlan(const struct __sk_buff *skb, const struct packet *packet) {
    return (skb->vlan_present && (skb->vlan_tci & VLAN_NUMBER)) || packet->tagged;
}

/* Parse what lies in the linear part; fetch more only when that was not enough. */
INLINE enum reason read_packet(struct __sk_buff *skb, struct packet *packet) {
    enum reason reason = REASON_MALFORMED;
    int attempt;

#pragma clang loop unroll(disable)
    for (attempt = 0; attempt < 2; attempt++) {
        __u32 wanted = skb->len < PARSE_BYTES ? skb->len : PARSE_BYTES;

        if (attempt && (skb->data_end - skb->data >= wanted || bpf_skb_pull_data(skb, wanted)))
            break;
        __builtin_memset(packet, 0, sizeof(*packet));
        reason = parse((void *)(long)skb->data, (void *)(long)skb->data_end, skb->len, skb->gso_segs > 1, packet);
        if (likely(reason != REASON_MALFORMED))
            break;
    }
    return reason;
}

/* Bytes of the largest packet that an aggregate will be cut into. */
INLINE __u32 packet_size(struct __sk_buff *skb, const struct packet *packet) {
    if (!skb->gso_size)
        return packet->size;
    return packet->l4 - packet->l3 + packet->transport_size + skb->gso_size;
}

enum neighbour_limits {
    NEIGHBOUR_PROBE = 31, /* mask: of so many packets one goes by the stack's neighbour code, since only its own use of
                             an entry makes it ask whether the neighbour is still there */
};

/* Next hop of a packet that is redirected. */
struct next_hop {
    struct bpf_fib_lookup fib;
    int neighbour_known;
};

/* Look up the next hop. REASON_NONE: `hop` has the device, the next hop and, if known, link-layer addresses. */
INLINE enum reason find_next_hop(struct __sk_buff *skb, const struct packet *packet, const struct translation *entry,
                                 struct next_hop *hop) {
    long result;

    if (packet->hops <= 1)
        return REASON_TTL;
    result = find_route(skb, packet, &entry->source, &entry->destination, skb->ifindex, packet_size(skb, packet), 0,
                        &hop->fib);
    hop->neighbour_known = result == BPF_FIB_LKUP_RET_SUCCESS;
    if (result == BPF_FIB_LKUP_RET_FRAG_NEEDED)
        return REASON_MTU;
    return result == BPF_FIB_LKUP_RET_SUCCESS || result == BPF_FIB_LKUP_RET_NO_NEIGH ? REASON_NONE : REASON_FIB_MISS;
}

/* Add a link-layer header to a packet from a device without one, since a redirect needs it; the function that sends the
 * packet fills it in or removes it. */
INLINE long add_link_layer(struct __sk_buff *skb, const struct packet *packet) {
    __be16 type = to_be16(packet->ipv4 ? ETH_P_IP : ETH_P_IPV6);

    return bpf_skb_change_head(skb, sizeof(struct ethhdr), 0) ||
           bpf_skb_store_bytes(skb, 2 * ETH_ALEN, &type, sizeof(type), 0);
}

/* Redirect through the stack's neighbour code, which resolves the next hop's address if necessary. That code replaces
 * the link-layer header without updating CHECKSUM_COMPLETE, the device's sum over a received packet, so the next
 * receiver would drop UDP that arrived through a tunnel. Growing the packet clears that sum. GSO packets never have it.
 */
INLINE long send_by_neighbour(struct __sk_buff *skb, const struct next_hop *hop) {
    struct bpf_redir_neigh next = {.nh_family = hop->fib.family};
    __u32 length = skb->len;

    if (hop->fib.family == FAMILY_IPV4)
        next.ipv4_nh = hop->fib.ipv4_dst;
    else
        __builtin_memcpy(next.ipv6_nh, hop->fib.ipv6_dst, sizeof(next.ipv6_nh));
    if (!skb->gso_size && (bpf_skb_change_tail(skb, length + 1, 0) || bpf_skb_change_tail(skb, length, 0)))
        return TC_ACT_SHOT;
    return redirect_neighbour(hop->fib.ifindex, &next, sizeof(next), 0);
}

/* Redirect a translated packet. A priority tag is removed unless the packet leaves by the device it came from. */
INLINE long send(struct __sk_buff *skb, const struct packet *packet, const struct next_hop *hop) {
    __u8 header[12];

    if (skb->vlan_present && hop->fib.ifindex != skb->ifindex && bpf_skb_vlan_pop(skb))
        return TC_ACT_SHOT;
    if (!packet->l3 && add_link_layer(skb, packet))
        return TC_ACT_SHOT;
    if (device_flags(hop->fib.ifindex) & DEVICE_RAW_IP) /* a tunnel to many looks for its next hop in a route */
        return redirect_neighbour(hop->fib.ifindex, 0, 0, 0);
    if (!hop->neighbour_known || !packet->l3 || !(bpf_get_prandom_u32() & NEIGHBOUR_PROBE))
        return send_by_neighbour(skb, hop);
    __builtin_memcpy(header, hop->fib.dmac, 6);
    __builtin_memcpy(header + 6, hop->fib.smac, 6);
    if (bpf_skb_store_bytes(skb, 0, header, sizeof(header), 0))
        return TC_ACT_SHOT;
    return bpf_redirect(hop->fib.ifindex, 0);
}

/* Handle a packet that cannot be forwarded. The first one of a flow goes to the slow path, and so do later ones.
 * Replies and packets of existing flows must not reach the stack, which would reset the connection. */
INLINE long refuse(struct __sk_buff *skb, struct packet *packet, const struct translation *entry,
                   const struct next_hop *hop, enum reason found) {
    struct scratch *scratch = this_scratch();

    if (packet->reason == REASON_LEFT_FLOW)
        return TC_ACT_UNSPEC;
    if (packet->reason == REASON_REWRITE_FAILED)
        return TC_ACT_SHOT;
    if (found == REASON_NEW_FLOW || found == REASON_MOVED) {
        if (scratch)
            forget_flow(&packet->tuple, entry, &scratch->reply_key); /* nothing of it was sent on */
        return TC_ACT_UNSPEC;
    }
    if (packet->reason == REASON_TTL)
        return entry->flags & FLOW_REPLY ? TC_ACT_SHOT : TC_ACT_UNSPEC;
    if (packet->reason != REASON_MTU || packet->kind == PACKET_ICMP_ERROR || !packet->keep_whole) {
        packet->reason = REASON_NO_WAY_OUT;
        return TC_ACT_SHOT;
    }
    packet->reason = REASON_TOO_BIG;
    return answer_too_big(skb, packet, hop->fib.tot_len);
}

/* Fragment a packet that exceeds the MTU, if that is allowed. REASON_NONE: done. */
INLINE enum reason fragment_packet(struct __sk_buff *skb, const struct arrival *arrival, struct packet *packet,
                                   const struct translation *entry) {
    struct scratch *scratch = this_scratch();

    if (!scratch || !may_fragment(skb, packet))
        return REASON_MTU;
    if (begin_cut(skb, packet, scratch))
        return REASON_REWRITE_FAILED;
    if (packet->kind == PACKET_FIRST_FRAGMENT && remember_fragment(packet, arrival->now, arrival->hook))
        return give_up_flow(packet, entry, arrival->now) ? REASON_LEFT_FLOW : REASON_REWRITE_FAILED;
    return cut(skb, packet, scratch, arrival->hook) ? REASON_REWRITE_FAILED : REASON_NONE;
}

/* Find the next hop, and fragment the packet if it exceeds the MTU. REASON_NONE: the packet can be forwarded. */
INLINE enum reason route_and_fragment(struct __sk_buff *skb, const struct arrival *arrival, struct packet *packet,
                                      const struct translation *entry, struct next_hop *hop) {
    enum reason reason = REASON_NONE;
    int attempt;

#pragma clang loop unroll(disable)
    for (attempt = 0; attempt < 2; attempt++) {
        reason = hide_reason(packet, find_next_hop(skb, packet, entry, hop));
        if (likely(reason != REASON_MTU) || attempt)
            break;
        reason = hide_reason(packet, fragment_packet(skb, arrival, packet, entry));
        if (reason != REASON_NONE)
            break;
    }
    return reason;
}

/* Translate the packet by the entry. Returns the verdict; if that is not to forward, packet->reason says why. */
INLINE int translate(struct __sk_buff *skb, const struct arrival *arrival, struct packet *packet,
                     struct translation *entry) {
    int away = arrival->hook == HOOK_TC_INGRESS && (entry->flags & FLOW_SNAT);
    enum reason found = packet->reason;
    struct next_hop hop;
    __u32 held = 0;
    long failed;

    if (unlikely(packet->kind == PACKET_FIRST_FRAGMENT))
        held = count_held(packet, arrival->now);
    if (away) {
        if (hide_reason(packet, route_and_fragment(skb, arrival, packet, entry, &hop)) != REASON_NONE)
            return refuse(skb, packet, entry, &hop, found);
        packet->reason = found;
    }
    if (packet->kind == PACKET_FIRST_FRAGMENT && remember_fragment(packet, arrival->now, arrival->hook) &&
        give_up_flow(packet, entry, arrival->now)) {
        packet->reason = REASON_LEFT_FLOW;
        return TC_ACT_UNSPEC;
    }
    if (unlikely(held) && arrival->hook == HOOK_TC_INGRESS && translate_held(skb, packet, held, arrival->now)) {
        packet->reason = REASON_REWRITE_FAILED;
        return TC_ACT_SHOT;
    }
    failed = packet->kind == PACKET_ICMP_ERROR ? rewrite_error_skb(skb, packet, entry, away)
                                               : rewrite_skb(skb, packet, entry, away);
    if (failed) {
        packet->reason = REASON_REWRITE_FAILED;
        return TC_ACT_SHOT;
    }
    packet->translated = 1;
    return away ? send(skb, packet, &hop) : TC_ACT_UNSPEC;
}

/* Handle a fragment that is not translated. Returns the verdict. */
INLINE int pass_fragment(struct __sk_buff *skb, struct packet *packet, __u64 now) {
    if (packet->kind == PACKET_FIRST_FRAGMENT && !translates(packet->reason))
        return pass_held(skb, packet, now) ? TC_ACT_SHOT : TC_ACT_UNSPEC;
    if (packet->reason != REASON_FRAGMENT_UNKNOWN || !hold_fragment(skb, packet, now))
        return TC_ACT_UNSPEC;
    packet->reason = REASON_FRAGMENT_HELD;
    return TC_ACT_STOLEN;
}

INLINE int handle(struct __sk_buff *skb, enum hook hook) {
    struct arrival arrival = {.context = skb, .node = this_node(), .hook = hook, .ifindex = skb->ifindex};
    struct scratch *scratch = this_scratch();
    struct translation *entry = 0;
    struct packet *packet;
    int action = TC_ACT_UNSPEC;
    __u32 service = ~0U;
    enum reason reason;

    if (!scratch || !arrival.node || !(arrival.node->flags & NODE_READY)) {
        count(hook, REASON_NOT_READY);
        return TC_ACT_UNSPEC;
    }
    packet = new_packet(scratch);
    arrival.now = coarse_now(scratch);
    reason = hide_reason(packet, read_packet(skb, packet));
    if (reason == REASON_NONE && unlikely(of_a_vlan(skb, packet)))
        reason = REASON_VLAN;
    if (reason == REASON_NONE && hook == HOOK_TC_INGRESS && unlikely(skb->pkt_type != 0) &&
        (skb->pkt_type != TO_ANOTHER_HOST || !(device_flags(skb->ifindex) & DEVICE_POD)))
        reason = REASON_NOT_FOR_US; /* on a bridge's port, the bridge's own address looks like another host's */
    if (reason == REASON_NONE)
        reason = hook == HOOK_TC_INGRESS ? track(&arrival, packet, &service, &entry)
                                         : track_leaving(&arrival, packet, &entry);
    reason = hide_reason(packet, reason);
    if (entry && translates(reason)) {
        service = entry->service;
        action = hide_value(scratch, translate(skb, &arrival, packet, entry));
    }
    if (unlikely(packet->kind == PACKET_FIRST_FRAGMENT || packet->kind == PACKET_LATER_FRAGMENT) &&
        hook == HOOK_TC_INGRESS && action == TC_ACT_UNSPEC)
        action = pass_fragment(skb, packet, arrival.now);
    count(hook, packet->reason);
    emit_packet_event(&arrival, packet, service, packet->translated ? entry : 0);
    if (entry && packet->translated)
        touch(packet, entry, arrival.now);
    return action;
}

PROGRAM(tc_ingress)(struct __sk_buff *skb) {
    return handle(skb, HOOK_TC_INGRESS);
}

PROGRAM(tc_egress)(struct __sk_buff *skb) {
    return handle(skb, HOOK_TC_EGRESS);
}
