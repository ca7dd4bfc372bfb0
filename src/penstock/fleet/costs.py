"""What batches cost, as the gateways find it in live traffic: the newest profiles of each living gateway.

Pure. Not here: the profile a replica measured at load (`catalogue.py`), showing (`metrics.py`, `status.py`).
"""

from penstock.core.profiles import CostProfile

__all__ = ["Costs"]


class Costs:
    """Profiles by gateway, by model (`name:version`), by length bucket ('' is the main one)."""

    def __init__(self) -> None:
        self._reported: dict[str, dict[str, dict[str, CostProfile]]] = {}

    def note(self, gateway: str, profiles: dict[str, dict[str, CostProfile]]) -> None:
        """Keep a gateway's newest profiles. A report without any is about something else: the last ones stand."""
        if profiles:
            self._reported[gateway] = profiles

    def forget(self, gateway: str) -> None:
        """Drop the profiles of a gateway that ended."""
        self._reported.pop(gateway, None)

    def profiles(self, model: str, measured: CostProfile | None) -> dict[str, CostProfile]:
        """Return a model's profiles by bucket, '' first, then in order of their names.

        Gateways see much the same device, so of several that know a bucket the first by name stands for all.

        Args:
            model: Its `name:version`.
            measured: What a replica measured at load; stands for the main bucket until a gateway knows better.
        """
        found = {} if measured is None else {"": measured}
        for gateway in sorted(self._reported, reverse=True):
            found |= self._reported[gateway].get(model, {})
        return dict(sorted(found.items()))
