"""The command ``calmrl``: own data described, fitted, imputed, searched, validated and reported from a shell."""
