/* Geneve (RFC 8926) as others may send it: with options beside ours. Nodes of hotplane send ours alone, for which
 * read_wrapper() is enough. */
#ifndef HOTPLANE_GENEVE_H
#define HOTPLANE_GENEVE_H

#include "tunnel.h"

/* An option, and the first word of its data. */
struct geneve_option {
    __be16 class;
    __u8 type;
    __u8 length;
    __be16 data[2];
};

enum geneve_limits {
    MOST_OPTIONS = 63, /* all of them without data */
};

/* Note what one option says. REASON_NONE: it may be there. */
INLINE enum reason read_option(const struct geneve_option *option, __u32 words, struct wrapper *wrapper) {
    if (option->class == to_be16(OPTION_CLASS) && is_kind(option->type)) {
        if (wrapper->kind || words != 1)
            return REASON_TUNNEL_FORMAT;
        wrapper->kind = option->type;
        wrapper->endpoint = both_halves(option->data);
    } else if (option->type & OPTION_CRITICAL) {
        return REASON_TUNNEL_OPTION;
    }
    return REASON_NONE;
}

/* Read a Geneve header with any options; of what is not known, only what is critical matters (section 3.5). `header`:
 * what the packet begins with behind its outer IP header, `packet`. REASON_NONE: `wrapper` says what is inside. */
INLINE enum reason read_options(struct __sk_buff *skb, const struct node *node, struct packet *packet,
                                struct scratch *scratch, const struct tunnel_header *header, struct wrapper *wrapper) {
    __u32 first = to_be32(header->first), all = first >> GENEVE_WORDS_SHIFT & GENEVE_WORDS, done = 0;
    struct geneve_option option;
    enum reason reason;
    int number;

    if ((first & (GENEVE_VERSION | GENEVE_CONTROL)) || (first & 0xffff) != (packet->ipv4 ? ETH_P_IP : ETH_P_IPV6) ||
        (to_be32(header->vni) ^ to_be32(node->tunnel_vni)) >> GENEVE_VNI_SHIFT)
        return REASON_TUNNEL_FORMAT;
    wrapper->kind = 0;
    wrapper->endpoint = 0;
    wrapper->overhead = ip_header_size(packet) + GENEVE_BASE + all * 4;
#pragma clang loop unroll(disable)
    for (number = 0; number < MOST_OPTIONS; number++) {
        __u32 words;

        done = hide_value(scratch, done);
        if (done >= all)
            break;
        if (bpf_skb_load_bytes(skb, packet->l4 + GENEVE_BASE + done * 4, &option, sizeof(option)))
            return REASON_TUNNEL_FORMAT;
        words = option.length & OPTION_WORDS;
        done += 1 + words;
        reason = hide_reason(packet, done > all ? REASON_TUNNEL_FORMAT : read_option(&option, words, wrapper));
        if (reason != REASON_NONE)
            return reason;
        wrapper->kind = hide_value(scratch, wrapper->kind); /* read back, so that to the verifier it is any */
    }
    return wrapper->kind ? REASON_NONE : REASON_TUNNEL_FORMAT;
}

#endif
