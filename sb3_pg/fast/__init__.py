"""The same updates, faster. :func:`select` is the one door."""
