"""How well a model answers, and why: answers and scores, attention, probes, pages."""
