"""Data and imputations written to files of several formats, by rows, and whole or not at all."""
