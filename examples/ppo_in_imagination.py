"""PPO that practises in imagination only, and is then judged in the real simulator.

python examples/ppo_in_imagination.py [TASK ...] [--short]        needs pip install 'kairos-env[rl]'
"""

import sys

from kairos_env.env.practice import PracticeConfig
from kairos_env.eval.imagination.practice import practice_table, practise_and_judge

ALGORITHM, SHORT = "ppo", "--short" in sys.argv
tasks = [word for word in sys.argv[1:] if not word.startswith("--")] or ["reach"]
amounts = {"starts": 2, "robots": 2, "demonstrations": 4, "decisions": 48, "horizon": 3} if SHORT else {}
judged_in = {"agents": 1, "episodes": 1, "decisions": 3} if SHORT else {"agents": 3, "episodes": 50}

for task in tasks:
    config = PracticeConfig(task=task, algorithm=ALGORITHM, **amounts)
    print(practice_table(list(practise_and_judge(config, **judged_in))), flush=True)
