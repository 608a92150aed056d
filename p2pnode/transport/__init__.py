"""How bytes travel between peers: one interface, real (hivemind) and in memory."""
