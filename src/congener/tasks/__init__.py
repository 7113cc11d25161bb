"""Task packs; each lives behind its extra."""
