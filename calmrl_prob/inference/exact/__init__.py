"""Fits and posteriors in closed form, for each family that has one."""
