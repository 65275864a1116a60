"""The pipeline, declared: which tables there are, what a packet carries between them in
registers, what a label says, and who owns a rule.

    VM port ─▶ classify ─▶ port_security ─▶ answer ─▶ conntrack ─▶ access_out ─▶ commit_out ─┐
                  │                            │                                             │
               uplink                     flood groups           mark ◀─ tap_out ◀─ observe_out
                  │                                               │
                  │             uplink ◀─ path ◀─ locate ◀─ bandwidth_out
                  │                                 │ local
                  └─▶ label ─▶ deliver ◀────────────┘
                        │         └─▶ access_in ─▶ commit_in ─▶ observe_in ─▶ tap_in ─┐
                        │                              VM port ◀─ output ◀─ bandwidth_in
                        └─▶ uplink (a core switch has only classify and label)

Tables are declared in the order in which packets may visit them, because `goto_table` only
leads forward (OpenFlow 1.5.1, 5.5). A table that no room fills yet is not provisioned.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from hashlib import blake2b

from controller.act.dataplane.openflow import fields as f
from controller.act.dataplane.openflow.fields import Field


class TableId(IntEnum):
    """Numbers of the tables, as a dump of a switch shows them."""

    CLASSIFY = 0
    PORT_SECURITY = 1
    ANSWER = 2
    CONNTRACK = 3
    ACCESS_OUT = 4
    COMMIT_OUT = 5
    OBSERVE_OUT = 6
    TAP_OUT = 7
    MARK = 8
    BANDWIDTH_OUT = 9
    LOCATE = 10
    PATH = 11
    LABEL = 12
    DELIVER = 13
    ACCESS_IN = 14
    COMMIT_IN = 15
    OBSERVE_IN = 16
    TAP_IN = 17
    BANDWIDTH_IN = 18
    OUTPUT = 19
    # Counters, which packets pass by `resubmit` and go on from where they were.
    COUNT_OUT = 32
    COUNT_IN = 33
    DENIED_OUT = 34
    DENIED_IN = 35


@dataclass(frozen=True, slots=True)
class Table:
    """One table. `matches` is what its rules may look at and `next` where they may lead;
    `grows` says with what the number of its rules grows."""

    id: TableId
    answers: str
    matches: frozenset[Field]
    next: frozenset[TableId]
    grows: str
    on_core: bool = False
    provisioned: bool = True


#: Registers that a packet carries through one switch.
EGRESS = f.REG[0]  # number of the datapath that the packet leaves the fabric at
TENANT = f.REG[1]  # number of the tenant
SUBNET = f.REG[2]  # number of the subnet that the packet came from
ZONE = f.REG[3]  # conntrack zone of the local VM that is being dealt with
LABEL = f.REG[4]  # the outermost label, which can be matched in part only here
CLASS = f.REG[5]  # class of service, which chooses paths: see `Class`
TRAFFIC = f.REG[6]  # traffic class for labels (RFC 5462), which chooses queues on the way
SEEN = f.REG[8]  # what is known of who talks to whom: see `Seen`
PORT_SEEN = f.REG[9]  # a source port that was looked at; nothing is done with it


#: Bit of the mark of a connection whose first packet has passed an edge from a VM.
BEGUN_MARK = 0x20


class Seen(IntFlag):
    """What `SEEN` says of a packet from a VM."""

    #: It begins a connection that conntrack did not know.
    BEGUN = 1
    #: It goes to an address of the tenant's subnets.
    INSIDE = 2


class Class(IntEnum):
    """What `CLASS` says of a packet. Who sets nothing leaves DEFAULT."""

    DEFAULT = 0
    INTERACTIVE = 1
    BULK = 2


_L2 = frozenset({f.IN_PORT, f.ETH_SRC, f.ETH_DST, f.ETH_TYPE})
_L3 = frozenset({f.IPV4_SRC, f.IPV4_DST, f.IPV6_SRC, f.IPV6_DST, f.IP_PROTO, f.IP_TTL})
_L4 = frozenset({f.TCP_SRC, f.TCP_DST, f.UDP_SRC, f.UDP_DST, f.SCTP_SRC, f.SCTP_DST, f.TCP_FLAGS})
_ICMP = frozenset({f.ICMPV4_TYPE, f.ICMPV6_TYPE, f.ND_TARGET})
_ARP = frozenset({f.ARP_OP, f.ARP_SPA, f.ARP_TPA, f.ARP_SHA})
_ACCESS = frozenset({f.ETH_TYPE, TENANT, f.CT_STATE, f.CONJ_ID}) | _L3 | _L4
_OBSERVED = frozenset({TENANT, SUBNET, f.CT_STATE, f.CT_MARK}) | _L2 | _L3 | _L4


def _table(
    table: TableId,
    answers: str,
    matches: frozenset[Field],
    *leads_to: TableId,
    grows: str,
    on_core: bool = False,
    provisioned: bool = True,
) -> Table:
    return Table(table, answers, matches, frozenset(leads_to), grows, on_core, provisioned)


#: Bits of a connection's mark in conntrack, at the edge of the VM that it leads to: whether its
#: packets are copied to be identified, and how many were.
TAPPED = 0x10
TAP_COUNT = 0x0F

_T = TableId
_AFTER_ACCESS_OUT = (_T.OBSERVE_OUT, _T.TAP_OUT, _T.MARK)
_AFTER_ACCESS_IN = (_T.OBSERVE_IN, _T.TAP_IN, _T.BANDWIDTH_IN)
TABLES: dict[TableId, Table] = {
    table.id: table
    for table in (
        _table(
            _T.CLASSIFY,
            "where did the packet come in?",
            _L2 | {f.VLAN_VID},
            *(_T.PORT_SECURITY, _T.LABEL),
            grows="ports",
            on_core=True,
        ),
        _table(
            _T.PORT_SECURITY,
            "may this port use these addresses?",
            _L2 | _L3 | _L4 | _ICMP | _ARP,
            _T.ANSWER,
            grows="8 x local NICs",
        ),
        _table(
            _T.ANSWER,
            "can the edge answer by itself?",
            _L2 | _L3 | _L4 | _ICMP | _ARP | {TENANT, SUBNET},
            _T.CONNTRACK,
            grows="NICs of the subnets present",
        ),
        _table(
            _T.CONNTRACK,
            "which connection does it belong to?",
            frozenset({f.ETH_TYPE}),
            _T.ACCESS_OUT,
            grows="2",
        ),
        _table(
            _T.ACCESS_OUT,
            "may the source VM send this?",
            _ACCESS,
            *(_T.COMMIT_OUT, *_AFTER_ACCESS_OUT),
            grows="members + access rules of the tenants present",
        ),
        _table(
            _T.COMMIT_OUT,
            "is the connection new and allowed?",
            frozenset({f.ETH_TYPE, f.CT_STATE, f.CT_MARK}),
            *_AFTER_ACCESS_OUT,
            grows="2",
        ),
        _table(
            _T.OBSERVE_OUT,
            "whom does the source VM talk to, and is that known?",
            _OBSERVED,
            *_AFTER_ACCESS_OUT[1:],
            grows="subnets of the tenants present",
        ),
        _table(
            _T.TAP_OUT,
            "which packets of local services are copied, to be identified?",
            _OBSERVED,
            *_AFTER_ACCESS_OUT[2:],
            grows="2 x packets copied of a connection",
        ),
        _table(
            _T.MARK,
            "in which class of service is the packet?",
            _OBSERVED,
            _T.BANDWIDTH_OUT,
            grows="local VMs + services of the tenants present that have a class",
        ),
        _table(
            _T.BANDWIDTH_OUT,
            "how fast may the source VM send?",
            _OBSERVED,
            _T.LOCATE,
            grows="local VMs",
        ),
        _table(
            _T.LOCATE,
            "at which edge is the destination?",
            frozenset({f.ETH_TYPE, f.ETH_DST, f.IPV4_DST, f.IPV6_DST, TENANT, SUBNET}),
            *(_T.PATH, _T.DELIVER),
            grows="3 x NICs of the tenants present",
        ),
        _table(
            _T.PATH,
            "by which path does it go there?",
            frozenset({f.ETH_TYPE, EGRESS, CLASS}),
            grows="2 x edges x (1 + classes with paths of their own)",
        ),
        _table(
            _T.LABEL,
            "is the label for this switch, or where is it carried on to?",
            frozenset({f.ETH_TYPE, LABEL}),
            _T.DELIVER,
            grows="edges x trees",
            on_core=True,
        ),
        _table(
            _T.DELIVER,
            "for which local VM is it?",
            frozenset({f.ETH_TYPE, f.ETH_DST, f.MPLS_LABEL}),
            *(_T.ACCESS_IN, _T.OUTPUT),
            grows="local NICs + subnets present",
        ),
        _table(
            _T.ACCESS_IN,
            "may the destination VM receive this?",
            _ACCESS,
            *(_T.COMMIT_IN, *_AFTER_ACCESS_IN),
            grows="members + access rules of the tenants present",
        ),
        _table(
            _T.COMMIT_IN,
            "is the connection new and allowed?",
            frozenset({f.ETH_TYPE, f.CT_STATE, f.CT_MARK}),
            *_AFTER_ACCESS_IN,
            grows="4",
        ),
        _table(
            _T.OBSERVE_IN,
            "who talks to the destination VM, and is that known?",
            _OBSERVED,
            *_AFTER_ACCESS_IN[1:],
            grows="2",
        ),
        _table(
            _T.TAP_IN,
            "which packets to local services are copied, to be identified?",
            _OBSERVED,
            *_AFTER_ACCESS_IN[2:],
            grows="2 x (known local services + packets copied of a connection)",
        ),
        _table(
            _T.BANDWIDTH_IN,
            "how fast may the destination VM receive?",
            _OBSERVED,
            _T.OUTPUT,
            grows="local VMs",
        ),
        _table(
            _T.OUTPUT,
            "out of which port?",
            frozenset({f.ETH_DST}),
            grows="local NICs",
        ),
        *(
            _table(table, answers, _OBSERVED | {SEEN}, grows=grows)
            for table, answers, grows in (
                (_T.COUNT_OUT, "what do local VMs begin and send?", "signatures of local VMs"),
                (_T.COUNT_IN, "what are local VMs answered?", "signatures of local VMs"),
                (_T.DENIED_OUT, "what may local VMs not send?", "denials of the last minute"),
                (_T.DENIED_IN, "what may local VMs not receive?", "denials of the last minute"),
            )
        ),
    )
}


def after(table: TableId) -> TableId:
    """The first provisioned table after `table` on a packet's way from a VM."""
    for candidate in sorted(TABLES[table].next):
        if TABLES[candidate].provisioned:
            return candidate
    raise ValueError(f"nothing is provisioned after {table.name}")


