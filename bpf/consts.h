/* Every number that the programs and the control plane share. Enumerations only: cffi reads this file too.
 * Changing a value changes the layout version of the maps (see dataplane/planes/ebpf/maps/layout.py). */
#ifndef HOTPLANE_CONSTS_H
#define HOTPLANE_CONSTS_H

/* Where a packet or a socket comes from, as this node sees it (policy.node.Source). Indexes frontend.routes. */
enum source_class {
    SOURCE_POD,
    SOURCE_NODE,
    SOURCE_OUTSIDE,
    SOURCE_COUNT,
};

/* One byte of frontend.routes: an action in the low two bits, then flags. */
enum route_bits {
    ROUTE_FORWARD = 1,
    ROUTE_REJECT = 2,
    ROUTE_DROP = 3,
    ROUTE_ACTION = 3,     /* mask of the action */
    ROUTE_LOCAL = 4,      /* choose from the Local set, not from the Cluster set */
    ROUTE_MASQUERADE = 8, /* the policy asks for this node's address as source */
};

/* frontend.kind: for views and read-back; the programs do not look at it. */
enum frontend_kind {
    FRONTEND_CLUSTER_IP,
    FRONTEND_EXTERNAL_IP,
    FRONTEND_LOAD_BALANCER,
    FRONTEND_NODE_PORT,
    FRONTEND_HOST_PORT,
};

/* frontend.flags */
enum frontend_flags {
    FRONTEND_RANGES = 1,  /* sources are restricted to the CIDRs of frontend.range_set */
    FRONTEND_FORWARD = 2, /* outside clients keep their address on the way to backends with backend.tunnel */
    FRONTEND_DSR = 4,     /* and the backend's node answers them itself */
    FRONTEND_MAGLEV = 8,  /* the set for clients from outside is a Maglev table, in which their hash leads them */
};

/* backend.flags. Nothing new goes to a backend in neither set; without any of BACKEND_SERVES it is dead. */
enum backend_flags {
    BACKEND_IN_CLUSTER = 1, /* member of the Cluster set of its service */
    BACKEND_IN_LOCAL = 2,   /* member of the Local set of its service */
    BACKEND_USABLE = 3,     /* mask: member of any set */
    BACKEND_HERE = 4,       /* the endpoint runs on this node */
    BACKEND_LINGERS = 8,    /* in neither set, yet it serves: UDP flows that it has stay (dataplane/plan/udp.py) */
    BACKEND_SERVES = 11,    /* mask: member of any set, or lingers */
};

/* service.flags: kept for adoption by a later daemon; the programs do not look at them. */
enum service_flags {
    SERVICE_PRESENT = 1,
    SERVICE_INTERNAL_LOCAL = 2,
    SERVICE_EXTERNAL_LOCAL = 4,
    SERVICE_FORWARD = 8, /* its external frontends have FRONTEND_FORWARD */
    SERVICE_DSR = 16,    /* and FRONTEND_DSR */
};

/* device.flags, by what the device is to this node. */
enum device_flags {
    DEVICE_UPLINK = 1,
    DEVICE_POD = 2, /* a pod's own device, or a port of the pods' bridge */
    DEVICE_OVERLAY = 4,
    DEVICE_DETECTED = 8,       /* what comes in here counts as a pod's, where pods are detected by device */
    DEVICE_XDP_TARGET = 16,    /* XDP may redirect here */
    DEVICE_STRICT = 32,        /* net.ipv4.conf.*.rp_filter = 1: a source must be reached by the device it came by */
    DEVICE_LOOSE = 64,         /* = 2: a source must be reached at all */
    DEVICE_RAW_IP = 128,       /* no link-layer header: tun, WireGuard, IPIP */
    DEVICE_HOST_ROUTING = 256, /* what comes in or leaves here may go past the node's stack */
};

/* pod.flags */
enum pod_flags {
    POD_BRIDGED = 1, /* its device is a port of a bridge: frames between its ports are switched, not routed */
};

/* direct_flow.flags. The ends of a flow are called by their order in the key. */
enum direct_flags {
    DIRECT_STACK = 1,     /* the node's stack has this flow, and connection tracking may translate it */
    DIRECT_FROM_LOW = 2,  /* UDP: the end that comes first in the key has sent something */
    DIRECT_FROM_HIGH = 4, /* and the other one */
    DIRECT_OPEN = 8,      /* TCP: past its SYN; UDP: packets both ways for UDP_STREAM_AFTER */
    DIRECT_FIN_LOW = 16,
    DIRECT_FIN_HIGH = 32,
};

