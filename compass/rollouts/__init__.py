"""Every rollout of a run on disk: their columns, the files, who writes and who reads them."""
