"""Ways to run a training step of stacked networks on a GPU."""