/* Indices of the map `host_times`, whose values are of the bpf_ktime_get_ns() clock. */
enum host_times {
    HOST_ROUTING_UNTIL,  /* the daemon renews it as long as it keeps `pods` right; 0 = never was on */
    HOST_DISTRUST_UNTIL, /* unknown datagrams are the stack's: one of its flows could not be noted */
    HOST_GENERATION,     /* no time: a number that is new whenever somebody was taken out of `pods` */
    HOST_TIMES,
};

/* Indices of the map `tail_calls`. */
enum program_numbers {
    PROGRAM_SERVICES, /* tc_ingress of tc.c */
    PROGRAM_HOST,     /* tc_host of host.c */
    PROGRAM_FORWARD,  /* tc_forward of forward.c */
    PROGRAM_UNWRAP,   /* tc_unwrap of forward.c */
    PROGRAM_ANSWER,   /* tc_answer of forward.c */
    PROGRAM_COUNT,
};

/* Indices of the map `xdp_calls`. */
enum xdp_program_numbers {
    XDP_PROGRAM_UNWRAP, /* xdp_unwrap of xdp_forward.c */
    XDP_PROGRAM_COUNT,
};

/* What a forwarded packet is (tunnel.h). */
enum tunnel_kinds {
    TUNNEL_ASK = 1,     /* a client's, whose answers come back through the tunnel */
    TUNNEL_ASK_DSR = 2, /* a client's, which the endpoint's node answers itself */
    TUNNEL_ANSWER = 3,  /* an answer, on its way to the node that the client talks to */
};

/* tunnel.format: how packets to a node are wrapped (tunnel.h). Every node opens all of them. */
enum tunnel_formats {
    FORMAT_VXLAN,
    FORMAT_GENEVE,
    FORMAT_IPIP,
};

/* What an endpoint's name in IP in IP has of its digest; and in the keys of `forwarded`, with which Service it stands.
 */
enum short_names {
    SHORT_NAME = 0x1fff,
    SHORT_NAME_SERVICE = 1 << 30, /* with the index of the Service */
};

/* Value of the map `tunnel_nodes`: the node's number in the map `tunnels`, and this. */
enum tunnel_node_flags {
    TUNNEL_NUMBER = 0xffff,   /* mask of the number */
    TUNNEL_RETIRED = 1 << 16, /* no peer any more: only flows that there are go on */
};

/* Value of the map `addresses`. */
enum address_flags {
    ADDRESS_LOCAL = 1,     /* this node's own address */
    ADDRESS_NODE_PORT = 2, /* node ports answer here */
};

/* node.flags */
enum node_flags {
    NODE_READY = 1,        /* the tables are filled; until then every program passes everything on */
    NODE_DETECTS_IPV4 = 2, /* pods of this family can be recognised (policy LocalDetector.implemented) */
    NODE_DETECTS_IPV6 = 4,
    NODE_DETECTS_BY_CIDR = 8, /* by source CIDR (map `detector`), else by incoming device */
    NODE_MASQUERADE_ALL = 16,
    NODE_KUBE_PROXY_PARITY = 32,         /* masquerade exactly where kube-proxy does, also towards local backends */
    NODE_LOOPBACK_NODE_PORTS = 64,       /* node ports answer on 127.0.0.0/8 */
    NODE_CONNECT_OFF = 128,              /* connect time is off for somebody (node.connect_off) */
    NODE_LOOPBACK_NODE_PORTS_IPV6 = 256, /* node ports answer on ::1 */
    NODE_TAKES_OVER = 512,     /* connections that another node took may go on here; the slow path's own are known */
    NODE_NOTES_ANSWERS = 1024, /* from now on they are noted when they answer a SYN (left.h) */
};

/* What off_key.id is the number of. */
enum off_kinds {
    OFF_NETNS,
    OFF_CGROUP,
};

