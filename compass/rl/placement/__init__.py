"""Which rank does what: who writes which rollouts, and who trains on them."""
