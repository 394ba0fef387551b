"""`kairos eval rewards`, `practice`: what behaviours earn, and what practice in imagination is worth."""

from __future__ import annotations

from kairos_env.cli.options import Fields
from kairos_env.env.practice import PracticeConfig
from kairos_env.eval.imagination.practice import practice_table, practise_and_judge
from kairos_env.eval.rewards import RewardsConfig, compare_rewards, rewards_table


def rewards(config: Fields[RewardsConfig]) -> int:
    """Compares behaviours by what they earn: means of sums over an episode, discounted in brackets."""
    print(rewards_table(config, compare_rewards(config)))
    return 0


def practice(config: Fields[PracticeConfig], agents: int = 3, episodes: int = 50, limit: int = 24) -> int:
    """Practises in imagination and judges in the simulator.

    Args:
        agents: how many, of seeds that follow each other.
        episodes: of each agent, in imagination and in the simulator.
        limit: decisions after which a judged episode is cut off.
    """
    judged = []
    for one in practise_and_judge(config, agents, episodes, limit):
        judged.append(one)
        print(f"seed {one.config.seed}: imagined {one.imagined.mean():.0%}, real {one.real.mean():.0%}", flush=True)
    print(practice_table(judged))
    return 0
