"""From where on a difference is clear and a detection doubtful: alike for what is computed, written
and told of it.
"""

from __future__ import annotations

LEVEL = 0.05  # p below which a difference is clear
Z = 1.959964  # 97.5 % point of the normal distribution
AMONG_ALL = "†"  # beside a difference that is clear among all of its table
# p-value under which the repeats, not the sequences, are taken as the independent observations
REPEATS_DIFFER = 0.001
LOW_MASS = 0.5  # of the judge's probability on the options, below which it wants to say else
