"""Which stage runs next, with what share of which machine, and what a lost worker leads to."""
