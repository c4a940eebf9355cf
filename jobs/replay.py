"""Look ahead: the losses that a run recorded, through other policies and settings, in milliseconds.

usage: python jobs/replay.py [--config FILE] [run=NAME | replay.losses=FILE] [key=value …]
leaves: {storage}/{run}/replay/
"""

from versatune_ray.cli import main
from versatune_ray.tuning.lookahead import check_replay, look_ahead
from versatune_ray.tuning.outlook import plan_replay

if __name__ == "__main__":
    main("replay", look_ahead, __doc__, plan_replay, check_replay, needs_ray=False, uses=())
