"""What runs inside a sandbox. Sent in as code: nothing here imports from outside the package's
standard library, and nothing outside trusts what it says."""