/* translation.flags: facts about one direction of a tracked flow. */
enum translation_flags {
    FLOW_REPLY = 1,         /* this entry translates replies (backend to client) */
    FLOW_SNAT = 2,          /* the source becomes a node address and port */
    FLOW_LOCAL_BACKEND = 4, /* the backend runs on this node */
    FLOW_BY_XDP = 8,        /* made by the XDP program, otherwise by tc */
    FLOW_SEEN_REPLY = 16,   /* the backend answered; TCP: its SYN-ACK acknowledged the client's SYN */
    FLOW_ESTABLISHED = 32,  /* TCP: the client acknowledged that; UDP: packets both ways for UDP_STREAM_AFTER */
    FLOW_FIN_FORWARD = 64,
    FLOW_FIN_REPLY = 128,
    FLOW_RST_FORWARD = 256, /* an RST that its receiver may or may not have taken */
    FLOW_RST_REPLY = 512,
    FLOW_REST = 1024,         /* the backend closed first: it remembers the connection after its end (TIME-WAIT) */
    FLOW_RESTING = 2048,      /* a connection that is over: only keeps its SNAT port from being given out again */
    FLOW_TIMESTAMPS = 4096,   /* translation.timestamp is known */
    FLOW_FOREIGN = 8192,      /* answers of a flow that the slow path masquerades: not to be translated here */
    FLOW_LEFT = 16384,        /* with FLOW_FOREIGN: packets that the slow path has a flow for (left.h) */
    FLOW_FORWARDED = 1 << 15, /* nothing is translated here, but in the backend's node: both entries have the packet's
                                 own ends, and `tunnel` and `endpoint` say where it goes */
    FLOW_DSR = 1 << 16,       /* with FLOW_FORWARDED: answers do not pass here, so there is no entry for them */
    FLOW_TUNNELED = 1 << 17,  /* the client's packets come from a node that forwards them */
    FLOW_BACK = 1 << 18,      /* with FLOW_TUNNELED: answers go back to that node, `tunnel` */
    FLOW_BY_STACK = 1 << 19,  /* the node's stack had packets of it, so connection tracking knows it: they stay there */
    FLOW_PORT_TAKEN = 1 << 20, /* the backend has another connection from its port: the next SYN gets another one */
    FLOW_BESIDE = 1 << 21,     /* with FLOW_TUNNELED: the client has a connection straight to the backend, whose packets
                                  look as this one's after XDP took them out of the tunnel: so tc does it */
};

/* peer.flags, socket_peer.flags */
enum peer_flags {
    PEER_CONNECTED = 1, /* by connect(2), not by a single datagram */
    PEER_MORE = 2,      /* the socket has entries in `sockets`, too */
    PEER_LEFT = 4, /* datagrams to this frontend are left to the slow path: the socket talks to the same endpoint by
                      another name, and only connection tracking can keep the answers apart */
};

/* Indices of the map `flows`. */
enum flow_tables {
    FLOWS_TCP,
    FLOWS_UDP,
    FLOWS_COUNT,
};

/* Which program counted or reported. Counter index = hook * REASON_COUNT + reason. */
enum hook {
    HOOK_CONNECT,
    HOOK_SENDMSG,
    HOOK_RECVMSG,
    HOOK_GETPEERNAME,
    HOOK_TC_INGRESS,
    HOOK_TC_EGRESS,
    HOOK_XDP,
    HOOK_RELEASE,
    HOOK_COUNT,
};

/* Every way out of every program. Names are shown to people in lower case without the prefix. Append only before
 * REASON_COUNT; the control plane reads the list from here. */
