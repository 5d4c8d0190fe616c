/* Fills a Maglev table: the same as dataplane/policy/maglev.py, fill(). Built and called by fill_table.py. */
#include <stdint.h>

#define EMPTY UINT64_MAX

/* table: `size` slots, each gets the value of the backend that has it. next: by turn, the first slot of each
 * permutation; changed. skips: its step, below size. places: its weight; credit: as many zeros. most: the largest
 * weight. values: of each backend, none EMPTY. */
void fill_table(uint64_t *table, uint32_t size, uint32_t count, uint32_t *next, const uint32_t *skips,
                const uint32_t *places, uint32_t *credit, uint32_t most, const uint64_t *values) {
    uint32_t left = size;

    for (uint32_t slot = 0; slot < size; slot++)
        table[slot] = EMPTY;
    for (;;) {
        for (uint32_t turn = 0; turn < count; turn++) {
            uint32_t slot = next[turn], skip = skips[turn];

            credit[turn] += places[turn];
            if (credit[turn] < most)
                continue;
            credit[turn] -= most;
            while (table[slot] != EMPTY) {
                slot += skip;
                slot -= slot >= size ? size : 0;
            }
            table[slot] = values[turn];
            slot += skip;
            next[turn] = slot >= size ? slot - size : slot;
            if (!--left)
                return;
        }
    }
}
