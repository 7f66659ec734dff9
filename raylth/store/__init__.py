"""Bytes on disk: atomic, verified, plain Python and numpy. Knows no torch module and no ray."""

from raylth.store.hashing import canonical_json, fingerprint
from raylth.store.lease import Lease, leased
from raylth.store.location import DiskLocation, Location, StorageUnreachable, locate, write_atomically
from raylth.store.serialization import decode_tensors, encode_tensors
from raylth.store.store import BrokenArtefact, NewerStore, Store

__all__ = [
    "BrokenArtefact",
    "DiskLocation",
    "Lease",
    "Location",
    "NewerStore",
    "StorageUnreachable",
    "Store",
    "canonical_json",
    "decode_tensors",
    "encode_tensors",
    "fingerprint",
    "leased",
    "locate",
    "write_atomically",
]
