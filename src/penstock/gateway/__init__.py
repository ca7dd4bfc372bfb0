"""The door: HTTP, routes, queues, dispatch. One asyncio process; holds nothing durable; may be killed at any time."""
