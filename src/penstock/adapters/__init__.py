"""The hands: clocks, chance and, later, stores. The only room that may read a clock or roll dice."""
