"""Every error that p2pnode raises on purpose, grouped by what the caller can do about it.

P2PNodeError
├── UsageError                  change what you typed or wrote (exit status 2)
│   ├── ManifestError           ... in the manifest file
│   ├── InviteError             ... in the invite
│   └── TaskError               ... in the task's name or parameters
├── MachineError           change something on this machine (exit status 1)
│   ├── HomeInUse               another node runs in this home
│   ├── IdentityError           the key file is missing, unreadable or wrong
│   ├── DataError               the data set is missing or damaged
│   └── StorageError            a file of ours is torn, tampered with, or can't be written
├── NetworkError                wait, or check addresses
│   ├── Unreachable             a peer does not answer
│   ├── FrameTooLarge           a peer sent, or we were asked to send, more than the limit
│   └── IdentityTaken           another node in the run uses our identity
├── PeerFault                   a peer broke a rule: carries the clause's name
├── PrivacyError                the node stops rather than release
│   ├── BudgetSpent             the ledger has no room for the next release
│   └── LedgerBroken            the ledger's hash chain does not hold
└── ArithmeticMismatch          this machine computes other bits than the run's rules: do not take part

The message is what the user sees: one line, what was found, and what to do.
"""

from __future__ import annotations


class P2PNodeError(Exception):
    """Base of all errors raised on purpose. `exit_status` is what the command line exits with."""

    exit_status = 1


class UsageError(P2PNodeError):
    """What was typed or written can't be used."""

    exit_status = 2


class ManifestError(UsageError):
    """The manifest is malformed, inconsistent, unsigned, or signed by somebody else than its author."""


class InviteError(UsageError):
    """The invite is damaged, of another version, or not an invite."""


class TaskError(UsageError):
    """No such task is installed, or its parameters are wrong."""


class MachineError(P2PNodeError):
    """Something on this machine has to change first."""


class HomeInUse(MachineError):
    """Another node runs in this home directory."""


class IdentityError(MachineError):
    """The identity's key file is missing, unreadable, too open, or not an Ed25519 key."""


class DataError(MachineError):
    """A data set is missing, or is not the one that the manifest names."""


class StorageError(MachineError):
    """A file of ours is torn or was tampered with, or can't be written."""


class NetworkError(P2PNodeError):
    """The network, or a peer in it, does not do what is needed."""


class Unreachable(NetworkError):
    """A peer did not answer in time, or no bootstrap address could be reached."""


class FrameTooLarge(NetworkError):
    """A frame is larger than the limit for its kind; nothing was allocated for it."""


class IdentityTaken(NetworkError):
    """Another running node in the swarm uses our identity."""


class PeerFault(P2PNodeError):
    """A peer broke a rule of the protocol.

    clause: the name of the rule, as `protocols/` has it.
    """

    def __init__(self, clause: str, detail: str = "") -> None:
        super().__init__(f"{clause}: {detail}" if detail else clause)
        self.clause = clause
        self.detail = detail


class PrivacyError(P2PNodeError):
    """Releasing anything more would break the privacy promise."""


class BudgetSpent(PrivacyError):
    """The privacy budget has no room for the next release."""


class LedgerBroken(PrivacyError):
    """The privacy ledger's hash chain does not hold: it was edited, or belongs to other data."""


class ArithmeticMismatch(P2PNodeError):
    """This machine's arithmetic gives other bits than the run's rules: its replica would differ."""
