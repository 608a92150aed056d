"""What happens in a round, pure: clock, randomness and messages are arguments, and what to do comes back as effects."""
