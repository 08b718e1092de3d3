"""What a policy is made of: one file a layer, and the products they share."""
