"""Generated from protocols/*.proto by scripts/make-wire. Never edited."""
