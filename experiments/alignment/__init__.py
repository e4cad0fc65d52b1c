"""Parts of the experiments of alignment: training, its runs, anchor shifts, pooling."""
