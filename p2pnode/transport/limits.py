"""The transport's limits beyond those of `base`. Each stands with its reason in `protocols/transport.md`."""

from __future__ import annotations

from typing import Final

INSTANCE_BYTES: Final = 16
CHALLENGE_BYTES: Final = 32

# Channels
QUEUE_BYTES: Final = 4 << 20  # waiting to be sent in one channel to one peer
READ_AHEAD_BYTES: Final = 1 << 20  # received in one channel and not yet handled
FRAME_COST: Final = 64  # bytes that a frame counts there beyond its own: many empty ones take memory too
TURN_SECONDS: Final = 0.005  # in which one stream's frames are handled before others have their turn
STREAMS_PER_PEER: Final = 16  # inbound, of one peer
STREAMS_TOTAL: Final = 512  # inbound, of all peers
STREAM_RATE: Final = 10.0  # a second, opened by one peer in the long run
STREAM_BURST: Final = 64.0  # opened by one peer at once
OPEN_SECONDS: Final = 10.0  # to open a channel
WRITE_STALL_SECONDS: Final = 20.0  # in which a peer reads nothing of what waits for it
FRAME_STALL_SECONDS: Final = 20.0  # in which nothing comes of a frame that has begun
FRAME_SECONDS: Final = 60.0  # for one frame to come in whole

# Calls
CALLS_PER_PEER: Final = 16  # being answered for one peer
CALLS_TOTAL: Final = 256  # being answered for all peers
CALL_RATE: Final = 200.0  # a second, from one peer, in the long run
CALL_BURST: Final = 400.0  # from one peer, at once
STORE_ITEMS: Final = 256  # records in one DHT request; each counts as a call
HANDOVER_ITEMS: Final = 128  # records that we hand over to a new neighbour
FIND_KEYS: Final = 16  # keys asked for in one DHT request; each counts as a call

# Lifecycle
CONNECT_SECONDS: Final = 5.0  # for one attempt to connect
BACKOFF_FIRST: Final = 0.25  # seconds between attempts to reach any bootstrap; doubles
BACKOFF_MOST: Final = 8.0
FLUSH_SECONDS: Final = 1.0  # given on leaving to what is queued
STOP_SECONDS: Final = 4.5  # for the whole of `stop`
GONE_CHECKS: Final = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6)  # seconds between looks at whether a peer is still connected
WATCH_SECONDS: Final = 5.0  # between looks at peers with whom no channel is open
IDENTITY_SECONDS: Final = 0.9  # for the question whether our identity is in use
IDENTITY_PROBE_SECONDS: Final = 0.4  # for a process to prove that it lives
IDENTITY_FORWARDS: Final = 8  # peers to whom the question is passed on
WHERE_PEERS: Final = 8  # who are asked for a peer's addresses
WHERE_SECONDS: Final = 1.5  # for their answer
ADDRESSES_PER_PEER: Final = 16
ADDRESSES_PEERS: Final = 1024  # whose addresses are kept
ADDRESS_BYTES: Final = 256  # of one address
MAINTAIN_SECONDS: Final = 10.0  # between looks at our own addresses
DAEMON_LOOK_SECONDS: Final = 0.25  # between looks at whether our daemon lives
RESTARTS: Final = 8  # of our daemon that has ended, tries included, within RESTART_WINDOW
RESTART_WINDOW: Final = 600.0
RESTART_SECONDS: Final = 10.0  # for a daemon that runs again to take our handlers
ALONE_LOOK_SECONDS: Final = 2.0  # between looks at whether we are alone
ALONE_MOST: Final = 30.0  # seconds between tries to find anybody; doubles up to this
RETURN_PEERS: Final = 64  # who are dialled to find the swarm again
CLOCK_PEERS: Final = 25  # whose clocks are asked
CLOCK_SECONDS: Final = 60.0  # between estimates of the clock's offset
CLOCK_NEAR: Final = 0.5  # seconds off that are not worth a correction
CLOCK_CONFIRM: Final = 3  # estimates in a row, as near to one another, that it takes to move an established clock
