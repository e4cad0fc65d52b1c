"""Parts of ``experiments.medicine``: cohorts, what is hidden of them, contenders and their scores."""
