"""Summaries over seeds, and paired comparisons."""
