"""Success rates of policies in simulators: jobs, engine, rows."""
