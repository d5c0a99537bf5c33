"""Experiment files: `latentomni train --config configs/NAME.py`."""
