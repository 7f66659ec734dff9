"""raylth: the study of lottery-ticket masks on other initialisations, as one distributed sweep (arXiv 2505.05143)."""

__version__ = "0.1.0"
