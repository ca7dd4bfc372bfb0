"""The judgements: pure deciders. No IO, no clock, no dice, no logging; time comes in as `now_us`."""
