"""What does an Open vSwitch database say of itself? (RFC 7047)"""

from __future__ import annotations

from typing import Any

from ovs import jsonrpc, stream

#: The database of ovs-vswitchd.conf.db(5).
DATABASE = "Open_vSwitch"
_TIMEOUT_MS = 5_000


def schema(remote: str) -> Any:
    """The schema of the server at `remote` (`unix:/PATH` or `tcp:HOST:PORT`). OSError where
    there is no server, or it has no such database."""
    error, opened = stream.Stream.open_block(stream.Stream.open(remote), timeout=_TIMEOUT_MS)
    if error:
        raise OSError(error, f"{remote}: connection failed (error {error})")
    connection = jsonrpc.Connection(opened)
    try:
        request = jsonrpc.Message.create_request("get_schema", [DATABASE])
        error, reply = connection.transact_block(request)
        if error or reply.error:
            raise OSError(error, f"{remote} has no database {DATABASE}")
        return reply.result
    finally:
        connection.close()
