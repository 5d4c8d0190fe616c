#!/usr/bin/env bash
# What `nft -j list ruleset` says is not what `nft -j -f` takes. A map whose values are concatenated, such as address
# and port for dnat, is refused by the very nft that listed it ("Invalid map type"), and with it the whole ruleset.
# Without such a map the ruleset is loaded, but comments of tables, chains and sets, the `dynamic` flag and the counters
# of elements are gone, without a word. The plain listing comes back whole. libnftables-json(5): JSON is "an alternative
# frontend to the standard CLI syntax parser, therefore basic behaviour is identical".
#
# Seen with nftables 1.0.6 of Debian 12, Linux 6.18.44. nftables 1.1.3 of Debian 13 reads such maps again, and still
# loses the comments of sets and the counters of elements.
#
# Output seen:
#   map, text: whole
#   map, json: Error: Invalid map type 'ipv4_addr . inet_service'.
#   set, text: whole
#   set, json: loaded, without
#     comment "a table"
#     flags dynamic
#     comment "a set"
#     elements = { 192.0.2.1 counter packets 5 bytes 6 }
#     comment "a chain"
#   and with
#     elements = { 192.0.2.1 counter packets 0 bytes 0 }
#
# Exit 0: as described; 1: something has changed.
set -eu -o pipefail
space=finding-json-$$ folder=$(mktemp -d)
trap 'rm -rf -- "$folder"; ip netns del "$space"' EXIT
ip netns add "$space"
inside() { ip netns exec "$space" "$@"; }
# List a ruleset, load the listing into an empty namespace, and tell what has become of it.
restored() {
    local -a form=()
    [[ $1 == text ]] || form=(-j)
    inside nft flush ruleset
    inside nft -f "$2"
    inside nft list ruleset >"$folder/before"
    inside nft "${form[@]}" list ruleset >"$folder/listing"
    inside nft flush ruleset
    if ! inside nft "${form[@]}" -f "$folder/listing" >"$folder/said" 2>&1; then
        grep -o 'Error: Invalid.*' "$folder/said"
        return
    fi
    inside nft list ruleset >"$folder/after"
    if cmp -s "$folder/before" "$folder/after"; then
        printf 'whole\n'
    else
        printf 'loaded, without\n'
        diff "$folder/before" "$folder/after" | sed -nE 's/^<\s+/  /p' || true
        printf 'and with\n'
        diff "$folder/before" "$folder/after" | sed -nE 's/^>\s+/  /p' || true
    fi
}
cat >"$folder/map" <<'NFT'
table ip finding {
    map to {
        type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service
        elements = { 192.0.2.1 . tcp . 80 : 10.0.0.1 . 8080 }
    }
}
NFT
cat >"$folder/set" <<'NFT'
table ip finding {
    comment "a table"
    set clients {
        type ipv4_addr
        flags dynamic
        counter
        comment "a set"
        elements = { 192.0.2.1 counter packets 5 bytes 6 }
    }
    chain calls {
        comment "a chain"
    }
}
NFT
seen=$(for file in map set; do for form in text json; do
    printf '%s, %s: %s\n' "$file" "$form" "$(restored "$form" "$folder/$file")"
done; done)
printf '%s\n' "$seen"
[[ $seen == "map, text: whole
map, json: Error: Invalid map type 'ipv4_addr . inet_service'.
set, text: whole
set, json: loaded, without
  comment \"a table\"
  flags dynamic
  comment \"a set\"
  elements = { 192.0.2.1 counter packets 5 bytes 6 }
  comment \"a chain\"
and with
  elements = { 192.0.2.1 counter packets 0 bytes 0 }" ]]
