"""The models this gateway serves, as the head's newest snapshot names them, and which are ready by our own finding.

Ready means: an inference through one of our links succeeded within the last `canary_age_us_max`. Real traffic counts;
a link without any gets a canary. With the head gone the last snapshot stays in force.
"""

import asyncio
from collections.abc import Callable

from penstock.core.models import ModelSpec
from penstock.core.ports import Clock
from penstock.core.statistics import GatewayStatistics, ModelStatistics
from penstock.gateway.batcher import ModelBatcher
from penstock.gateway.link import ReplicaLink
from penstock.policy.admission import RefusalReason
from penstock.wire.control import ModelEntry, Snapshot
from penstock.wire.oip import InferenceCodec

__all__ = ["Catalogue", "Model"]

# An idle link proves itself this often; well below the default bound on readiness (10 s).
CANARY_INTERVAL_US = 2_000_000


class Model:
    """One model version: its catalogue entry, and once loaded its codec, queues and links."""

    __slots__ = ("batcher", "codec", "entry", "links", "spec", "statistics")

    def __init__(self, entry: ModelEntry, statistics: ModelStatistics) -> None:
        self.entry = entry
        self.statistics = statistics
        self.spec: ModelSpec | None = None
        self.codec: InferenceCodec | None = None
        self.batcher: ModelBatcher | None = None
        self.links: dict[str, ReplicaLink] = {}


class Catalogue:
    """Applies snapshots; finds models; keeps readiness.

    Args:
        loop: The event loop.
        now_us: Clock.
        statistics: Where models' counters live, by `name:version`.
        canary_age_us_max: See the module.
        call_later: Timer for the batchers.
        schedule_flush: One flush at the end of this turn.
        on_fault: (address, reason) of a replica to be replaced.
        on_change: Called when a snapshot has been applied.
        chance: Uniform in [0, 1), for the schedulers.
        on_bug: Called with an exception that should not have happened.
    """

    def __init__(
        self,
        *,
        loop: asyncio.AbstractEventLoop,
        now_us: Clock,
        statistics: GatewayStatistics,
        canary_age_us_max: int,
        call_later: Callable[[int, Callable[[], None]], Callable[[], None]],
        schedule_flush: Callable[[ModelBatcher], None],
        on_fault: Callable[[str, str], None],
        on_change: Callable[[], None],
        chance: Callable[[], float],
        on_bug: Callable[[Exception], None],
    ) -> None:
        self.models: dict[tuple[str, str], Model] = {}
        self.latest: dict[str, Model] = {}
        self.is_known = False  # a first snapshot has arrived
        self._loop = loop
        self._now_us = now_us
        self._statistics = statistics
        self._canary_age_us_max = canary_age_us_max
        self._call_later = call_later
        self._schedule_flush = schedule_flush
        self._on_fault = on_fault
        self._on_change = on_change
        self._chance = chance
        self._on_bug = on_bug

    def apply_snapshot(self, snapshot: Snapshot) -> None:
        """Make the catalogue what `snapshot` says."""
        entries = {(entry.name, entry.version): entry for entry in snapshot.models}
        for key in [key for key in self.models if key not in entries]:
            self._remove(self.models.pop(key))
        for key, entry in entries.items():
            model = self.models.get(key)
            if model is None or (model.spec is not None and entry.spec is not None and model.spec != entry.spec):
                if model is not None:
                    self._remove(model)
                statistics = self._statistics.models.setdefault(f"{entry.name}:{entry.version}", ModelStatistics())
                model = self.models[key] = Model(entry, statistics)
            self._update(model, entry)
        self.latest = {}
        for (name, version), model in self.models.items():
            best = self.latest.get(name)
            if best is None or int(version) > int(best.entry.version):
                self.latest[name] = model
        self.is_known = True
        self._on_change()

    def _update(self, model: Model, entry: ModelEntry) -> None:
        model.entry = entry
        if model.spec is None and entry.spec is not None:
            model.spec = entry.spec
            model.codec = InferenceCodec(entry.spec)
            model.batcher = ModelBatcher(
                entry.spec,
                entry.profile,
                statistics=model.statistics,
                now_us=self._now_us,
                call_later=self._call_later,
                schedule_flush=self._schedule_flush,
                chance=self._chance,
                on_bug=self._on_bug,
            )
        if model.batcher is None:
            return
        for address in [a for a in model.links if a not in entry.replicas]:
            model.links.pop(address).close()
        for address in entry.replicas:
            if address not in model.links:
                model.links[address] = ReplicaLink(
                    address, model.batcher, loop=self._loop, now_us=self._now_us, on_fault=self._on_fault
                )

        if entry.state == "UNAVAILABLE":
            why = f": {entry.reason}" if entry.reason else ""
            model.batcher.end(503, f"model {entry.name!r} is UNAVAILABLE{why}", RefusalReason.UNAVAILABLE)
        else:
            model.batcher.reopen()

    def _remove(self, model: Model) -> None:
        if model.batcher is not None:
            message = f"model {model.entry.name!r} is no longer served"
            model.batcher.end(503, message, RefusalReason.UNAVAILABLE)
        for link in model.links.values():
            link.close()
        model.links.clear()

    def close(self) -> None:
        """Close all links."""
        for model in self.models.values():
            self._remove(model)

    def find(self, name: str, version: str | None) -> Model | None:
        """Return a model version, the highest if `version` is None; None if there is none."""
        return self.latest.get(name) if version is None else self.models.get((name, version))

    def versions(self, name: str) -> list[str]:
        """All versions of a model, ascending."""
        return sorted((v for n, v in self.models if n == name), key=int)

    def is_model_ready(self, model: Model) -> bool:
        """True if an inference of this model succeeded recently, over a link that is still up."""
        oldest_us = max(self._now_us() - self._canary_age_us_max, 0)  # 0 means never
        return any(link.is_up and link.success_at_us > oldest_us for link in model.links.values())

    def readiness(self) -> dict[str, bool]:
        """Readiness of every model, by `name:version`."""
        return {f"{n}:{v}": self.is_model_ready(model) for (n, v), model in self.models.items()}

    @property
    def is_ready(self) -> bool:
        """True if a snapshot is known and every model in it is ready."""
        return self.is_known and all(map(self.is_model_ready, self.models.values()))

    @property
    def pending(self) -> int:
        """Requests queued or running, over all models."""
        return sum(m.batcher.pending for m in self.models.values() if m.batcher is not None)

    def tend(self) -> None:
        """Call several times a second: send canaries over links that need one, find hung replicas."""
        now_us = self._now_us()
        for model in self.models.values():
            for link in list(model.links.values()):
                link.check_execution(now_us)
                is_proven = link.success_at_us and now_us - link.success_at_us < CANARY_INTERVAL_US
                if link.is_up and not link.in_flight and not is_proven:
                    link.send_canary(now_us)
