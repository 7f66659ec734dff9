"""The processes that train: what they are given, their GPUs, and how they end."""
