"""Runs a sweep or a search from its settings to its report: prepare, compute, summarise."""
