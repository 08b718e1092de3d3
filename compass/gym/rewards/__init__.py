"""Rewards of the user's own, in the styles of other frameworks, beside a verifier or instead."""
