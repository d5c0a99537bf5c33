"""OSPE: a latent rotated by the time it stands for. `api.ospe` is the one to call."""
