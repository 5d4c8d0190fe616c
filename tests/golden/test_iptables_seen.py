"""Rules as they were seen on real clusters, to the letter."""

from dataplane.model.net import Family, Protocol
from dataplane.model.objects import EndpointSlice, Service, ServicePortSpec
from dataplane.plan.types import Plan
from dataplane.planes.iptables.fake import FakeTables
from dataplane.planes.iptables.plane import IptablesPlane
from dataplane.policy.node import LocalDetector, NodeConfig, NodePortAddresses
from tests.golden.iptables.plans import plan_of, slice_of, tcp

K3S = NodeConfig(
    name="here",
    addresses=("172.31.42.23",),
    detector=LocalDetector(cidrs=("10.42.0.0/16",)),
    nodeports=NodePortAddresses(any_local=True, loopback=True),
)
ECHO = ("10.42.0.10", "10.42.0.11", "10.42.0.9")


def echo_slice(name: str, local: tuple[str, ...] = ECHO) -> EndpointSlice:
    return slice_of(name, *ECHO, local=local)


def saved(plan: Plan, table: str = "nat") -> list[str]:
    tables = FakeTables(Family.IPV4)
    IptablesPlane(tables=[tables], ensure_sysctl=lambda name, value: None).load(plan)
    return tables.save(table).splitlines()


def chain(lines: list[str], name: str) -> list[str]:
    return [line for line in lines if line.startswith(f"-A {name} ")]


def test_a_plain_cluster_ip() -> None:
    rules = saved(plan_of(Service("default", "echo", cluster_ips=("10.43.91.128",), ports=(tcp(6711),)),
                          echo_slice("echo"), node=K3S))  # fmt: skip
    assert chain(rules, "PREROUTING") == [
        '-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES'
    ]
    assert chain(rules, "OUTPUT") == ['-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES']
    assert chain(rules, "KUBE-SERVICES") == [
        '-A KUBE-SERVICES -d 10.43.91.128/32 -p tcp -m comment --comment "default/echo cluster IP" -m tcp --dport 6711 '
        "-j KUBE-SVC-HV6DMF63W6MGLRDE",
        '-A KUBE-SERVICES -m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this '
        'chain" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS',
    ]
    assert chain(rules, "KUBE-SVC-HV6DMF63W6MGLRDE") == [
        "-A KUBE-SVC-HV6DMF63W6MGLRDE ! -s 10.42.0.0/16 -d 10.43.91.128/32 -p tcp -m comment --comment "
        '"default/echo cluster IP" -m tcp --dport 6711 -j KUBE-MARK-MASQ',
        '-A KUBE-SVC-HV6DMF63W6MGLRDE -m comment --comment "default/echo -> 10.42.0.10:8080" -m statistic --mode '
        "random --probability 0.33333333349 -j KUBE-SEP-QKHRHCLFVYAPNTMT",
        '-A KUBE-SVC-HV6DMF63W6MGLRDE -m comment --comment "default/echo -> 10.42.0.11:8080" -m statistic --mode '
        "random --probability 0.50000000000 -j KUBE-SEP-H5H4EIE4RL3K23M2",
        '-A KUBE-SVC-HV6DMF63W6MGLRDE -m comment --comment "default/echo -> 10.42.0.9:8080" '
        "-j KUBE-SEP-E74O23K3CEWRBTQR",
    ]
    assert chain(rules, "KUBE-SEP-QKHRHCLFVYAPNTMT") == [
        '-A KUBE-SEP-QKHRHCLFVYAPNTMT -s 10.42.0.10/32 -m comment --comment "default/echo" -j KUBE-MARK-MASQ',
        '-A KUBE-SEP-QKHRHCLFVYAPNTMT -p tcp -m comment --comment "default/echo" -m tcp -j DNAT '
        "--to-destination 10.42.0.10:8080",
    ]
    assert chain(rules, "KUBE-MARK-MASQ") == ["-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000"]
    assert chain(rules, "KUBE-POSTROUTING") == [
        "-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN",
        "-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0",
        '-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE '
        "--random-fully",
    ]


def test_session_affinity() -> None:
    service = Service("default", "echo-session", cluster_ips=("10.43.16.138",), ports=(tcp(6711),),
                      affinity_seconds=10800)  # fmt: skip
    rules = saved(plan_of(service, echo_slice("echo-session"), node=K3S))
    known, mask = "-m recent --rcheck --seconds 10800 --reap --name", "--mask 255.255.255.255 --rsource"
    head = '-A KUBE-SVC-ZACZRH37NSSVE74M -m comment --comment "default/echo-session ->'
    one, two, three = "KUBE-SEP-5S4SOT7OIG3HMTHM", "KUBE-SEP-RBDR2NWVDKJFF37X", "KUBE-SEP-ZYFM7UQEEXHOQCCO"
    assert chain(rules, "KUBE-SVC-ZACZRH37NSSVE74M")[1:] == [
        f'{head} 10.42.0.10:8080" {known} {one} {mask} -j {one}',
        f'{head} 10.42.0.11:8080" {known} {two} {mask} -j {two}',
        f'{head} 10.42.0.9:8080" {known} {three} {mask} -j {three}',
        f'{head} 10.42.0.10:8080" -m statistic --mode random --probability 0.33333333349 -j {one}',
        f'{head} 10.42.0.11:8080" -m statistic --mode random --probability 0.50000000000 -j {two}',
        f'{head} 10.42.0.9:8080" -j {three}',
    ]
    assert chain(rules, one) == [
        f'-A {one} -s 10.42.0.10/32 -m comment --comment "default/echo-session" -j KUBE-MARK-MASQ',
        f'-A {one} -p tcp -m comment --comment "default/echo-session" -m recent --set --name {one} {mask} -m tcp '
        "-j DNAT --to-destination 10.42.0.10:8080",
    ]


