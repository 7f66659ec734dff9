"""Images that stay in their files: the .beton format, its writers, and two readers."""
