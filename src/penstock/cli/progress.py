"""What `penstock serve` tells people on stderr while it works: a live table on a terminal, plain lines elsewhere.

Not here: what happens (`fleet/head.py` says so in events), the ready line on stdout (`serve.py`).
"""

from rich.console import Console
from rich.live import Live
from rich.table import Table

from penstock.fleet.head import FleetEvent

__all__ = ["Progress"]

_STYLES = {
    "started": "yellow",
    "adopted": "green",
    "ready": "green",
    "died": "red",
    "killed": "red",
    "stopped": "dim",
    "warning": "red",
}
_WORDS = {"started": "loading"}


class Progress:
    """Shows events. Until `finish` a terminal sees one row per child; after it, and elsewhere, a line per event."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._newest: dict[str, FleetEvent] = {}
        # Drawn again on each event instead of by a thread of its own: nothing moves between two events.
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        if self._live is not None:
            self._live.start()

    def show(self, event: FleetEvent) -> None:
        """Show one event."""
        if self._live is None:
            self.say(f"{event.name} {event.kind}: {event.text}" if event.text else f"{event.name} {event.kind}")
            return
        if event.kind in ("died", "killed", "warning"):
            self.say(f"{event.name} {event.kind}: {event.text}")
        self._newest[event.name] = event
        self._live.update(self._table(), refresh=True)

    def say(self, text: str) -> None:
        """Write one line, whatever characters it holds."""
        self._console.print(f"penstock: {text}", markup=False, highlight=False, soft_wrap=True)

    def finish(self) -> None:
        """Leave the live table; twice is once."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _table(self) -> Table:
        table = Table(box=None, show_header=False, pad_edge=False)
        for event in self._newest.values():
            style = _STYLES[event.kind]
            table.add_row(event.name, f"[{style}]{_WORDS.get(event.kind, event.kind)}[/{style}]", event.text)
        return table
