"""Local swarms for researchers and tests: many real nodes on one machine."""
