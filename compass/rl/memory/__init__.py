"""How much memory a run needs, found out without a device: see `compass.rl.memory.plan`."""
