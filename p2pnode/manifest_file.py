"""Manifests as files that a person reads and writes (TOML), and the author's signature under them."""

from __future__ import annotations

import base64
import binascii
import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from p2pnode.envelope import EnvelopeFault, Signed, open_envelope, seal
from p2pnode.errors import ManifestError
from p2pnode.identity import PeerIdentity
from p2pnode.manifest import MAX_MANIFEST_BYTES, RunManifest
from p2pnode.wire.manifest_pb2 import ManifestSignature

SIGNATURE_TYPE: Final = "manifest"
MAX_SIGNATURE_BYTES: Final = 64
MAX_FILE_BYTES: Final = 2 * MAX_MANIFEST_BYTES  # the longest manifest, with room for spaces and comments
MAX_PROBLEMS: Final = 10  # told at once


def sign_manifest(identity: PeerIdentity, manifest: RunManifest) -> bytes:
    """The author's signature under `manifest`: envelope bytes. ManifestError if `identity` is not the author."""
    if identity.peer_id.text != manifest.author:
        raise ManifestError(
            f"author: found {manifest.author}, but this identity is {identity.peer_id}: only the author can sign"
        )
    return seal(identity, SIGNATURE_TYPE, ManifestSignature(run=manifest.digest)).raw


def verify_manifest(manifest: RunManifest, envelope: bytes) -> Signed[ManifestSignature]:
    """Check that `envelope` is the author's signature under this very manifest. ManifestError if not."""
    try:
        signed = open_envelope(envelope, SIGNATURE_TYPE, ManifestSignature, max_bytes=MAX_SIGNATURE_BYTES)
    except EnvelopeFault as fault:
        raise ManifestError(f"signature: {fault}") from None
    if signed.sender.text != manifest.author:
        raise ManifestError(f"signature: made by {signed.sender}, must be made by the author, {manifest.author}")
    if signed.message.run != manifest.digest:
        raise ManifestError("signature: made for another manifest (was this one edited since? sign it again)")
    return signed


def load_manifest(path: Path) -> tuple[RunManifest, bytes | None]:
    """The manifest in the TOML file `path`, and its signature (envelope bytes), unverified, if it has one.

    Raises ManifestError: one line for each problem, "file: field: found ..., must be ...".
    """
    return parse_manifest(_read(path), name=str(path))


def parse_manifest(text: str, *, name: str) -> tuple[RunManifest, bytes | None]:
    """As `load_manifest`, from text. name: of the file, for messages."""
    try:
        data = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ManifestError(f"{name}: not valid TOML: {error or 'nested too deeply'}") from None
    signature = data.pop("signature", None)
    try:
        return build_manifest(data), None if signature is None else _decode_signature(signature)
    except ManifestError as error:
        raise ManifestError("\n".join(f"{name}: {line}" for line in str(error).splitlines())) from None


def build_manifest(data: Mapping[str, Any]) -> RunManifest:
    """A manifest from nested mappings, as TOML gives them. ManifestError with one line for each problem."""
    try:
        text = json.dumps(data, default=_no_json)
        manifest = RunManifest.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise ManifestError("\n".join(_explain(error, data))) from None
    if len(manifest.canonical) > MAX_MANIFEST_BYTES:
        raise ManifestError(f"manifest: {len(manifest.canonical)} bytes, must be at most {MAX_MANIFEST_BYTES}")
    return manifest


def dump_manifest(manifest: RunManifest, signature: bytes | None = None) -> str:
    """TOML that `load_manifest` reads back exactly, with every field and a comment on each."""
    lines = [
        f"# A p2pnode run. Its id, {manifest.run_id},",
        "# is a digest of all that follows: change anything and it is another run, which needs a new signature",
        "# (`p2pnode run sign`). Check it with `p2pnode run validate`.",
        "",
    ]
    lines += _dump_section((), manifest, signature)
    return "\n".join(lines) + "\n"


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ManifestError(f"{path}: can't be read ({error.strerror})") from None
    if len(data) > MAX_FILE_BYTES:
        raise ManifestError(f"{path}: larger than {MAX_FILE_BYTES} bytes, which no manifest is")
    try:
        return data.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise ManifestError(f"{path}: not a text file in UTF-8") from None


def _decode_signature(found: object) -> bytes:
    if not isinstance(found, str):
        raise ManifestError(f"signature: found {_show(found)}, must be the text that `p2pnode run sign` writes")
    try:
        return base64.b64decode(found, validate=True)
    except (binascii.Error, ValueError):
        raise ManifestError("signature: damaged (not base64); sign again with `p2pnode run sign`") from None


