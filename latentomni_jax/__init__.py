"""LatentOmni (arXiv 2605.22012) in JAX/Flax.

A Qwen2.5-Omni thinker that reads video and sound and reasons partly in continuous states.
"""

__version__ = "0.1.0"
