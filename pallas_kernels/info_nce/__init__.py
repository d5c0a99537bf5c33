"""Symmetric InfoNCE over groups of rows. `api.info_nce` is the one to call."""
