"""A user's Pyro model: its parameters, its sites, and running it without the global store."""
