"""The format: what a data set on disk is."""
