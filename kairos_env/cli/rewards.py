"""`kairos eval rewards`: what behaviours earn."""

from __future__ import annotations

from kairos_env.cli.options import Fields
from kairos_env.eval.rewards import RewardsConfig, compare_rewards, rewards_table


def rewards(config: Fields[RewardsConfig]) -> int:
    """Compares behaviours by what they earn: means of sums over an episode, discounted in brackets."""
    print(rewards_table(config, compare_rewards(config)))
    return 0
