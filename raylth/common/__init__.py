"""What every layer uses and nothing here knows: plug-ins by name, seeds, paths, signals, the terminal."""