def _no_json(value: object) -> object:
    # Dates and times: the one thing in TOML without a counterpart in JSON. No field is one, so all say "found a date".
    return {"date": str(value)}


# --- explaining -------------------------------------------------------------------------------------------------

_PATTERNS: Final = {
    r"^[0-9a-f]{64}$": "64 hexadecimal digits in lower case",
    r"^12D3KooW[1-9A-HJ-NP-Za-km-z]{44}$": "a peer id (12D3KooW..., as `p2pnode identity show` prints)",
    r"^[a-z0-9][a-z0-9-]{0,63}$": "a task's name: lower-case letters, digits and -",
    r"^$|^[a-z_0-9]+(>=|<=)[0-9.eE+-]+$": "empty, or like accuracy>=0.95",
}
_ALLOWED: Final = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a smaller number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text in quotes",
    "finite_number": "a finite number",
    "tuple_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
    "multiple_of": "a multiple of {multiple_of}",
    "string_too_short": "text of at least {min_length} characters",
    "string_too_long": "text of at most {max_length} characters",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
    "literal_error": "{expected}",
}


def _explain(error: ValidationError, data: Mapping[str, Any]) -> Iterable[str]:
    """One plain line for each field that is wrong, at most MAX_PROBLEMS."""
    lines: dict[str, str] = {}
    for item in error.errors(include_url=False):
        path = _known_path(item["loc"], data)
        where = ".".join(str(part) for part in path) or "manifest"
        context = item.get("ctx", {})
        kind = item["type"]
        if kind == "value_error":
            lines[str(context["error"])] = str(context["error"])
        elif kind == "missing":
            lines.setdefault(where, f"{where}: missing, and it has no default")
        elif kind == "extra_forbidden":
            lines.setdefault(where, f"{where}: no such field{_suggestion(path)}")
        else:
            if path[:2] == ("task", "parameters") and len(path) == 3:
                allowed = "true, false, a finite number, or text"
            elif kind == "string_pattern_mismatch":
                allowed = _PATTERNS.get(context["pattern"], f"like {context['pattern']}")
            else:
                allowed = _ALLOWED.get(kind, item["msg"]).format_map(context)
            lines.setdefault(where, f"{where}: found {_show(item['input'])}, must be {allowed}".replace("'", '"'))
    # A list whose items are wrong is reported as too short as well: say the inner problem only.
    shown = [line for where, line in lines.items() if not any(other.startswith(f"{where}.") for other in lines)]
    if len(shown) > MAX_PROBLEMS:
        shown[MAX_PROBLEMS:] = [f"... and {len(shown) - MAX_PROBLEMS} more problems"]
    return shown


def _known_path(location: tuple[int | str, ...], data: Any) -> tuple[int | str, ...]:
    """The field's path; what pydantic appends to tell members of a union apart is dropped."""
    if location[:2] == ("task", "parameters"):
        return location[:3]
    return location


def _suggestion(path: tuple[int | str, ...]) -> str:
    model: Any = RunManifest
    for part in path[:-1]:
        field = model.model_fields.get(str(part)) if isinstance(model, type) and issubclass(model, BaseModel) else None
        model = None if field is None else field.annotation
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return ""
    near = difflib.get_close_matches(str(path[-1]), model.model_fields, n=1)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; the fields here are {', '.join(model.model_fields)}"


def _show(value: object) -> str:
    """What was found, on one short line, as TOML would write it."""
    if isinstance(value, dict) and value.keys() == {"date"}:
        return f"the date {value['date']}"
    if isinstance(value, dict):
        return "a table"
    if value is None:
        return "nothing"
    text = json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


# --- writing ----------------------------------------------------------------------------------------------------

