"""From a sweep's settings to its stages, and what they will need, known before anything runs."""
