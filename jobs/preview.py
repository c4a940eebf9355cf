"""Look at what would train before an hour is spent: shapes, unread fields, bad records, lengths,
and examples with the spans that carry loss. Needs no Ray and no GPU.

usage: python jobs/preview.py --config FILE [--records 3] [--all] [--json FILE] [key=value …]
"""

from versatune_ray.cli import preview

if __name__ == "__main__":
    preview(__doc__)
