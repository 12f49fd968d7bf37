"""Files that are written whole or not at all, checksums, downloads."""
