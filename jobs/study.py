"""Compare methods over seeds: every pair is a fine-tuning of its own; tables with 95 % intervals
and differences seed by seed.

usage: python jobs/study.py --config jobs/configs/study_microworld.yaml [--plan] [key=value …]
leaves: {storage}/{run}/study/ and the report
"""

from versatune_ray.cli import main
from versatune_ray.tuning.outlook import plan_study
from versatune_ray.tuning.study import check_study, study

if __name__ == "__main__":
    main("study", study, __doc__, plan_study, check=check_study, uses=("records",))
