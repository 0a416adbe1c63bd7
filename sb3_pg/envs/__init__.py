"""Vectorised environments for any algorithm of Stable-Baselines3."""
