"""Make domains out of unlabelled records: by what they say (k-means over embeddings, the number of
domains by silhouette) or by a judge. A killed job goes on.

usage: python jobs/group.py --config FILE group.sources=heap.jsonl [group.by=judge …] [key=value …]
leaves, in {storage}/{run}/group/: NAME.parquet of each domain, domains.yaml (a section ready to
run), groups.html, groups.json, assignments.parquet
"""

from versatune_ray.cli import main
from versatune_ray.grouping.group import check_group, group, plan_group

if __name__ == "__main__":
    main("group", group, __doc__, plan_group, check=check_group, uses=())