# --- Labels ---------------------------------------------------------------------------


class Payload(IntEnum):
    """What lies under a label; `pop_mpls` must be told, and the label is all that tells."""

    IPV4 = 0
    IPV6 = 1
    LABEL = 2

    @property
    def ethertype(self) -> int:
        """The EtherType to restore."""
        return (0x0800, 0x86DD, 0x8847)[self]


#: Trees towards one edge that a label can tell apart (6 bits), by what they are for: those
#: that an ingress spreads connections over; the two that a switch turns to by itself where it
#: has lost its next hop; those laid when no planned tree is left to somebody; and those that
#: were chosen for the traffic.
PLANNED = range(16)
DETOURS = range(16, 18)
REPAIRS = range(32, 48)
WEIGHTED = range(48, 64)
MPLS = 0x8847
IPV4 = 0x0800
IPV6 = 0x86DD
ARP = 0x0806
RARP = 0x8035
LLDP = 0x88CC

LABEL_BITS = 20
_EDGE_SHIFT, _TREE_SHIFT = 8, 2
#: Parts of a label: the edge, the tree, what lies under it.
EDGE_MASK, TREE_MASK, PAYLOAD_MASK = 0xFFF << _EDGE_SHIFT, 0x3F << _TREE_SHIFT, 0x3


