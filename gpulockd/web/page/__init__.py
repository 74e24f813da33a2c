"""The page at `/`: rendered here, readable as plain tables without scripts, and kept of this moment by them."""
