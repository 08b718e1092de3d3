"""The machine under a run: devices, versions of what is installed, memory, signals."""
