"""The REST interface against its own OpenAPI document, by schemathesis: whatever is sent, no
answer is a fault of the server, each is of a form that the document tells, and what was taken
can be made into rules.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext, suppress
from itertools import product

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from northbound_server import Running, define, other_store, running
from schemathesis.checks import load_all_checks

from controller.act.dataplane.compiler import Compiler

#: Requests of each operation.
EXAMPLES = 5

load_all_checks()
_CHECKS = [
    schemathesis.checks.CHECKS.get_one(name)
    for name in (
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_schema_conformance",
        "use_after_free",
    )
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp("brain") / "state"
    # What the fuzzer asks to wait for will hardly ever come.
    with running(directory, wait_timeout_s=0.02, requests_per_s=0) as found:
        define(found)
        yield found
        with found.client() as client:
            assert client.ready().revision > 0
        with other_store(found) as store:
            store.check()
            Compiler(store.snapshot())


@pytest.fixture(scope="module")
def document(served: Running) -> schemathesis.BaseSchema:
    headers = {"authorization": f"Bearer {served.token}"}
    return schemathesis.openapi.from_url(f"{served.url}/openapi.json", headers=headers)


def test_every_answer_is_foreseen(
    document: schemathesis.BaseSchema, served: Running, subtests: pytest.Subtests
) -> None:
    headers = {"authorization": f"Bearer {served.token}"}

    def hold(case: schemathesis.Case) -> None:
        case.call_and_validate(headers=headers, checks=_CHECKS, timeout=20)

    operations = [found.ok() for found in document.get_all_operations()]
    assert len(operations) > 20
    for operation, mode in product(operations, schemathesis.GenerationMode):
        negative = mode is schemathesis.GenerationMode.NEGATIVE
        # Nothing can be wrong with a request that has no field: none is made then.
        none = suppress(Unsatisfiable) if negative else nullcontext()
        with subtests.test(f"{operation.label} {mode.value}"), none:
            every = settings(
                max_examples=EXAMPLES,
                deadline=None,
                derandomize=True,
                database=None,
                suppress_health_check=list(HealthCheck),
            )
            every(given(case=operation.as_strategy(generation_mode=mode))(hold))()
