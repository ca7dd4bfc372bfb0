"""The kit for tests, ours and users': fakes, manual time, Hypothesis strategies. Production never imports it."""