def edge_label(edge: int, tree: int, payload: Payload | int) -> int:
    """Label towards datapath number `edge` by `tree`: 12, 6 and 2 bits."""
    if not (0 < edge < 1 << 12 and 0 <= tree < 1 << 6):
        raise ValueError(f"no label has room for edge {edge}, tree {tree}")
    return edge << _EDGE_SHIFT | tree << _TREE_SHIFT | payload


def tree_bits(tree: int) -> int:
    """Where a label says by which tree."""
    return tree << _TREE_SHIFT


def subnet_label(subnet: int, payload: Payload) -> int:
    """Inner label of a flooded packet: subnet number and payload type. Labels 0 to 15 are
    reserved (RFC 3032, 2.1), so numbers are shifted past them."""
    label = (subnet + 4) << 2 | payload
    if not (subnet > 0 and label < 1 << 20):
        raise ValueError(f"no label has room for subnet {subnet}")
    return label


def zone(edge: int, port: int) -> int:
    """Conntrack zone of the VM at a port of a datapath: one a port, so that what is known of
    a VM's connections can be forgotten when it leaves without touching its neighbours'.
    Datapaths that share one Open vSwitch share its conntrack, so the zone differs between
    them too; ports of one datapath never collide, because only `port` varies there."""
    return (port + 1009 * edge) & 0xFFFF


# --- Owners and cookies -----------------------------------------------------------------


class Owner(IntEnum):
    """Whom a rule serves; the second byte of its cookie."""

    SWITCH = 1
    PATHS = 2
    TENANT = 3
    SUBNET = 4
    VM = 5
    ACCESS = 6
    BANDWIDTH = 7
    MARKING = 8
    OBSERVE = 12
    SIGNATURE = 13
    #: Made by the switch itself, as a rule of OBSERVE told it.
    LEARNED = 14
    #: Owners of what is sent up to the controller, so that a packet-in names its reader.
    DISCOVERY = 16
    DHCP = 17
    NEIGHBOUR = 18
    GATEWAY = 19
    EXPIRED = 20
    UNREACHABLE = 21
    ACTIVATION = 22
    TAP = 23
    CAPTURE = 24
    FIRST = 30
    DENIAL = 31