enum reason {
    REASON_NONE,
    /* passed on untouched, to the slow path or to whom it concerns */
    REASON_NOT_SERVICE,      /* no frontend has this destination */
    REASON_NOT_READY,        /* the tables are not filled yet */
    REASON_LOOPBACK,         /* destination is a loopback address */
    REASON_PROTOCOL,         /* a transport protocol that the programs leave alone */
    REASON_NO_ENDPOINT,      /* route says reject: the slow path rejects */
    REASON_POLICY_DROP,      /* route says drop (policy Local, endpoints only elsewhere): the slow path drops */
    REASON_SOURCE_UNKNOWN,   /* source ranges apply and the source is not known at connect time */
    REASON_SOURCE_RANGE,     /* source is outside loadBalancerSourceRanges: the slow path drops */
    REASON_MASQUERADE,       /* needs a masquerade that this hook cannot give */
    REASON_HAIRPIN,          /* the backend is the client itself */
    REASON_CHANGED,          /* the tables changed underneath twice in a row */
    REASON_INCONSISTENT,     /* a table names something that is not there */
    REASON_NOT_TRANSLATED,   /* a peer or sender that no frontend stands for */
    REASON_TCP_NO_SYN,       /* TCP without SYN and without entry: a flow from before */
    REASON_IP_OPTIONS,       /* a client's packet with IPv4 options */
    REASON_IPV6_EXTENSION,   /* more IPv6 extension headers than are read; XDP leaves them all to tc */
    REASON_NOT_IP,           /* neither IPv4 nor IPv6 */
    REASON_MALFORMED,        /* a header is cut short or contradicts itself */
    REASON_FRAGMENT_UNKNOWN, /* a later fragment whose first was not seen */
    REASON_ICMP_UNRELATED,   /* an ICMP error about no flow of ours */
    REASON_NOT_FOR_US,       /* link-layer destination is another host */
    REASON_LOCAL_DELIVERY,   /* for this node's own sockets or pods: the stack goes on */
    REASON_FIB_MISS,         /* no route or neighbour known to the forwarding lookup: the stack resolves it */
    REASON_MTU,              /* too big for the way out: the stack sends the ICMP error */
    REASON_TTL,              /* hop limit reached: the stack sends the ICMP error */
    REASON_GSO,              /* an aggregate that this hook cannot send on */
    /* translated */
    REASON_CONNECTED,   /* a socket was pointed at a backend */
    REASON_DATAGRAM,    /* a datagram of an unconnected socket was pointed at a backend */
    REASON_RENAMED,     /* a peer or sender address was shown as the frontend's */
    REASON_NEW_FLOW,    /* entry made, packet translated */
    REASON_FLOW,        /* packet translated by its entry */
    REASON_REPLY,       /* reply translated back */
    REASON_FRAGMENT,    /* later fragment translated */
    REASON_ICMP_ERROR,  /* ICMP error translated, outer and inner */
    REASON_REDIRECTED,  /* translated and sent out by redirect */
    REASON_TRANSMITTED, /* translated and sent back by XDP_TX */
    REASON_MOVED,       /* the flow's backend went: another was chosen */
    /* dropped */
    REASON_SNAT_EXHAUSTED, /* no free source port for this remote endpoint */
    REASON_REWRITE_FAILED, /* the kernel refused a change to the packet */
    REASON_DROP_RANGE,     /* outside loadBalancerSourceRanges, dropped here */
    REASON_NO_WAY_OUT,     /* no route any more for an established flow, or its packet may not be cut to size */
    REASON_DROP_POLICY,    /* policy Local without local endpoint, dropped here */
    /* tables */
    REASON_MAP_FULL, /* an entry could not be stored; the slow path takes the flow. The tables have reasons by name,
                      * below
                      */
    /* passed on untouched (added later: the list is append-only) */
    REASON_OTHER_EDGE,  /* a reply that is translated where it leaves towards its client */
    REASON_OWN_SOURCE,  /* comes in with this node's own address as source */
    REASON_TUPLE_TAKEN, /* another flow of this client to the same backend has these ports: the slow path changes them
                         */
    REASON_LEFT_TO_TC,  /* XDP chose a backend and left the packet to tc */
    /* answered */
    REASON_TOO_BIG, /* too big for the way out: answered with an ICMP error */
    /* passed on untouched (added later still) */
    REASON_ANSWER,     /* goes back to where a datagram came from, untranslated, though a frontend is there */
    REASON_OWN_PORT,   /* a socket of the node's own has this port: only connection tracking knows whose answer it is */
    REASON_REMOTE_POD, /* a pod of another node keeps its address: the slow path knows which of its ports are free */
    REASON_TCP_FLOWS_FULL, /* no room for a new TCP flow: the slow path takes it */
    REASON_UDP_FLOWS_FULL, /* no room for a new UDP flow: the slow path takes it */
    REASON_AFFINITY_FULL,  /* no room for a client that session affinity would remember: the slow path takes it */
    REASON_FRAGMENTS_FULL, /* no room for a fragmented datagram: the slow path takes it */
    REASON_SOCKETS_FULL,   /* no room for a socket's peer: the slow path takes it */
    REASON_ANSWERS_FULL,   /* no room to remember whom a datagram answers: the slow path takes it */
    REASON_VLAN,           /* a frame of a VLAN: for the VLAN's own device, if the node has it */
    REASON_MARTIAN,        /* a source address that the stack drops (RFC 1812, section 5.3.7) */
    REASON_REVERSE_PATH,   /* the way back to the source is by another device: the stack's rp_filter decides */
    REASON_RESTING,        /* from a backend, about a connection that is over */
    REASON_PEERS_FULL,     /* no room for a socket: the slow path takes what it sends */
    REASON_BOUND,          /* a socket that chose its own source port: only connection tracking can change that */
    REASON_RELEASED,       /* a socket that was pointed at a backend was closed */
    /* passed on untouched, for a flow */
    REASON_LEFT_FLOW, /* of a flow that the slow path has */
    /* kept back */
    REASON_FRAGMENT_HELD, /* came before the first fragment of its datagram, which decides what becomes of it */
    /* counted besides */
    REASON_CUT, /* cut to the size of its way out */
    /* passed on untouched, at connect time */
    REASON_AFFINITY, /* session affinity goes by the client's address, which a socket has not got yet: the packets' way
                      */
    REASON_SWITCHED_OFF,    /* connect time is off for the process: its packets are balanced */
    REASON_DIRECT_TCP_FULL, /* no room for a flow past the stack: it goes by the stack */
    REASON_DIRECT_UDP_FULL,
    /* counted besides, where host routing is on: the way of a packet */
    REASON_INTO_POD,    /* straight into a pod of this node */
    REASON_OUT_OF_NODE, /* straight out by an uplink or overlay device */
    REASON_BY_STACK,    /* by the node's stack */
    /* between nodes (docs/forwarding.md) */
    REASON_WRAPPED,         /* passed on to the program that takes such packets out of the tunnel */
    REASON_FORWARDED,       /* sent to the endpoint's node, or an answer to the node that the client talks to */
    REASON_TUNNEL_SENDER,   /* dropped: a forwarded packet from somebody who is no peer */
    REASON_TUNNEL_FORMAT,   /* dropped: a forwarded packet of another VNI, or that no node sends */
    REASON_TUNNEL_SOURCE,   /* dropped: a forwarded packet from a node, a pod or a loopback address */
    REASON_TUNNEL_FRONTEND, /* dropped: a forwarded packet to no frontend, or an answer from none */
    REASON_TUNNEL_ENDPOINT, /* dropped: a forwarded packet for an endpoint that is not here any more */
    REASON_TAKEN_OVER,      /* counted besides: a connection that another node took goes on here */
    REASON_TUNNEL_LOST,     /* dropped: a packet between nodes, for a reason that is counted besides, such as no flow */
    /* dropped */
    REASON_HEADER_CHAIN, /* leaves with more extension headers than are read, so nobody knows whether it is an answer */
    REASON_PORT_TAKEN,   /* a client's reset, after an answer that its other connection was to hear */
    /* between nodes */
    REASON_TUNNEL_OPTION, /* dropped: a forwarded packet with a Geneve option that is not known and must be */
    REASON_OTHER_TUNNEL,  /* IP in IP from another node that no node of ours sends: another program's tunnel */
    /* told, not counted */
    REASON_BEGUN, /* XDP made a flow's entry and left its packet to tc */
    REASON_COUNT,
};

enum limits {
    SERVICE_NAME_SIZE = 144, /* namespace/name:port and a closing NUL; longer names end in a digest */
    BALANCE_ATTEMPTS = 2,    /* how often a selection is tried when tables change underneath */
    SNAT_ATTEMPTS = 10,      /* random ports tried for a new flow before it is left to the slow path */
    WAYS = 256,              /* remembered by each processor (ways.h); a power of two */
    COUNTERS = 1024,         /* at least HOOK_COUNT * REASON_COUNT */
    CAPTURE_CPUS = 1024,     /* processors that can hand over packets that are dropped */
    OFF_LEVELS = 32,         /* depths of control groups that connect time can be off for are less; bits of a word */
    IPV4_MAPPED_BITS = 96,   /* length of ::ffff:0:0/96, which every IPv4 address carries in the maps */
};

#endif
