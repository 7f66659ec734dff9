"""Engines: how the training steps of several networks are run on a device, the same arithmetic in each."""