#: First byte of every cookie of ours.
COOKIE_MAGIC = 0x9E
#: Raised when the meaning of tables or registers changes, so that a dump taken across an
#: upgrade can be read, and rules of the old layout are known for what they are.
GENERATION = 4


def cookie(owner: Owner, key: str = "") -> int:
    """64 bits: magic (8), generation (8), owner (8), and 40 bits of a hash of the key."""
    digest = blake2b(key.encode(), digest_size=5).digest() if key else bytes(5)
    return COOKIE_MAGIC << 56 | GENERATION << 48 | owner << 40 | int.from_bytes(digest, "big")


def owner_of(value: int) -> Owner | None:
    """The owner that a cookie names, or None where it is not one of ours."""
    if value >> 56 != COOKIE_MAGIC:
        return None
    try:
        return Owner(value >> 40 & 0xFF)
    except ValueError:
        return None


# --- Groups and meters --------------------------------------------------------------------


class GroupKind(IntEnum):
    """What a group is for; the first four bits of its number."""

    PATH = 1
    FLOOD = 2
    LOCAL_FLOOD = 3
    FAILOVER = 4
    ALIVE = 5

    @staticmethod
    def of(group: int) -> GroupKind | None:
        """The kind of a group, or None where its number is none of ours."""
        try:
            return GroupKind(group >> 28)
        except ValueError:
            return None


def path_group(edge: int, payload: Payload, traffic_class: Class = Class.DEFAULT) -> int:
    """Group that carries packets of a class towards datapath number `edge`."""
    return GroupKind.PATH << 28 | edge << 4 | traffic_class << 2 | payload


def path_of_group(group: int) -> tuple[int, Class] | None:
    """The edge and class that a group of paths is for, or None for another group."""
    if GroupKind.of(group) is not GroupKind.PATH or group >> 2 & 3 not in tuple(Class):
        return None
    return group >> 4 & 0xFFF, Class(group >> 2 & 3)


def flood_group(subnet: int) -> int:
    """Group that carries a broadcast of a local VM to the other edges of its subnet."""
    return GroupKind.FLOOD << 28 | subnet << 4


def local_flood_group(subnet: int) -> int:
    """Group that hands a broadcast from elsewhere to the local VMs of a subnet."""
    return GroupKind.LOCAL_FLOOD << 28 | subnet << 4


def failover_group(slot: int) -> int:
    """Group that sends on by the first port that lives; `slot` is one of its datapath."""
    return GroupKind.FAILOVER << 28 | slot


#: Slots of such groups.
FAILOVER_SLOTS = 1 << 28
#: Group that nothing is sent to, and that always lives: a bucket that watches it is what is left
#: where nothing else lives.
ALIVE_GROUP = GroupKind.ALIVE << 28


class MeterId(IntEnum):
    """Meters that bound what goes up to the controller, in packets per second."""

    REQUESTS = 1
    ERRORS = 2
    ACTIVATIONS = 3
    TAP = 4
    #: Of what goes to a port instead, behind which an agent listens.
    DPI = 5
    #: Of what is copied for alerts.
    CAPTURE = 6
    SIGNATURES = 8
    DENIALS = 9


#: Packets per second and per switch: enough for a hundred VMs that boot at once, little
#: enough that a hostile one cannot keep the controller busy.
METER_RATES = {
    MeterId.REQUESTS: 500,
    MeterId.ERRORS: 100,
    MeterId.ACTIVATIONS: 200,
    MeterId.TAP: 500,
    MeterId.DPI: 20_000,
    MeterId.CAPTURE: 200,
    MeterId.SIGNATURES: 500,
    MeterId.DENIALS: 50,
}


#: Meters of VMs begin after those above.
_VM_METERS = 16


def vm_meter(port: int, *, out: bool) -> int:
    """Meter of what the VM at a port sends (`out`) or receives. Open vSwitch numbers ports in 16
    bits and has 262,144 meters."""
    return _VM_METERS + 2 * port + (0 if out else 1)


def is_vm_meter(meter: int) -> bool:
    """Whether a meter is one of a VM's."""
    return meter >= _VM_METERS


def port_of_meter(meter: int) -> tuple[int, bool]:
    """The port of a VM's meter, and whether it is of what the VM sends."""
    return (meter - _VM_METERS) // 2, (meter - _VM_METERS) % 2 == 0
