"""Whose turn it is when not everyone can be served: device time charged to tenants, by weight.

Each tenant has a virtual time: the device time it has used over its weight. While all that waits fits into the next
batch nobody is held back; when it does not, a tenant may take its share of the batch, corrected by how far it is
behind or ahead of the others. A tenant that comes back from idleness starts level with those that wait: idle time is
not banked. Pure. Not here: deadlines (`queueing.py`), carrying it out (`scheduling.py`).

Source: start-time fair queueing (Goyal et al. 1996); charging after the fact, as the virtual token counter (OSDI 2024).
"""

from collections.abc import Mapping

__all__ = ["Account", "Ledger"]

# Tenants remembered although they have nothing waiting. What they are ahead by is forgotten with them.
ACCOUNTS_MAX = 1_024


class Account:
    """One tenant's account.

    Attributes:
        weight: Its share of a contended device is weight over the sum of weights of those that wait.
        virtual_us: Device time charged, over weight, µs.
        waiting, nbytes: Requests waiting now, and the bytes of their inputs.
    """

    __slots__ = ("nbytes", "tenant", "virtual_us", "waiting", "weight")

    def __init__(self, tenant: str, weight: float) -> None:
        self.tenant = tenant
        self.weight = weight
        self.virtual_us = 0.0
        self.waiting = 0
        self.nbytes = 0


class Ledger:
    """The accounts of one model's tenants.

    Args:
        weights: By tenant; those not named weigh what their requests say, else 1.
    """

    __slots__ = ("_level_us", "_top_us", "_weights", "accounts", "backlogged")

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = weights
        self.accounts: dict[str, Account] = {}
        self.backlogged: dict[str, Account] = {}
        self._top_us = 0.0  # the highest virtual time anybody has had
        self._level_us = 0.0  # that, when last nobody waited: all who came since begin at least there

    def enter(self, tenant: str, nbytes: int = 0, weight: float = 0.0) -> Account:
        """A request of this tenant begins to wait.

        Args:
            tenant: On whose account it runs.
            nbytes: Of its inputs.
            weight: What its caller's key says the tenant weighs, if the ledger's own weights do not name it; 0 for
                nothing.
        """
        account = self.accounts.get(tenant)
        if account is None:
            if len(self.accounts) >= ACCOUNTS_MAX:
                self.accounts = dict(self.backlogged)
            account = self.accounts[tenant] = Account(tenant, self._weights.get(tenant, weight or 1.0))
        elif weight and weight != account.weight and tenant not in self._weights:
            account.weight = weight
        if not account.waiting:
            if self.backlogged:
                level_us = max(min([a.virtual_us for a in self.backlogged.values()]), self._level_us)
            else:
                level_us = self._level_us = self._top_us
            account.virtual_us = max(account.virtual_us, level_us)
            self.backlogged[tenant] = account
        account.waiting += 1
        account.nbytes += nbytes
        return account

    def leave(self, tenant: str, nbytes: int = 0, requests: int = 1) -> None:
        """So many requests of this tenant, with so many bytes in all, wait no longer."""
        account = self.backlogged[tenant]
        account.waiting -= requests
        account.nbytes -= nbytes
        if not account.waiting:
            del self.backlogged[tenant]

    def charge(self, tenant: str, device_us: float) -> None:
        """Charge device time, µs; negative to correct an estimate that was too high."""
        account = self.accounts.get(tenant)
        if account is not None:
            account.virtual_us += device_us / account.weight
            self._top_us = max(self._top_us, account.virtual_us)

    def share(self, tenant: str, weight: float = 0.0) -> float:
        """Return this tenant's share of the device among those that wait, itself included, 0-1.

        `weight` is as of `enter`.
        """
        account = self.accounts.get(tenant)
        mine = self._weights.get(tenant) or weight or (account.weight if account else 1.0)
        others = sum(a.weight for name, a in self.backlogged.items() if name != tenant)
        return mine / (mine + others)

    def allowances(self, rows: int, row_us: float) -> dict[str, float]:
        """Divide `rows` of a contended batch among the tenants that wait.

        Args:
            rows: To be divided.
            row_us: Device time of one row, µs, > 0: turns being ahead or behind into rows.

        Returns:
            Rows each may take before the others have had theirs. May be negative for one that is far ahead; being
            ahead or behind moves an allowance by at most `rows`.
        """
        accounts = self.backlogged.values()
        weight = sum(a.weight for a in accounts)
        level_us = sum(a.virtual_us * a.weight for a in accounts) / weight
        allowed = {}
        for account in accounts:
            behind = (level_us - account.virtual_us) * account.weight / row_us
            allowed[account.tenant] = rows * account.weight / weight + min(max(behind, -rows), rows)
        return allowed