COMMENTS: Final = {
    "protocol": "version of the rules; all peers must speak the same",
    "name": "for people",
    "author": "peer id of who signs this, and founds the run",
    "nonce": "tells this run from another that is else the same; hexadecimal",
    "task": "What is learned, and from what data.",
    "task.name": "a task that the nodes have installed",
    "task.data_digest": "of the whole data set: all peers draw their share from the same one",
    "task.schema_digest": "of the model's tensors: names and shapes",
    "task.parameters": "The task's own settings.",
    "training": "Local work of one round.",
    "training.local_steps": "optimizer steps that a node makes in a round",
    "training.batch_size": "examples in a step, without privacy (with it, see privacy.sampling_rate)",
    "training.optimizer": '"sgd", "adam" or "adamw"',
    "training.learning_rate": "above 0",
    "training.momentum": "of sgd: 0 to below 1",
    "training.weight_decay": "0 to 1",
    "training.schedule": '"constant" or "cosine"',
    "training.schedule_final": "with cosine: last learning rate over first",
    "training.target_rounds": "the run ends after so many rounds; 0: no end",
    "training.target_metric": 'the run ends when this holds, such as "accuracy>=0.95"; "": never',
    "training.evaluate_every": "rounds between evaluations on the held-out split",
    "training.outer": "How the averaged update changes the shared model.",
    "training.outer.optimizer": '"plain" or "nesterov"',
    "training.outer.learning_rate": "above 0; 1 takes the average as it is",
    "training.outer.momentum": "of nesterov: above 0 to below 1",
    "privacy": "What each node promises to its own data.",
    "privacy.mode": '"example", "node", or "none" (which protects nobody)',
    "privacy.epsilon": "the most that a node spends in this run",
    "privacy.delta": "well below 1 over the number of examples that a node holds",
    "privacy.clip": "largest L2 norm of one example's gradient (node: of the update)",
    "privacy.noise_multiplier": "standard deviation of the noise over clip",
    "privacy.sampling_rate": "chance of each example to be in a step (example)",
    "privacy.steps": "private steps planned for the whole run; noise_multiplier is calibrated to them",
    "exchange": "How updates are encoded, bounded, weighted and combined.",
    "exchange.codec": '"float32" or "float16"',
    "exchange.aggregation": '"mean"',
    "exchange.max_abs": "an update with a larger value is rejected",
    "exchange.max_rms": "an update with a part of larger root mean square is rejected",
    "exchange.weights": "[least local steps, weight], ascending; with fewer steps than the first, no contribution",
    "roster": "Who takes part, and who votes.",
    "roster.admission": '"open" (anybody contributes) or "list" (only `peers`)',
    "roster.peers": "peer ids, with admission by list",
    "roster.anchors": "peer ids; with any, they are the voters, always",
    "roster.probation": "rounds with accepted contributions before a newcomer votes",
    "roster.window": "rounds without a sign of a voter before it loses its vote",
    "roster.provisional_after": "seconds without a quorum before those who are left go on provisionally",
    "roster.start_with": "contributors that the first round waits for",
    "roster.company_wait": "seconds that a node which is alone waits for others before each further round",
    "limits": "Bounds on what a peer can ask of others.",
    "limits.contributors": "in a round: 1 to 64",
    "limits.voters": "1 to 32",
    "limits.newcomers": "admitted in a round",
    "limits.chunk_bytes": "of what is sent and proven at a time; a multiple of 64, at most 131072",
    "deadlines": "The longest waits of an attempt, in seconds.",
    "deadlines.gather": "for nodes to say that they take part",
    "deadlines.contribute": "for their updates",
    "deadlines.close": "for the combined result",
    "deadlines.vote": "for the votes on it",
}


def _dump_section(path: tuple[str, ...], section: BaseModel, signature: bytes | None = None) -> list[str]:
    """Plain fields first, then tables, as TOML wants it."""
    lines: list[str] = []
    tables: list[tuple[str, BaseModel | Mapping[str, Any]]] = []
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel | Mapping):
            tables.append((name, value))
        else:
            comment = COMMENTS.get(".".join((*path, name)))
            lines.append(f"{name} = {_toml(value)}" + (f"  # {comment}" if comment else ""))
    if signature is not None:
        lines.append(
            f'signature = "{base64.b64encode(signature).decode("ascii")}"  # the author\'s, under all the rest'
        )
    for name, value in tables:
        dotted = ".".join((*path, name))
        lines += ["", f"# {COMMENTS[dotted]}", f"[{dotted}]"]
        if isinstance(value, BaseModel):
            lines += _dump_section((*path, name), value)
        else:
            lines += [f"{key} = {_toml(item)}" for key, item in value.items()]
    return lines


def _toml(value: object) -> str:
    """A TOML value. Floats are written so that the same float is read back (the shortest such text)."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(
            value, ensure_ascii=False
        )  # the manifest allows printable text only, so JSON's form is TOML's
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, tuple):
        items = [_toml(item) for item in value]
        one_line = f"[{', '.join(items)}]"
        return one_line if len(one_line) <= 60 else "[\n    " + ",\n    ".join(items) + ",\n]"
    raise TypeError(f"not a value of a manifest: {type(value).__name__}")
