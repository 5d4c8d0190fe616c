/* Internet checksums (RFC 1071) changed by difference (RFC 1624). A difference is the sum of the new 32-bit words and
 * of the complements of the old ones, in network order, which the sum does not care about. */
#ifndef HOTPLANE_CHECKSUM_H
#define HOTPLANE_CHECKSUM_H

#include "helpers.h"

INLINE __u64 difference(__be32 old, __be32 new) {
    return (__u64)(__u32)~old + new;
}

INLINE __u64 address_difference(const struct address *old, const struct address *new, int ipv4) {
    __u64 sum = difference(old->word[3], new->word[3]);

    if (!ipv4)
        sum += difference(old->word[0], new->word[0]) + difference(old->word[1], new->word[1]) +
               difference(old->word[2], new->word[2]);
    return sum;
}

/* As a 32-bit sum, for the kernel's helpers. */
INLINE __u32 fold32(__u64 sum) {
    sum = (sum & 0xffffffff) + (sum >> 32);
    return (sum & 0xffffffff) + (sum >> 32);
}

/* Of a sum of less than 2^48. What is carried the second time is 0 or 1. */
INLINE __u16 fold16(__u64 sum) {
    sum = (sum & 0xffffffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    return sum + (sum >> 16);
}

/* The checksum field after words that it covers changed by `sum`. */
INLINE __be16 adjusted(__be16 check, __u64 sum) {
    return ~fold16((__u16)~check + sum);
}

/* The same for a sum that is folded already. */
INLINE __be16 adjusted16(__be16 check, __u16 sum) {
    __u32 both = (__u32)(__u16)~check + sum;

    return ~((both & 0xffff) + (both >> 16));
}

#endif
