#!/usr/bin/env bash
# lnstat prints counters divided by the seconds of its interval, cut off to whole numbers. With the interval that it has
# by default, two seconds, one connection that could not be inserted in that time, or one drop, is 0, and so it stays at
# every interval in which there is no second one; of nine events an interval of ten seconds shows none. lnstat(8): it
# "sums these values up (which in fact are counters) before printing them. After each interval, only the difference to
# the last value is printed." The manual knows no division, and names no default. JSON is alike, and so are rtstat and
# ctstat, which are the same program. The first column, entries, is not divided; with -i 1 the numbers are what they are
# said to be. (Besides, it ends with status 1 after the last of the intervals that were asked for.)
#
# Seen with iproute2 6.1.0 and conntrack 1.4.7 of Debian 12, Linux 6.18.44; iproute2 6.15.0 of Debian 13 does the same.
# Nine connections are inserted in a network namespace of its own. The first difference is one to zero, so that nothing
# here depends on time.
#
# Output seen:
#   kernel: 9 inserted, 9 entries
#   lnstat -i 1: 9 inserted, 9 entries
#   lnstat: 4 inserted, 9 entries
#   lnstat -i 5: 1 inserted, 9 entries
#   lnstat -i 10: 0 inserted, 9 entries
#   lnstat -i 10 -j: 0 inserted, 9 entries
#
# Exit 0: as described; 1: something has changed.
set -eu -o pipefail
space=finding-lnstat-$$
trap 'ip netns del "$space"' EXIT
ip netns add "$space"
inside() { ip netns exec "$space" "$@"; }
for number in 1 2 3 4 5 6 7 8 9; do
    inside conntrack -I -s 192.0.2.1 -d 192.0.2.2 -p udp --sport "$number" --dport 53 -t 600
done >/dev/null 2>&1
# What the processors' lines of the file come to.
kernel() {
    inside python3 - <<'PYTHON'
with open("/proc/net/stat/nf_conntrack") as file:
    names, *lines = (line.split() for line in file)
rows = [dict(zip(names, line, strict=True)) for line in lines]
print(sum(int(row["insert"], 16) for row in rows), "inserted,", int(rows[0]["entries"], 16), "entries")
PYTHON
}
# One line of lnstat, which always ends with status 1.
told() { inside lnstat -c 1 -f nf_conntrack -k insert,entries "$@" || [[ $? == 1 ]]; }
printed() { told -s 0 "$@" | awk -F '|' '{ print $1 + 0, "inserted,", $2 + 0, "entries" }'; }
as_json() { told -j "$@" | jq -r '"\(.insert) inserted, \(.entries) entries"'; }
seen="kernel: $(kernel)
lnstat -i 1: $(printed -i 1)
lnstat: $(printed)
lnstat -i 5: $(printed -i 5)
lnstat -i 10: $(printed -i 10)
lnstat -i 10 -j: $(as_json -i 10)"
printf '%s\n' "$seen"
[[ $seen == "kernel: 9 inserted, 9 entries
lnstat -i 1: 9 inserted, 9 entries
lnstat: 4 inserted, 9 entries
lnstat -i 5: 1 inserted, 9 entries
lnstat -i 10: 0 inserted, 9 entries
lnstat -i 10 -j: 0 inserted, 9 entries" ]]
