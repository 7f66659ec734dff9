"""Images that stay in their files: the .beton format, its writers, and its loaders: FFCV, DALI, TorchCodec and PIL."""
