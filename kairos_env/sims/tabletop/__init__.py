"""A Panda arm on a table, simulated by robosuite's models in MuJoCo."""
