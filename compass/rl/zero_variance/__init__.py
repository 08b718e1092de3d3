"""Multi-stage zero-variance elimination: "each prompt must matter" (arXiv 2512.07710,
section 2.4.1).

One file a stage, in the order a group meets them: `history` (1, pre-filter), `expand` (2),
`reshape` (3), `residual` (4). `outcome` is the record of one group's way through them,
`population` the prior over prompts that the gate of stage 2 reads, `ledger` the account.
"""