def test_an_external_ip() -> None:
    service = Service("default", "echo-extip", cluster_ips=("10.43.206.140",), external_ips=("172.31.42.23",),
                      ports=(tcp(8711),))  # fmt: skip
    rules = saved(plan_of(service, echo_slice("echo-extip"), node=K3S))
    assert chain(rules, "KUBE-SERVICES")[:2] == [
        '-A KUBE-SERVICES -d 10.43.206.140/32 -p tcp -m comment --comment "default/echo-extip cluster IP" -m tcp '
        "--dport 8711 -j KUBE-SVC-VICMHRUMYETMHGPR",
        '-A KUBE-SERVICES -d 172.31.42.23/32 -p tcp -m comment --comment "default/echo-extip external IP" -m tcp '
        "--dport 8711 -j KUBE-EXT-VICMHRUMYETMHGPR",
    ]
    assert chain(rules, "KUBE-EXT-VICMHRUMYETMHGPR") == [
        '-A KUBE-EXT-VICMHRUMYETMHGPR -m comment --comment "masquerade traffic for default/echo-extip external '
        'destinations" -j KUBE-MARK-MASQ',
        "-A KUBE-EXT-VICMHRUMYETMHGPR -j KUBE-SVC-VICMHRUMYETMHGPR",
    ]


def test_a_service_without_endpoints_is_not_in_nat_at_all() -> None:
    service = Service("default", "echo-noep", cluster_ips=("10.43.136.207",), ports=(tcp(8711),))
    plan = plan_of(service, node=K3S)
    assert not [line for line in saved(plan) if "echo-noep" in line]
    assert chain(saved(plan, "filter"), "KUBE-SERVICES") == [
        '-A KUBE-SERVICES -d 10.43.136.207/32 -p tcp -m comment --comment "default/echo-noep has no endpoints" -m tcp '
        "--dport 8711 -j REJECT --reject-with icmp-port-unreachable"
    ]


def test_node_ports() -> None:
    np = Service("default", "echo-np", cluster_ips=("10.43.209.114",), ports=(tcp(8711, 31529),))
    local = Service("default", "echo-local", cluster_ips=("10.43.77.106",), ports=(tcp(8711, 31534),),
                    external_local=True)  # fmt: skip
    rules = saved(plan_of(np, echo_slice("echo-np"), local, echo_slice("echo-local"), node=K3S))
    assert chain(rules, "KUBE-NODEPORTS") == [
        '-A KUBE-NODEPORTS -p tcp -m comment --comment "default/echo-local" -m tcp --dport 31534 '
        "-j KUBE-EXT-TTO3CLWIB2CZNJXW",
        '-A KUBE-NODEPORTS -p tcp -m comment --comment "default/echo-np" -m tcp --dport 31529 '
        "-j KUBE-EXT-XS3QDOAWI6R6C3NX",
    ]
    what, ext = 'traffic for default/echo-local external destinations"', "-A KUBE-EXT-TTO3CLWIB2CZNJXW"
    assert chain(rules, "KUBE-EXT-TTO3CLWIB2CZNJXW") == [
        f'{ext} -s 10.42.0.0/16 -m comment --comment "pod {what} -j KUBE-SVC-TTO3CLWIB2CZNJXW',
        f'{ext} -m comment --comment "masquerade LOCAL {what} -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ',
        f'{ext} -m comment --comment "route LOCAL {what} -m addrtype --src-type LOCAL -j KUBE-SVC-TTO3CLWIB2CZNJXW',
        f"{ext} -j KUBE-SVL-TTO3CLWIB2CZNJXW",
    ]


def test_dns_over_udp() -> None:
    service = Service("kube-system", "kube-dns", cluster_ips=("10.43.0.10",),
                      ports=(ServicePortSpec("dns", Protocol.UDP, 53),))  # fmt: skip
    endpoints = slice_of("kube-dns", "10.42.0.3", port=53, namespace="kube-system", port_name="dns",
                         protocol=Protocol.UDP)  # fmt: skip
    assert chain(saved(plan_of(service, endpoints, node=K3S)), "KUBE-SERVICES")[0] == (
        '-A KUBE-SERVICES -d 10.43.0.10/32 -p udp -m comment --comment "kube-system/kube-dns:dns cluster IP" -m udp '
        "--dport 53 -j KUBE-SVC-TCOU7JCQXEZGVUNU"
    )
