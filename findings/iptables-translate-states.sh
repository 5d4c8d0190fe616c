#!/usr/bin/env bash
# iptables-translate drops the states from a rule that names DNAT or SNAT beside them. `--ctstate ESTABLISHED,DNAT`
# matches what belongs to a connection and what was redirected; `ct status dnat` is what is left of it, so that later
# packets of all other connections no longer match. A `!` in front of a list with DNAT is gone as well, also where DNAT
# is alone: the rule about all but redirected connections becomes one about these. kube-proxy's rule that drops what
# comes to 127.0.0.0/8 from elsewhere has such a list, `! --ctstate RELATED,ESTABLISHED,DNAT`, and drops what was
# redirected once it is translated. iptables-extensions(8) has `[!] --ctstate statelist`, "a comma separated list of the
# connection states to match", with SNAT and DNAT among them. What it cannot translate the tool prints behind a #, but
# not this. Lists without the two come out right.
#
# Seen with iptables 1.8.9 and nftables 1.0.6 of Debian 12, python3 3.11.2, Linux 6.18.44; iptables-translate 1.8.11 of
# Debian 13 does the same. A datagram goes to port 9000 ("plain") and is answered, another to port 9001, from where it
# is "redirected" to 9000, and is answered; told is what the rule and its translation match of that.
#
# Output seen:
#   --ctstate ESTABLISHED: iptables answer answer; translated answer answer, by ct state established
#   --ctstate ESTABLISHED,DNAT: iptables answer redirected answer; translated redirected answer, by ct status dnat
#   ! --ctstate NEW,DNAT: iptables answer; translated redirected answer, by ct status dnat
#   --ctstate DNAT: iptables redirected answer; translated redirected answer, by ct status dnat
#   ! --ctstate DNAT: iptables plain answer; translated redirected answer, by ct status dnat
#
# Exit 0: as described; 1: something has changed.
set -eu -o pipefail
space=finding-states-$$
trap 'ip netns del "$space"' EXIT
ip netns add "$space"
ip -n "$space" link set lo up
seen=$(ip netns exec "$space" python3 - <<'PYTHON'
import re
import socket
import subprocess

SERVER, REDIRECTED = 9000, 9001
CHAINS = {"iptables": "filter OUTPUT", "translated": "translated sent"}
TABLES = f"""
table ip redirects {{
    chain sent {{
        type nat hook output priority -100
        udp dport {REDIRECTED} redirect to :{SERVER}
    }}
}}
table ip translated {{
    chain sent {{
        type filter hook output priority 0
    }}
}}
"""


def run(*command, **options):
    return subprocess.run(command, check=True, capture_output=True, text=True, **options).stdout


def packets(chain):
    return int(re.search(r"packets (\d+)", run("nft", "list", "chain", "ip", *chain.split()))[1])


def told(match):
    run("iptables", "-F", "OUTPUT")
    run("nft", "flush", "chain", "ip", "translated", "sent")
    rule = ["-A", "OUTPUT", "-p", "udp", "-m", "conntrack", *match.split()]
    run("iptables", *rule)
    made = run("iptables-translate", *rule).strip().removeprefix("nft '").removesuffix("'")
    run("nft", made.replace("ip filter OUTPUT", "ip translated sent"))
    found = {name: [] for name in CHAINS}

    def watched(what, send):
        before = {name: packets(chain) for name, chain in CHAINS.items()}
        send()
        for name, chain in CHAINS.items():
            if packets(chain) > before[name]:
                found[name].append(what)

    for port, what in ((SERVER, "plain"), (REDIRECTED, "redirected")):
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
        ):
            server.bind(("127.0.0.1", SERVER))
            watched(what, lambda: client.sendto(b"x", ("127.0.0.1", port)))
            client_address = server.recvfrom(9)[1]
            watched("answer", lambda: server.sendto(b"y", client_address))
    text = "; ".join(" ".join([name, *what]) for name, what in found.items())
    print(f"{match}: {text}, by {re.search('ct .*(?= counter)', made)[0]}")


run("nft", "-f", "-", input=TABLES)
for match in ("--ctstate ESTABLISHED", "--ctstate ESTABLISHED,DNAT", "! --ctstate NEW,DNAT"):
    told(match)
for match in ("--ctstate DNAT", "! --ctstate DNAT"):
    told(match)
PYTHON
)
printf '%s\n' "$seen"
[[ $seen == "--ctstate ESTABLISHED: iptables answer answer; translated answer answer, by ct state established
--ctstate ESTABLISHED,DNAT: iptables answer redirected answer; translated redirected answer, by ct status dnat
! --ctstate NEW,DNAT: iptables answer; translated redirected answer, by ct status dnat
--ctstate DNAT: iptables redirected answer; translated redirected answer, by ct status dnat
! --ctstate DNAT: iptables plain answer; translated redirected answer, by ct status dnat" ]]
