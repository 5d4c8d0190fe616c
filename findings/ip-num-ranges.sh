#!/usr/bin/env bash
# ip-num's RangedSet.subtract() returns a range with the addresses in it that were to be taken away: always from its own
# first address to the other range's last. 10.0.0.0-9 less 10.0.0.5-20 is 10.0.0.0-20, larger than before, and less
# 10.0.0.3-4 it is 10.0.0.0-4, so that 5 to 9 are gone instead. difference(), in the same class, is right about the
# latter, and refuses the former. Two ranges that share exactly one address do not overlap for isOverlapping(), though
# both contain it, so union() and subtract() refuse them ("Ranges do not overlap nor are equal"); with two addresses in
# common both are willing. A range that lies within another overlaps it, against the description of isOverlapping()
# ("Equal or ranges contained inside one another are not considered as overlapping"); that of IPv4CidrRange has it so.
#
# Seen with ip-num 1.6.2 (the newest release when this was written), node 20.20.2.
#
# Output seen:
#   0-9 less 5-20: subtract 10.0.0.0-10.0.0.20, difference refused
#   0-9 less 3-4: subtract 10.0.0.0-10.0.0.4, difference 10.0.0.0-10.0.0.2 10.0.0.5-10.0.0.9
#   0-9 and 8-12: overlap true, both have 9, union 10.0.0.0-10.0.0.12
#   0-9 and 9-12: overlap false, both have 9, union refused
#   0-9 and 3-4: overlap true
#
# Exit 0: as described; 1: something has changed.
set -eu -o pipefail
folder=$(mktemp -d)
trap 'rm -rf -- "$folder"' EXIT
npm install --prefix "$folder" --cache "$folder/cache" --silent --no-audit --no-fund --ignore-scripts ip-num@1.6.2
cat >"$folder/tried.cjs" <<'JAVASCRIPT'
const { IPv4, RangedSet } = require("ip-num");

const address = (last) => IPv4.fromString(`10.0.0.${last}`);

// Of "0-9": 10.0.0.0 to 10.0.0.9.
function range(text) {
  const [first, last] = text.split("-");
  return new RangedSet(address(first), address(last));
}

function result(asked) {
  try {
    return [asked()].flat().map((found) => found.toRangeString()).join(" ");
  } catch (error) {
    return "refused";
  }
}

for (const [one, other] of [["0-9", "5-20"], ["0-9", "3-4"]]) {
  const subtracted = result(() => range(one).subtract(range(other)));
  const difference = result(() => range(one).difference(range(other)));
  console.log(`${one} less ${other}: subtract ${subtracted}, difference ${difference}`);
}
for (const [one, other] of [["0-9", "8-12"], ["0-9", "9-12"]]) {
  const [first, second] = [range(one), range(other)];
  const both = first.contains(range("9-9")) && second.contains(range("9-9")) ? "both have 9" : "not both have 9";
  const union = result(() => first.union(second));
  console.log(`${one} and ${other}: overlap ${first.isOverlapping(second)}, ${both}, union ${union}`);
}
console.log(`0-9 and 3-4: overlap ${range("0-9").isOverlapping(range("3-4"))}`);
JAVASCRIPT
seen=$(node "$folder/tried.cjs")
printf '%s\n' "$seen"
[[ $seen == "0-9 less 5-20: subtract 10.0.0.0-10.0.0.20, difference refused
0-9 less 3-4: subtract 10.0.0.0-10.0.0.4, difference 10.0.0.0-10.0.0.2 10.0.0.5-10.0.0.9
0-9 and 8-12: overlap true, both have 9, union 10.0.0.0-10.0.0.12
0-9 and 9-12: overlap false, both have 9, union refused
0-9 and 3-4: overlap true" ]]
