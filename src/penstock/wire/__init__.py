"""Bytes to nouns and back: the Open Inference Protocol, OpenAI, the replica frame, the control channel. Pure."""
