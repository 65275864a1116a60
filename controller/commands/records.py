"""`pleach tenant|subnet|host|access`: the definitions that an operator makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from controller.client import Client
from controller.commands.common import (
    Failure,
    Json,
    client,
    made,
    show_event,
    show_json,
    show_record,
    show_table,
)
from controller.model.nouns import AccessRule, Host, Record, Selector, Subnet, Tenant, Vm

tenant = typer.Typer(no_args_is_help=True, help="Customers, each with addresses of its own.")
subnet = typer.Typer(no_args_is_help=True, help="Broadcast domains with a gateway.")
host = typer.Typer(no_args_is_help=True, help="Hypervisors.")
access = typer.Typer(no_args_is_help=True, help="Rules of who may talk to whom.")

Key = Annotated[str, typer.Argument(help="Its id.")]
Replace = Annotated[bool, typer.Option("--replace", help="Replace it where it is there.")]
OfTenant = Annotated[str | None, typer.Option("--tenant", help="Those of one tenant only.")]
Texts = list[str]

Row = Callable[[Any], tuple[object, ...]]


def _save(build: Callable[[], Record], replace: bool, as_json: bool) -> None:
    record = made(build)
    with client() as pleach:
        show_record(pleach.put(record) if replace else pleach.create(record), as_json)


def _list(
    cls: type[Record], headers: tuple[str, ...], row: Row, as_json: bool, **filters: str | None
) -> None:
    with client() as pleach:
        given = {name: value for name, value in filters.items() if value is not None}
        records = list(pleach.list(cls, **given))
    if as_json:
        show_json(records)
    else:
        show_table(headers, map(row, records))


def _show(cls: type[Record], key: str, as_json: bool) -> None:
    with client() as pleach:
        show_record(pleach.get(cls, key), as_json)


def _delete(cls: type[Record], key: str) -> None:
    with client() as pleach:
        pleach.delete(cls, key)
    typer.echo(f"deleted {cls.kind.replace('_', ' ')} {key}")


def _add_common(app: typer.Typer, cls: type[Record]) -> None:
    @app.command("show")
    def show(key: Key, as_json: Json = False) -> None:
        """Show one."""
        _show(cls, key, as_json)

    @app.command("delete")
    def delete(key: Key) -> None:
        """Delete one; refused while something refers to it."""
        _delete(cls, key)


for _app, _cls in ((tenant, Tenant), (subnet, Subnet), (host, Host), (access, AccessRule)):
    _add_common(_app, _cls)


@tenant.command("create")
def tenant_create(
    key: Key,
    name: Annotated[str, typer.Option(help="For people.")] = "",
    inside: Annotated[
        str, typer.Option(help="Between its VMs where no rule says: allow or deny.")
    ] = "allow",
    replace: Replace = False,
    as_json: Json = False,
) -> None:
    """Make a tenant."""
    fields = {"id": key, "name": name, "inside": inside}
    _save(lambda: Tenant.model_validate(fields), replace, as_json)


@tenant.command("list")
def tenant_list(as_json: Json = False) -> None:
    """List tenants."""
    _list(
        Tenant,
        ("TENANT", "NAME", "INSIDE", "NUMBER"),
        lambda t: (t.id, t.name, t.inside, t.number),
        as_json,
    )


@subnet.command("create")
def subnet_create(
    key: Key,
    tenant: Annotated[str, typer.Option(help="Whose it is.")],
    cidr: Annotated[str, typer.Option(help="IPv4 range, such as 10.1.0.0/24.")],
    gateway: Annotated[str | None, typer.Option(help="Else the first address.")] = None,
    cidr6: Annotated[str | None, typer.Option(help="IPv6 range.")] = None,
    gateway6: Annotated[str | None, typer.Option(help="Else the first address.")] = None,
    dhcp: Annotated[bool, typer.Option(help="Answer DHCP.")] = True,
    dns: Annotated[Texts | None, typer.Option(help="Name server; may be repeated.")] = None,
    domain: Annotated[str, typer.Option(help="Domain that DHCP tells.")] = "",
    mtu: Annotated[int, typer.Option(help="Bytes of an IP packet.")] = 1_500,
    replace: Replace = False,
    as_json: Json = False,
) -> None:
    """Make a subnet."""
    given = {
        "id": key,
        "tenant": tenant,
        "cidr": cidr,
        "gateway": gateway,
        "cidr6": cidr6,
        "gateway6": gateway6,
        "dhcp": dhcp,
        "dns": dns or (),
        "domain": domain,
        "mtu": mtu,
    }
    fields = {name: value for name, value in given.items() if value is not None}
    _save(lambda: Subnet.model_validate(fields), replace, as_json)


@subnet.command("list")
def subnet_list(tenant: OfTenant = None, as_json: Json = False) -> None:
    """List subnets."""
    _list(
        Subnet,
        ("SUBNET", "TENANT", "CIDR", "GATEWAY", "CIDR6", "DHCP", "MTU"),
        lambda s: (s.id, s.tenant, s.cidr, s.gateway, s.cidr6, s.dhcp, s.mtu),
        as_json,
        tenant=tenant,
    )


@host.command("create")
def host_create(
    key: Key,
    datapath: Annotated[str, typer.Option(help="Id of its edge switch, 16 hex digits.")],
    site: Annotated[str, typer.Option(help="Where it stands.")] = "default",
    dpi_port: Annotated[
        str | None, typer.Option(help="Port to which first packets of services are copied.")
    ] = None,
    replace: Replace = False,
    as_json: Json = False,
) -> None:
    """Make a host."""
    fields = {"id": key, "datapath": datapath, "site": site, "dpi_port": dpi_port}
    _save(lambda: Host.model_validate(fields), replace, as_json)


@host.command("list")
def host_list(as_json: Json = False) -> None:
    """List hosts."""
    _list(
        Host,
        ("HOST", "DATAPATH", "SITE", "STATE"),
        lambda h: (h.id, h.datapath, h.site, h.state),
        as_json,
    )


def _tell(kind: str, key: str, as_json: bool) -> None:
    with client() as pleach:
        show_event(pleach.tell(kind, host=key), as_json)


@host.command("up")
def host_up(key: Key, as_json: Json = False) -> None:
    """Tell that a host is up."""
    _tell("host.up", key, as_json)


@host.command("down")
def host_down(key: Key, as_json: Json = False) -> None:
    """Tell that a host is down; what is placed there stays placed."""
    _tell("host.down", key, as_json)


@host.command("drain")
def host_drain(key: Key, as_json: Json = False) -> None:
    """Tell that a host is being emptied."""
    _tell("host.draining", key, as_json)


def _ports(text: str) -> dict[str, int]:
    first, _, last = text.partition("-")
    try:
        return {"first": int(first), "last": int(last or first)}
    except ValueError:
        raise Failure(f"--port {text} is no port", "Write 443 or 8000-8010.") from None


@access.command("create")
def access_create(
    key: Key,
    tenant: Annotated[str, typer.Option(help="Whose policy it belongs to.")],
    action: Annotated[str, typer.Option(help="allow or deny.")] = "allow",
    priority: Annotated[int, typer.Option(help="1 to 1000; the higher wins.")] = 100,
    from_vm: Annotated[Texts | None, typer.Option(help="May be repeated, as all below.")] = None,
    from_group: Annotated[Texts | None, typer.Option()] = None,
    from_subnet: Annotated[Texts | None, typer.Option()] = None,
    from_cidr: Annotated[Texts | None, typer.Option()] = None,
    to_vm: Annotated[Texts | None, typer.Option()] = None,
    to_group: Annotated[Texts | None, typer.Option()] = None,
    to_subnet: Annotated[Texts | None, typer.Option()] = None,
    to_cidr: Annotated[Texts | None, typer.Option()] = None,
    protocol: Annotated[str, typer.Option(help="any, tcp, udp, icmp or sctp.")] = "any",
    port: Annotated[Texts | None, typer.Option(help="443 or 8000-8010.")] = None,
    replace: Replace = False,
    as_json: Json = False,
) -> None:
    """Make an access rule; a side for which nothing is given is any."""
    fields = {
        "id": key,
        "tenant": tenant,
        "action": action,
        "priority": priority,
        "source": {
            "vms": from_vm or (),
            "groups": from_group or (),
            "subnets": from_subnet or (),
            "cidrs": from_cidr or (),
        },
        "destination": {
            "vms": to_vm or (),
            "groups": to_group or (),
            "subnets": to_subnet or (),
            "cidrs": to_cidr or (),
        },
        "protocol": protocol,
        "ports": [_ports(text) for text in port or ()],
    }
    rule = made(lambda: AccessRule.model_validate(fields))
    with client() as pleach:
        show_record(pleach.put(rule) if replace else pleach.create(rule), as_json)
        for name in _nobody(pleach, rule):
            typer.echo(
                f"warning: tenant {tenant} has no {name} (yet): the rule holds once it has",
                err=True,
            )


def _nobody(pleach: Client, rule: AccessRule) -> list[str]:
    """What a rule names that no VM of its tenant is, or is in."""
    sides = (rule.source, rule.destination)
    vms = {vm for side in sides for vm in side.vms}
    groups = {group for side in sides for group in side.groups}
    if not vms and not groups:
        return []
    for known in pleach.list(Vm, tenant=rule.tenant):
        vms.discard(known.id)
        groups.difference_update(known.groups)
    return [f"VM {vm}" for vm in sorted(vms)] + [f"VM in group {name}" for name in sorted(groups)]


@access.command("list")
def access_list(tenant: OfTenant = None, as_json: Json = False) -> None:
    """List access rules."""
    _list(
        AccessRule,
        ("RULE", "TENANT", "PRIORITY", "ACTION", "FROM", "TO", "PROTOCOL", "PORTS"),
        lambda r: (
            r.id,
            r.tenant,
            r.priority,
            r.action,
            _side(r.source),
            _side(r.destination),
            r.protocol,
            [f"{p.first}-{p.last}" if p.first != p.last else p.first for p in r.ports],
        ),
        as_json,
        tenant=tenant,
    )


def _side(selector: Selector) -> str:
    if selector.any:
        return "any"
    parts = (
        ("vm", selector.vms),
        ("group", selector.groups),
        ("subnet", selector.subnets),
        ("cidr", selector.cidrs),
    )
    return " ".join(f"{name}:{'|'.join(map(str, values))}" for name, values in parts if values)
