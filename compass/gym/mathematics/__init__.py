"""Reading and comparing mathematical answers. Imports sympy: `compass.gym.math` imports it late."""
