"""Aligning the representations of incomplete instances: anchors, objectives, and calibration."""
