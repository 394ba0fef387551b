"""Evaluation, every number with an interval.

    closed_loop/    success rates of policies and planners in any simulator, one resumable row a job
    imagination/    open-loop rollouts beside recorded reality under the same actions; correlation of imagined and real
                    success; an independent reader of positions
    controls/       the state model, with which planning in pixels is compared
    theory/         a trained model's memory against the theory of what it can keep
    report/         tables and pages of rows, two runs compared, what others published

Importing this package imports nothing heavy; import the module that you need.
"""
