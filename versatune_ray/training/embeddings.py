"""Mean embeddings of the domains, for ``mixture.start=chameleon``, without Ray.

usage: python -m versatune_ray.training.embeddings [--config FILE] [key=value …]

Writes ``embeddings.json`` in the run's folder: domain name → the mean over some training
records of the mean of the base model's middle hidden states over a record's tokens. One forward
pass over 2,048 records of each domain, as published. Name the file in mixture.embeddings.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from versatune_ray.domains import DomainData, load_domains
from versatune_ray.domains.tokenizing import build_stores
from versatune_ray.errors import UserError
from versatune_ray.mixture import fixed_subset
from versatune_ray.runtime.gguf import with_folders
from versatune_ray.settings.loading import load
from versatune_ray.training.model import load_model

RECORDS = 2048
_BATCH = 16


@torch.no_grad()
def mean_embeddings(
    model: PreTrainedModel, data: Sequence[DomainData], seed: int, records: int = RECORDS
) -> NDArray[np.float64]:
    """[k, width], of at most ``records`` training records of each domain, always the same ones."""
    decoder, device = model.get_decoder(), next(model.parameters()).device
    model.eval()
    found = []
    for number, domain in enumerate(data):
        size = len(domain.train)
        chosen = fixed_subset(size, min(size, records), seed, number)
        chosen = chosen[np.argsort(domain.train.lengths[chosen], kind="stable")]
        total = np.zeros(model.config.hidden_size)
        for start in range(0, len(chosen), _BATCH):
            rows = [domain.train[int(one)][0] for one in chosen[start : start + _BATCH]]
            tokens = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
            for place, row in enumerate(rows):
                tokens[place, : len(row)] = torch.from_numpy(row.astype(np.int64))
            hidden_states = decoder(
                input_ids=tokens.to(device), use_cache=False, output_hidden_states=True
            ).hidden_states
            hidden = hidden_states[len(hidden_states) // 2]
            for place, row in enumerate(rows):  # padded on the right: no token sees what follows
                total += hidden[place, : len(row)].double().mean(0).cpu().numpy()
        found.append(total / len(chosen))
    return np.stack(found)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m versatune_ray.training.embeddings",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--config", action="append", default=[], metavar="FILE")
    given = parser.parse_intermixed_args()
    try:
        # the start itself needs the file
        config = with_folders(load(given.config, [*given.overrides, "mixture.start=uniform"]))
        if config.model.path is None or not config.domains:
            raise UserError("model.path and domains: name a model and data")
        device = "cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu"
        paths = build_stores(
            config, config.domains, config.model.path, config.cache_folder, distributed=False
        )
        data = load_domains(paths, config.data)
        model = load_model(config.model.path, config.model.trust_remote_code).to(device)
        table = mean_embeddings(model, list(data.values()), config.seed)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    file = config.run_folder / "embeddings.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(dict(zip(data, table.tolist(), strict=True))), encoding="utf-8")
    print(file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
