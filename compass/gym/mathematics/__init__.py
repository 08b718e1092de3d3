"""Reading and comparing mathematical answers. Imports sympy, so
`compass.gym.domains.math` imports it late."""
