"""Multi-stage zero-variance elimination: "each prompt must matter" (METHOD 4).

One file a stage, in the order a group meets them: `history` (1, pre-filter), `expand` (2),
`reshape` (3), `residual` (4). `outcome` is the record of one group's way through them,
`population` the prior over prompts that the gate of stage 2 reads, `ledger` the account.
"""
