"""Results of the routes of ``calmrl_prob.posterior``: one class for each family, over one base."""
