"""Bytes on disk: atomic, verified, plain Python and numpy. Knows no torch module and no ray."""

from raylth.store.canonical import canonical_json, fingerprint
from raylth.store.lease import Lease
from raylth.store.store import BrokenArtefact, NewerStore, Store, write_atomically
from raylth.store.tensors import decode_tensors, encode_tensors

__all__ = [
    "BrokenArtefact",
    "Lease",
    "NewerStore",
    "Store",
    "canonical_json",
    "decode_tensors",
    "encode_tensors",
    "fingerprint",
    "write_atomically",
]
