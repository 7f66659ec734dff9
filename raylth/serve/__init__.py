"""A live page of a store's sweeps: read-only, on loopback unless asked otherwise, with nothing from other hosts."""
