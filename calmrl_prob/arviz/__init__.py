"""From posteriors to ArviZ: groups, draws, files, and the one adapter to its versions."""
