"""Parts of ``experiments.classify`` and ``experiments.video``: rows, rivals, and modalities acquired one by one."""
