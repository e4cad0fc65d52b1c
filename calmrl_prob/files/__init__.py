"""Records of fits in files: values as JSON and tensors, the classes that may stand in them, and models of users."""
