"""The composition root: reads the command line, wires rooms together, starts processes. Nothing imports it."""
