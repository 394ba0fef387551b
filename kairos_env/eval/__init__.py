"""How good is it, with an interval: closed loop, imagination against reality, and their correlation.

    closed_loop     success rates of policies and planners in a simulator, one resumable row a job
    imagination     open-loop rollouts beside recorded reality under the same actions, with controls
    correlation     does success in imagination predict success in reality, over policies of different quality
    probe           an independent reader of gripper and cube positions, trained on real frames only
    theory          how fast a trained model's delta memory forgets, and what its rollouts owe to it
    hidden_places   a world in which the worth of a memory is known in closed form
    benchmark_table, benchmark_compare, benchmark_report (of benchmark_lines and benchmark_page)
                    the table of LIBERO and LIBERO-plus from rows, two runs paired, and the report beside what
                    others published (published_results); failures names what went wrong in an episode
    results, run_folder, roster, statistics, image_metrics, media, report     what these are made of

Importing this package imports nothing heavy; import the module that you need.
"""
