"""Programs of a policy run here: isolated, limited, used once."""
