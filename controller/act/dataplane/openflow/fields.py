"""Match fields: their OXM identity and width.

Classes and numbers from OpenFlow 1.5.1, table 13 (class 0x8000), and from Open vSwitch,
ovs-fields(7) (NXM_0 and NXM_1, classes 0x0000 and 0x0001). Values are plain integers, whatever
the field.
"""

from __future__ import annotations

from collections.abc import Callable

OPENFLOW_BASIC = 0x8000
NXM_0 = 0x0000
NXM_1 = 0x0001


class Field:
    """One match field: compared by identity, for there is one object a field, and hashed
    often. `bits` is its true width; on the wire it takes `size` bytes (`octets` where that is
    not the width rounded up); `rank` is its place in a canonical match."""

    __slots__ = ("bits", "full_mask", "maskable", "name", "number", "oxm_class", "rank", "size")

    def __init__(
        self,
        name: str,
        oxm_class: int,
        number: int,
        bits: int,
        maskable: bool = False,
        octets: int = 0,
    ) -> None:
        self.name = name
        self.oxm_class = oxm_class
        self.number = number
        self.bits = bits
        self.maskable = maskable
        self.size = octets or (bits + 7) // 8
        #: The mask that means an exact match.
        self.full_mask = (1 << bits) - 1
        self.rank = oxm_class << 8 | number

    def __repr__(self) -> str:
        return self.name

    def __copy__(self) -> Field:
        return self

    def __deepcopy__(self, _: object) -> Field:
        return self

    def __reduce__(self) -> tuple[Callable[[str], Field], tuple[str]]:
        return _by_name, (self.name,)


def _by_name(name: str) -> Field:
    return BY_NAME[name]


IN_PORT = Field("in_port", OPENFLOW_BASIC, 0, 32)
METADATA = Field("metadata", OPENFLOW_BASIC, 2, 64, True)
ETH_DST = Field("eth_dst", OPENFLOW_BASIC, 3, 48, True)
ETH_SRC = Field("eth_src", OPENFLOW_BASIC, 4, 48, True)
ETH_TYPE = Field("eth_type", OPENFLOW_BASIC, 5, 16)
VLAN_VID = Field("vlan_vid", OPENFLOW_BASIC, 6, 13, True)
IP_DSCP = Field("ip_dscp", OPENFLOW_BASIC, 8, 6)
IP_PROTO = Field("ip_proto", OPENFLOW_BASIC, 10, 8)
IPV4_SRC = Field("ipv4_src", OPENFLOW_BASIC, 11, 32, True)
IPV4_DST = Field("ipv4_dst", OPENFLOW_BASIC, 12, 32, True)
TCP_SRC = Field("tcp_src", OPENFLOW_BASIC, 13, 16, True)
TCP_DST = Field("tcp_dst", OPENFLOW_BASIC, 14, 16, True)
UDP_SRC = Field("udp_src", OPENFLOW_BASIC, 15, 16, True)
UDP_DST = Field("udp_dst", OPENFLOW_BASIC, 16, 16, True)
SCTP_SRC = Field("sctp_src", OPENFLOW_BASIC, 17, 16, True)
SCTP_DST = Field("sctp_dst", OPENFLOW_BASIC, 18, 16, True)
ICMPV4_TYPE = Field("icmpv4_type", OPENFLOW_BASIC, 19, 8)
ICMPV4_CODE = Field("icmpv4_code", OPENFLOW_BASIC, 20, 8)
ARP_OP = Field("arp_op", OPENFLOW_BASIC, 21, 16)
ARP_SPA = Field("arp_spa", OPENFLOW_BASIC, 22, 32, True)
ARP_TPA = Field("arp_tpa", OPENFLOW_BASIC, 23, 32, True)
ARP_SHA = Field("arp_sha", OPENFLOW_BASIC, 24, 48, True)
ARP_THA = Field("arp_tha", OPENFLOW_BASIC, 25, 48, True)
IPV6_SRC = Field("ipv6_src", OPENFLOW_BASIC, 26, 128, True)
IPV6_DST = Field("ipv6_dst", OPENFLOW_BASIC, 27, 128, True)
ICMPV6_TYPE = Field("icmpv6_type", OPENFLOW_BASIC, 29, 8)
ICMPV6_CODE = Field("icmpv6_code", OPENFLOW_BASIC, 30, 8)
ND_TARGET = Field("ipv6_nd_target", OPENFLOW_BASIC, 31, 128, True)
ND_SLL = Field("ipv6_nd_sll", OPENFLOW_BASIC, 32, 48)
ND_TLL = Field("ipv6_nd_tll", OPENFLOW_BASIC, 33, 48)
MPLS_LABEL = Field("mpls_label", OPENFLOW_BASIC, 34, 20, octets=4)
MPLS_TC = Field("mpls_tc", OPENFLOW_BASIC, 35, 3)
MPLS_BOS = Field("mpls_bos", OPENFLOW_BASIC, 36, 1)
TCP_FLAGS = Field("tcp_flags", OPENFLOW_BASIC, 42, 12, True)

#: As `IN_PORT`, but it can be set: a packet whose ingress is 0 may go out of any port.
INGRESS = Field("in_port_nxm", NXM_0, 0, 16)
IP_TTL = Field("nw_ttl", NXM_1, 29, 8)
IP_FRAG = Field("ip_frag", NXM_1, 26, 2, True)
CONJ_ID = Field("conj_id", NXM_1, 37, 32)
CT_STATE = Field("ct_state", NXM_1, 105, 32, True)
CT_ZONE = Field("ct_zone", NXM_1, 106, 16)
CT_MARK = Field("ct_mark", NXM_1, 107, 32, True)
REG = tuple(Field(f"reg{i}", NXM_1, i, 32, True) for i in range(16))

ALL: tuple[Field, ...] = (
    *(f for f in tuple(globals().values()) if isinstance(f, Field)),
    *REG,
)
BY_HEADER: dict[tuple[int, int], Field] = {(f.oxm_class, f.number): f for f in ALL}
BY_NAME: dict[str, Field] = {f.name: f for f in ALL}
