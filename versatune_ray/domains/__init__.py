"""Domain spec → records → chat → token store.

``spec`` says which files a source stands for, ``readers`` read them, ``records`` and ``shapes``
recognise what a record says, ``chat`` renders and tokenises, ``store`` keeps tokens on disk,
``split`` decides what trains and what measures. ``tokenizing`` runs all of it on Ray Data and alone
imports ray: import it by name.
"""

from versatune_ray.domains.chat import (
    PLAIN_TEMPLATE,
    Encoded,
    cut,
    encode,
    encode_prompt,
    load_tokenizer,
)
from versatune_ray.domains.fingerprint import fingerprint
from versatune_ray.domains.loading import DomainPaths, load_domains
from versatune_ray.domains.readers import Located, read_records, read_texts
from versatune_ray.domains.records import (
    BadRecord,
    Example,
    LeftOut,
    Message,
    Question,
    Rules,
    content_hash,
    interpret,
    read_questions,
    to_example,
)
from versatune_ray.domains.spec import Input, expand
from versatune_ray.domains.split import DomainData, DomainStores, longest, split
from versatune_ray.domains.store import CopiedRecords, Records, TokenStore
from versatune_ray.domains.store_writer import Batch, TokenStoreWriter

__all__ = [
    "PLAIN_TEMPLATE",
    "BadRecord",
    "Batch",
    "CopiedRecords",
    "DomainData",
    "DomainPaths",
    "DomainStores",
    "Encoded",
    "Example",
    "Input",
    "LeftOut",
    "Located",
    "Message",
    "Question",
    "Records",
    "Rules",
    "TokenStore",
    "TokenStoreWriter",
    "content_hash",
    "cut",
    "encode",
    "encode_prompt",
    "expand",
    "fingerprint",
    "interpret",
    "load_domains",
    "load_tokenizer",
    "longest",
    "read_questions",
    "read_records",
    "read_texts",
    "split",
    "to_example",
]
