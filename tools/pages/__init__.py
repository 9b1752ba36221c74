"""Pages: one self-contained HTML file each, which opens from disk without a network."""
