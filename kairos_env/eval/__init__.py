"""How good is it, with an interval: policies in closed loop, imagination against reality.

    closed_loop     policies and planners in any simulator: configuration -> plan -> rows, one a job, resumable
    report          one report of the rows of any runs, two runs compared, results that others published
    imagination     open-loop rollouts beside recorded reality; does success in imagination predict success?
    controls        what the imagined results are measured against
    theory          how fast a trained model's delta memory forgets, and what its rollouts owe to it
    rows, failures, statistics      what these are made of

Importing this package imports nothing heavy; import the module that you need.
"""
