"""Ops with a Mosaic (Pallas TPU) kernel beside their definition; they import only JAX."""
