"""What a person, or a program that watches, gets to see of a node: events in, lines or a live screen out."""
