"""The catalogue: what each model is, where it runs and in which state, told from its replicas alone.

Pure. Not here: sending it to gateways (`head.py`), whether a canary passes (each gateway's own finding).
"""

from collections.abc import Iterable
from hashlib import sha256

import msgspec

from penstock.core.launch import GatewayLaunch
from penstock.core.models import ModelSource, ModelSpec
from penstock.fleet.supervisor import Child, ChildState, Launch
from penstock.wire.control import ModelEntry, ModelState

__all__ = ["describe_model", "fingerprint", "name_replica"]

# A replica that worked before and died this often in a row without a good life is broken, not restarting.
_CRASHES_MAX = 3


def name_replica(source: ModelSource, index: int) -> str:
    """Return the name of a model's replica: `digits:1#0`; without the version while only its class knows that."""
    version = "" if source.spec is None else f":{source.spec.version}"
    return f"{source.name}{version}#{index}"


def fingerprint(launch: Launch) -> str:
    """Return what tells whether a running child was started as one would be now, whatever address it got."""
    if isinstance(launch, GatewayLaunch):
        told: object = launch
    else:
        told = (launch.replica, launch.control, launch.orphan_us, launch.source)
    return sha256(msgspec.json.encode(told, order="sorted")).hexdigest()[:16]


def describe_model(source: ModelSource, replicas: Iterable[Child]) -> ModelEntry:
    """Return a model's entry.

    READY: a replica works. LOADING: none does, one is on its way, and requests may wait for it. UNAVAILABLE: none
    does and waiting is no use, because the last try failed; `reason` says why.
    """
    children = list(replicas)
    ready = [c for c in children if c.state is ChildState.READY]
    spec = _latest_spec(source, children)
    state: ModelState = "READY"
    reason = ""
    if not ready:
        broken = [c for c in children if _is_broken(c)]
        state = "UNAVAILABLE" if broken else "LOADING"
        reason = next((c.reason for c in (broken or children) if c.reason), "")
    return ModelEntry(
        name=source.name,
        version="1" if spec is None else spec.version,
        state=state,
        reason=reason,
        spec=spec,
        replicas=tuple(c.address for c in ready),
        profile=next((c.profile for c in children if c.profile is not None), None),
    )


def _is_broken(child: Child) -> bool:
    return child.unready_lives > 0 or child.restart.failures >= _CRASHES_MAX


def _latest_spec(source: ModelSource, children: list[Child]) -> ModelSpec | None:
    """Return what a replica said, else what was published; None for a Python model that never ran."""
    said = [c.spec for c in children if c.spec is not None]
    if said:
        return said[0]
    return None if source.spec is None else source.overrides.apply(source.spec)
