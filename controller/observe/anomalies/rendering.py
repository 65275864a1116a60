"""How is an alert told to others? As a CloudEvent, and in Alertmanager's format. Pure.

CloudEvents 1.0.2 in JSON (https://github.com/cloudevents/spec); Alertmanager's API v2, the body
of `POST /api/v2/alerts` (https://github.com/prometheus/alertmanager, api/v2/openapi.yaml), in
which alerts with the same labels are the same alert, over once `endsAt` has passed.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from controller.observe.anomalies.alerts import Alert, State

Json = dict[str, object]


def cloud_event(alert: Alert, source: str) -> Json:
    """The alert as it now stands. `source` is the URI of this controller.

    The id tells the alert and its version, so that a repeated sending is known as one.
    """
    return {
        "specversion": "1.0",
        "id": f"{alert.id}.{alert.state}.{alert.count}",
        "source": source,
        "type": f"io.pleach.alert.{alert.state}",
        "subject": alert.vm,
        "time": _time(max(alert.changed_at, alert.last_at)),
        "datacontenttype": "application/json",
        "data": {
            "alert": alert.id,
            "kind": str(alert.kind),
            "vm": alert.vm,
            "metric": alert.metric or None,
            "state": str(alert.state),
            "severity": str(alert.severity),
            "score": alert.score,
            "why": alert.why,
            "count": alert.count,
            "first_at": _time(alert.first_at),
            "last_at": _time(alert.last_at),
            "by": alert.by or None,
        },
    }


def alertmanager(alerts: Iterable[Alert], now: float, resend_s: float, link: str) -> list[Json]:
    """The body for Alertmanager at `now` (Unix seconds), to be sent anew every `resend_s`
    seconds: what is not told again within three times that is over, as with Prometheus.

    `link` is the address of an alert's page, to which its id is added. An alert that becomes
    critical gets another label, and is there another alert; the first is over by itself.
    """
    return [
        {
            "labels": {
                "alertname": f"pleach_{alert.kind}",
                "vm": alert.vm,
                **({"metric": alert.metric} if alert.metric else {}),
                "alert": alert.id,
                "severity": str(alert.severity),
            },
            "annotations": {
                "summary": f"{alert.vm}: {alert.why}",
                "state": str(alert.state),
                "score": f"{alert.score:.3g}",
                "count": str(alert.count),
            },
            "startsAt": _time(alert.first_at),
            "endsAt": _time(
                alert.changed_at if alert.state is State.CLOSED else now + 3 * resend_s
            ),
            "generatorURL": link + alert.id,
        }
        for alert in alerts
    ]


def _time(at: float) -> str:
    """RFC 3339, UTC."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
