"""Vectorised environments for all algorithms of Stable-Baselines3."""
