"""Drawn and played clips: small audio-video events whose truth is known."""
