"""The keeper: starts gateways and replicas, watches them, restarts them, and tells everyone what is there."""
