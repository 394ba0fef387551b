"""Real simulators as Gymnasium environments, each with the `RobotSpec` of its robot. One folder, one simulator."""
