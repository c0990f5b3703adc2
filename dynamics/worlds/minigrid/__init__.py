"""Minigrid and BabyAI levels as a domain, https://minigrid.farama.org: seen whole, from above."""
