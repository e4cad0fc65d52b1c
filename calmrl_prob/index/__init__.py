"""Indexes for retrieval: candidates prepared once and searched by exact likelihood ratios."""
