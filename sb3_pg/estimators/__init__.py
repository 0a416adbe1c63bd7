"""Returns and baselines: pure numpy, time-major arrays ``[T, N]``."""
