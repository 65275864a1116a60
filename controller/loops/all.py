"""Which loops does a brain run?"""

from __future__ import annotations

import time

from controller.decide.bandwidth import qos
from controller.loops.alerts import Keeping
from controller.loops.anomalies import Anomalies
from controller.loops.bandwidth import Sharing
from controller.loops.base import Loop
from controller.loops.behaviour import Behaviours
from controller.loops.conversations import Conversations
from controller.loops.deliveries import Alertmanager, Webhooks
from controller.loops.demand import DIRECTORY, Demand
from controller.loops.foreseen import Foreseen
from controller.loops.investigations import Investigations
from controller.loops.paths.loop import Paths
from controller.loops.responses import Responses
from controller.observe.anomalies import rules
from controller.predict.demand.work import latest_of
from controller.settings import Settings


def loops_of(settings: Settings) -> list[Loop]:
    """The loops that `settings` ask for. Raises SettingsError where rules cannot be used."""
    told = settings.alerts
    ruled = rules.load(told.rules)
    policy = qos.load(settings.bandwidth.policy)
    loops: list[Loop] = [
        Keeping(told, ruled),
        Anomalies(settings, ruled),
        Conversations(settings, ruled),
        Behaviours(settings, ruled),
        Investigations(told),
        Responses(),
        Paths(settings.paths),
        Sharing(
            settings.bandwidth,
            policy,
            Foreseen(latest_of(settings.state_dir / DIRECTORY)),
        ),
    ]
    if told.webhooks:
        loops.append(Webhooks(told))
    if told.alertmanager is not None:
        loops.append(Alertmanager(told, told.alertmanager))
    if settings.forecast.metrics:
        loops.append(Demand(settings.forecast, policy, settings.state_dir, time.time()))
    return loops
