"""The OpenAPI document: request bodies with examples, replies, and problems.

Bodies are read by our own code (one pass, bounded), so what the document says of them is put
together here from the same models that read them.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from controller import __version__
from controller.api import (
    CLOUDEVENT,
    CLOUDEVENTS,
    JSON,
    PROBLEM,
    RESOURCES,
    BatchReply,
    EventReply,
    NewToken,
    ProblemBody,
)
from controller.observe.cloudevents import DATA, EventType

_REF = "#/components/schemas/{model}"
_TIME = "2030-01-31T08:00:00.250Z"

#: One example of a body for each resource, by its path.
RECORD_EXAMPLES: dict[str, dict[str, Any]] = {
    "tenants": {"id": "acme", "name": "Acme Ltd", "inside": "allow"},
    "subnets": {
        "id": "acme-web",
        "tenant": "acme",
        "cidr": "10.1.0.0/24",
        "cidr6": "2001:db8:1::/64",
        "dns": ["10.1.0.53"],
        "domain": "acme.example",
    },
    "vms": {
        "id": "web-1",
        "tenant": "acme",
        "name": "first web server",
        "nics": [{"mac": "02:00:00:00:01:01", "subnet": "acme-web", "ipv4": "10.1.0.11"}],
        "groups": ["web"],
    },
    "hosts": {"id": "hv1", "datapath": "0000000000000101", "site": "private"},
    "access-rules": {
        "id": "acme-http",
        "tenant": "acme",
        "action": "allow",
        "priority": 200,
        "source": {"cidrs": ["0.0.0.0/0"]},
        "destination": {"groups": ["web"]},
        "protocol": "tcp",
        "ports": [{"first": 80, "last": 80}, {"first": 443, "last": 443}],
    },
    "link-speeds": {"id": "0000000000000101:3", "speed": 1_000_000_000},
    "tunnels": {"id": "wan-1", "link": "0000000000000101:4", "capacity": 10_000_000_000},
    "calendar": {
        "id": "summer-sale",
        "cause": "campaign",
        "groups": ["web"],
        "starts": "2030-07-01T08:00:00Z",
        "lasts": "PT12H",
        "factor": 3.0,
    },
}

TOKEN_EXAMPLE: dict[str, Any] = {"name": "agent-hv1", "role": "hypervisor", "host": "hv1"}

_MOVE = {"migration": "mig-7", "vm": "web-1"}
DATA_EXAMPLES: dict[EventType, dict[str, Any]] = {
    EventType.VM_PLACED: {"vm": "web-1", "host": "hv1", "ports": ["vnet7"]},
    EventType.VM_UPDATED: {"vm": "web-1", "groups": ["web", "canary"]},
    EventType.VM_REMOVED: {"vm": "web-1", "host": "hv1"},
    EventType.MIGRATION_STARTED: {**_MOVE, "source": "hv1", "target": "hv2", "ports": ["vnet3"]},
    EventType.MIGRATION_COMPLETED: {**_MOVE, "target": "hv2", "ports": ["vnet3"]},
    EventType.MIGRATION_FAILED: {**_MOVE, "reason": "the target ran out of memory"},
    EventType.HOST_UP: {"host": "hv1"},
    EventType.HOST_DOWN: {"host": "hv1"},
    EventType.HOST_DRAINING: {"host": "hv1"},
}


def _event(kind: EventType, number: int = 1) -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "id": f"e-{number}",
        "source": "/hypervisors/hv1",
        "type": kind.value,
        "time": _TIME,
        "data": DATA_EXAMPLES[kind],
    }


_EVENT_REF = {"$ref": _REF.format(model="Event")}


def _told(model: type[BaseModel], description: str) -> dict[str, Any]:
    schema = {"$ref": _REF.format(model=model.__name__)}
    return {"description": description, "content": {JSON: {"schema": schema}}}


def _query(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": description, "schema": schema}


EVENT_OPERATION: dict[str, Any] = {
    "responses": {
        200: {
            "description": "What became of the event, or of each event of the batch",
            "content": {
                JSON: {
                    "schema": {
                        "oneOf": [
                            {"$ref": _REF.format(model=model.__name__)}
                            for model in (EventReply, BatchReply)
                        ]
                    }
                }
            },
        }
    },
    "openapi_extra": {
        "parameters": [
            _query("wait", "Answer once the switches confirmed", {"const": "applied"}),
            _query("timeout", "Seconds to wait at most", {"type": "number", "minimum": 0}),
        ],
        "requestBody": {
            "required": True,
            "content": {
                CLOUDEVENT: {
                    "schema": _EVENT_REF,
                    "examples": {kind.value: {"value": _event(kind)} for kind in EventType},
                },
                CLOUDEVENTS: {
                    "schema": {"type": "array", "items": _EVENT_REF},
                    "examples": {
                        "batch": {
                            "value": [
                                _event(EventType.HOST_UP, 1),
                                _event(EventType.VM_PLACED, 2),
                            ]
                        }
                    },
                },
                JSON: {
                    "schema": _EVENT_REF,
                    "examples": {"structured": {"value": _event(EventType.VM_PLACED)}},
                },
            },
        },
    },
}


def body(model: type[BaseModel], example: dict[str, Any]) -> dict[str, Any]:
    """The `openapi_extra` of an operation that takes a `model`."""
    schema = {"$ref": _REF.format(model=model.__name__)}
    content = {JSON: {"schema": schema, "examples": {"example": {"value": example}}}}
    return {"requestBody": {"required": True, "content": content}}


def replies(
    model: type[BaseModel], status: int = 200, text: str = "Done"
) -> dict[int | str, dict[str, Any]]:
    """The `responses` of an operation that answers with a `model`."""
    return {status: _told(model, text)}


def document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI 3.1 document of `app`."""
    if app.openapi_schema is None:
        app.openapi_schema = _document(app)
    return app.openapi_schema


