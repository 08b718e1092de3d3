"""Launched as scripts by torchrun. A package, because torchtune installs a `recipes` of its own,
which would otherwise win when tests import these."""
