"""Routes for any model: variational inference, NUTS, and the guides they start from."""
