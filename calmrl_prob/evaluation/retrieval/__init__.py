"""Cross-modal retrieval: scores by exact likelihood ratios or cosines, and the ranks they give."""