def _document(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(
        title="Pleach",
        version=__version__,
        openapi_version="3.1.0",
        summary="The northbound interface of a controller for networks of virtual machines",
        description=(
            "Hypervisors tell what happens to VMs as CloudEvents; operators define tenants, "
            "subnets, VMs, hosts and access rules. Errors are RFC 9457 problems whose `mend` "
            "says what to do."
        ),
        routes=app.routes,
        tags=app.openapi_tags,
    )
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    models: list[type[BaseModel]] = [*RESOURCES.values(), *set(DATA.values())]
    models += [EventReply, BatchReply, ProblemBody, NewToken, *_models_of(app)]
    unique = sorted(set(models), key=lambda model: model.__name__)
    _, definitions = models_json_schema(
        [(model, "validation") for model in unique], ref_template=_REF
    )
    schemas.update(definitions.get("$defs", {}))
    schemas["Event"] = _event_schema()
    # Written by FastAPI for its own validation errors, which are told as problems here.
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    document["components"]["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    problem = {
        "description": "What was wrong, where, and what to do",
        "content": {PROBLEM: {"schema": {"$ref": _REF.format(model="ProblemBody")}}},
    }
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            operation["responses"]["default"] = problem
            if path != "/v1/health":
                operation["security"] = [{"bearer": []}]
    return document


def _models_of(app: FastAPI) -> list[type[BaseModel]]:
    models: list[type[BaseModel]] = app.state.documented
    return models


def _event_schema() -> dict[str, Any]:
    kinds = [
        {
            "properties": {
                "type": {"const": kind.value},
                "data": {"$ref": _REF.format(model=DATA[kind].__name__)},
            }
        }
        for kind in EventType
    ]
    text = {"type": "string", "minLength": 1, "maxLength": 255}
    return {
        "title": "Event",
        "description": "A CloudEvent 1.0; extension attributes are allowed and not read.",
        "type": "object",
        "required": ["specversion", "id", "source", "type", "time", "data"],
        "properties": {
            "specversion": {"const": "1.0"},
            "id": text,
            "source": text,
            "type": {"type": "string", "enum": [kind.value for kind in EventType]},
            "time": {"type": "string", "format": "date-time"},
            "datacontenttype": {"const": JSON},
            "data": {"type": "object"},
        },
        "oneOf": kinds,
    }
