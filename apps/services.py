"""The app that answers what an edge cannot answer by itself: DHCP, IPv6 neighbours, errors of
the gateway; and that sees a migrated VM arrive by the first packet that it sends.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from apps.context import Southbound
from apps.framework import MAIN, App, PacketInEvent, on
from controller.act.dataplane import answers
from controller.act.dataplane.openflow.decode import PacketIn
from controller.act.dataplane.openflow.fields import IN_PORT
from controller.act.dataplane.pipeline import Owner, owner_of
from controller.act.dataplane.rules.base import GATEWAY_LINK_LOCAL
from controller.act.dataplane.view import Place
from controller.model.addresses import GATEWAY_MAC, format_dpid
from controller.model.nouns import Migration, Phase, Subnet
from controller.observe.migrations import activate
from controller.store.transaction import Transaction

log = logging.getLogger(__name__)


class Services(App):
    """Packets up, answers down."""

    _CONTEXTS = {"southbound": Southbound}  # noqa: RUF012 - the framework's own name and form

    def __init__(self, *args: Any, southbound: Southbound, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.southbound = southbound
        self._answer: dict[Owner, Callable[[bytes, Place, Subnet], bytes | None]] = {
            Owner.DHCP: lambda frame, place, subnet: answers.dhcp(frame, place.nic, subnet),
            Owner.NEIGHBOUR: self._neighbour,
            Owner.GATEWAY: lambda frame, _, subnet: answers.unreachable(frame, subnet, "port"),
            Owner.EXPIRED: lambda frame, _, subnet: answers.time_exceeded(frame, subnet),
            Owner.UNREACHABLE: self._unreachable,
        }

    @on(PacketInEvent, MAIN)
    def packet_in(self, event: Any) -> None:
        """One packet that a rule sent up; its cookie says why."""
        packet: PacketIn = event.msg.packet
        owner = owner_of(packet.cookie)
        datapath = format_dpid(event.msg.datapath.id)
        place = self.southbound.view.plugged.get((datapath, packet.fields.get(IN_PORT, 0)))
        if place is None or owner is None:
            return
        if owner is Owner.ACTIVATION:
            self._arrived(place)
            return
        answer = self._answer.get(owner)
        subnet = self.southbound.view.subnet(place.nic.subnet)
        session = self.southbound.sessions.get(datapath)
        if answer is None or subnet is None or session is None or place.port is None:
            return
        reply = answer(packet.data, place, subnet)
        if reply is not None:
            session.packet_out(place.port, reply)

    def _arrived(self, place: Place) -> None:
        """The first packet from where a VM is moving to: it runs there now."""
        if not place.standby or place.migration is None:
            return
        key = place.migration
        now = time.time()

        def change(tx: Transaction) -> None:
            migration = tx.get(Migration, key)
            if migration is None or migration.phase is not Phase.STARTED:
                return
            moved, placement = activate(migration, now, "packet")
            tx.put(moved)
            tx.put(placement)
            tx.audit(now, "southbound", "migration.activated", key, {"by": "packet"})

        self.southbound.write(change)
        log.info("a migrated VM has arrived", extra={"vm": place.vm, "migration": key})

    def _neighbour(self, frame: bytes, place: Place, subnet: Subnet) -> bytes | None:
        def resolve(address: IPv6Address) -> str | None:
            return self._owner_of(address, subnet)

        return answers.neighbour(frame, place.nic, subnet, resolve)

    def _owner_of(self, address: IPv6Address, subnet: Subnet) -> str | None:
        """MAC of who has an address in a subnet: the gateway or a VM that is placed."""
        if address in (subnet.gateway6, GATEWAY_LINK_LOCAL):
            return GATEWAY_MAC
        view = self.southbound.view
        for vm in view.subnet_vms.get(subnet.id, ()):
            for nic in view.state.vms[vm].nics:
                if nic.subnet == subnet.id and address in (nic.ipv6, nic.ipv6_link_local):
                    return nic.mac if vm in view.places else None
        return None

    def _unreachable(self, frame: bytes, place: Place, subnet: Subnet) -> bytes | None:
        destination = answers.destination(frame)
        if destination is None:
            return None
        known = any(
            _inside(destination, self.southbound.view.subnet(key))
            for key in self.southbound.view.tenant_subnets.get(place.tenant, ())
        )
        return answers.unreachable(frame, subnet, "host" if known else "net")


def _inside(address: IPv4Address | IPv6Address, subnet: Subnet | None) -> bool:
    if subnet is None:
        return False
    if isinstance(address, IPv4Address):
        return address in subnet.cidr
    return subnet.cidr6 is not None and address in subnet.cidr6
