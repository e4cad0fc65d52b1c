"""Parts of every experiment: settings, the split, the record of the run, refusals."""
