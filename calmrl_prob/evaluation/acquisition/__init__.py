"""The value of observations still to be made: which modality of which instance to acquire next."""
