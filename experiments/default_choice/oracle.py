"""The best of a grid of settings by hand, chosen on the TEST rows: what no user can do, and a bound of what choosing gives."""
