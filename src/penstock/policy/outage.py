"""Whether the authority over limits is out of reach for good, so that a gateway goes by its share of each limit.

    in touch --no answer for a while--> alone --answers again--> returning --for long enough--> in touch
                                          ^                          |
                                          +------- no answer --------+

One lost answer is no outage: who goes by a share beside others that still ask adds to what they admit. And after one
everybody goes on by shares for a while, so that all have told what they admitted before anybody asks again. Pure.
Not here: shares themselves (`gateway/limit_plans.py`), keeping calls from waiting (`breaking.py`).
"""

__all__ = ["ALONE_AFTER_US", "RETURN_US", "Outage"]

# Nothing was answered for so long: five deadlines' worth of calls, or one restart of a process.
ALONE_AFTER_US = 100_000
# Longer than gateways differ in when they find the authority again: at most 2 s, their longest pause between attempts.
RETURN_US = 3_000_000


class Outage:
    """See the module.

    Attributes:
        is_alone: Go by shares; also while returning.
    """

    __slots__ = ("_returned_at_us", "_silent_since_us", "is_alone")

    def __init__(self) -> None:
        self.is_alone = False
        self._silent_since_us = 0
        self._returned_at_us = 0

    def note_silence(self, now_us: int) -> None:
        """A call got no answer."""
        self._returned_at_us = 0
        if not self._silent_since_us:
            self._silent_since_us = now_us
        elif now_us - self._silent_since_us >= ALONE_AFTER_US:
            self.is_alone = True

    def note_answer(self, now_us: int) -> None:
        """A call was answered."""
        self._silent_since_us = 0
        if not self.is_alone:
            return
        if not self._returned_at_us:
            self._returned_at_us = now_us
        elif now_us - self._returned_at_us >= RETURN_US:
            self.is_alone = False
            self._returned_at_us = 0
