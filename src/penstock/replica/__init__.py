"""The wheel: one process that executes one model. It never parses JSON and never decides what is dispatched where."""
