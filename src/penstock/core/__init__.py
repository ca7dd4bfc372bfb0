"""The nouns every room shares: tensors, models, errors, statistics, ports. Imports nothing of ours."""
