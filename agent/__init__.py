"""Who decides: the loop, the planners that propose, the referee that disposes."""
