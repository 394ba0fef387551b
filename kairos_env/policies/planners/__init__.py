"""Planning by imagining: one function a planner."""
