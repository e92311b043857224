"""MLPacker's runtime: what lives on a scoring machine, inside the pipeline's own environment."""

__version__ = "0.1.0"
